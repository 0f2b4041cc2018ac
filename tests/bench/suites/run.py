"""How benchmarks are run: on what, how often, until when."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mmblocks.errors import MMBlocksError
from tests.bench.suites.rows import PeerSetting, Row
from tests.bench.suites.sizes import LEAST, Scale, find_scale

CPU = torch.device("cpu")
BOUND = 1e-4
"""Most that logits may differ in float32, relative to their norm: sums run in another order."""
NOISE = 2.0
"""How many times further from float32 than the peer ours may be in a narrower type; both round, in other places."""


COMPILING_S = 120.0
"""What compiling the peer's tower and language model takes, at most, on a GPU machine."""
CASE_S = 45.0
"""What one case of a suite takes, at most, where it compiles nothing."""


class OutOfTime(MMBlocksError):
    """The deadline would pass before the next case is done."""


class Unequal(MMBlocksError):
    """Two sides that are to be compared do not compute the same, so no time of them means anything."""


@dataclass(frozen=True, slots=True)
class Run:
    """Settings of a run.

    repeats: rounds that are kept, after `warmups` that are not. input_sets: different inputs that rounds rotate over.
    tiny: the least inputs on which everything is still gone through, as a proof that it runs. ends: `time.monotonic()`
    after which no further case is begun.
    """

    size: str = "tiny"
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    repeats: int = 5
    warmups: int = 1
    input_sets: int = 2
    tiny: bool = False
    command: str = ""
    ends: float = float("inf")

    @property
    def scale(self) -> Scale:
        return find_scale(LEAST if self.tiny else self.size)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def at(self, size: str) -> Run:
        """The same run with another size of model."""
        return replace(self, size=size)

    def require_time(self, needed_s: float = CASE_S, before: str = "the next case") -> None:
        """Raise `OutOfTime` where less than `needed_s` is left."""
        left = self.ends - time.monotonic()
        if left <= needed_s:
            raise OutOfTime(f"{max(left, 0):.0f} s are left before {before}, which may take {needed_s:.0f} s.")

    def has_time(self, needed_s: float) -> bool:
        """Whether so much is left before the deadline."""
        return self.ends - time.monotonic() > needed_s

    def row(
        self,
        suite: str,
        scenario: str,
        quantity: str,
        unit: str,
        ours: float | None,
        peer: float | None = None,
        *,
        setting: PeerSetting | Literal[""] = "",
        less_is_better: bool = True,
        **others: Any,
    ) -> Row:
        """A row with this run's size, device and type; the ratio is above 1 where ours is better."""
        ratio = None
        if ours is not None and peer is not None:
            good, bad = (peer, ours) if less_is_better else (ours, peer)
            ratio = good / bad if bad else None
        return Row(
            suite=suite,
            scenario=scenario,
            size=self.scale.name,
            device=self.device.type,
            dtype=str(self.dtype).removeprefix("torch."),
            quantity=quantity,
            unit=unit,
            ours=ours,
            peer=peer,
            ratio=ratio,
            peer_setting=setting,
            command=self.command,
            **others,
        )


def compute_error(ours: Tensor, theirs: Tensor) -> float:
    """Norm of the difference over the norm of theirs; infinite where theirs is nothing but zeros."""
    a, b = ours.detach().double(), theirs.detach().double()
    size = float(b.norm())
    return float((a - b).norm()) / size if size else float("inf")


def require_equal(what: str, ours: Tensor, theirs: Tensor, exact: Tensor | None = None) -> float:
    """The error between two outputs. Raises `Unequal` where they differ by more than rounding.

    exact: theirs in float32, for outputs in a narrower type; ours may then be `NOISE` times as far from it as theirs is.
    """
    error = compute_error(ours, theirs)
    bound = BOUND if exact is None else NOISE * compute_error(theirs, exact)
    found = error if exact is None else compute_error(ours, exact)
    if not found <= bound:
        raise Unequal(f"{what}: outputs differ by {found:.2g} of their norm, at most {bound:.2g} is rounding.")
    return error


Suite = Callable[[Run], Iterator[Row]]
"""Yields rows as they are measured, so that what is done is kept when time runs out."""
