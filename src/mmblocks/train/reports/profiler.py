"""Where a step's time goes: a clock that every moment of a run is charged to, padding, and the share of the device's peak.

Phases that the loop names (`Panel.during`) nest: time is charged to the innermost one, and what no phase claims is
"other", so the parts sum to the wall time. A forward is split by hooks on the encoder and the projector; what is left of
it (embedding, placing visual tokens, backbone, loss) is the language model's.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from mmblocks.batch import Batch
from mmblocks.model.budget import last_row_flops, prefill_flops
from mmblocks.model.checks.composition import Examination, examine
from mmblocks.model.onevision import OneVision
from mmblocks.train.reports.parameter_table import weights_in

log = logging.getLogger(__name__)

PHASES = (
    "data",
    "encoder",
    "projector",
    "language_model",
    "backward",
    "optimizer",
    "saving",
    "evaluating",
    "other",
)
"""Rows of the panel. The loop names data, forward, backward, optimizer, saving and evaluating."""
FORWARD, OTHER = "language_model", "other"


class Clock(Protocol):
    """Charges time to phases."""

    def switch(self, phase: str) -> None:
        """From now on time belongs to `phase`."""
        ...

    def read(self) -> tuple[dict[str, float], float]:
        """Seconds by phase since the last reading, and the wall time, which they sum to."""
        ...


class HostClock:
    """Time as the process sees it, in whole nanoseconds, so that the parts sum exactly. For the CPU."""

    def __init__(self, now_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self._now_ns = now_ns
        self._phase = OTHER
        self._spent: Counter[str] = Counter()
        self._since = now_ns()

    def switch(self, phase: str) -> None:
        now = self._now_ns()
        self._spent[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def read(self) -> tuple[dict[str, float], float]:
        self.switch(self._phase)
        spent, self._spent = self._spent, Counter()
        return {phase: ns / 1e9 for phase, ns in spent.items()}, spent.total() / 1e9


class DeviceClock:
    """Time as the current stream of a GPU sees it: events between the kernels, read together when a row is due.

    The device works behind the process, so what the process does meanwhile (reading data) costs nothing here unless the
    device waits for it. Only `read` waits for the device.
    """

    def __init__(
        self,
        device: torch.device,
        event: Callable[[], Any] | None = None,
        now_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._event = event or (lambda: torch.Event(device, enable_timing=True))
        self._now_ns = now_ns
        self._marks: list[tuple[str, Any]] = []
        self._spare: list[Any] = []
        self._phase = OTHER
        self._begin()

    def switch(self, phase: str) -> None:
        event = self._spare.pop() if self._spare else self._event()
        event.record()
        self._marks.append((phase, event))
        self._phase = phase

    def read(self) -> tuple[dict[str, float], float]:
        self.switch(self._phase)
        self._marks[-1][1].synchronize()
        wall = (self._now_ns() - self._since) / 1e9
        spent: dict[str, float] = defaultdict(float)
        for (phase, begin), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            spent[phase] += begin.elapsed_time(end) / 1e3
        self._spare += [event for _, event in self._marks]
        self._begin()
        spent[OTHER] += wall - sum(spent.values())
        return dict(spent), wall

    def _begin(self) -> None:
        self._marks = []
        self._since = self._now_ns()
        self.switch(self._phase)


class Panel:
    """The figures of a stage beside its loss. Use it as a context: hooks sit on the model only inside.

    model: as the stage trains it, frozen parts frozen, sharded or not. peak_flops: of one device; by default that of the
    model's GPU by its name, on the CPU what a large matrix product reaches, measured once. composition: the dry build of
    the model, where there is one.
    """

    def __init__(
        self,
        model: OneVision,
        *,
        peak_flops: float | None = None,
        clock: Clock | None = None,
        composition: Examination | None = None,
    ) -> None:
        self._model = model
        self._work = Work.of(model, composition)
        self._peak = peak_flops if peak_flops is not None else peak_of(model.device)
        self._clock = clock or (DeviceClock(model.device) if model.device.type == "cuda" else HostClock())
        self._phase = OTHER
        self._hooks: list[RemovableHandle] = []
        self._inside: nn.Module | None = None
        self._flops = self._tokens = self._padding = 0.0
        self._total: dict[str, float] = defaultdict(float)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Charge what happens inside to a phase: data, forward, backward, optimizer, saving, evaluating or other."""
        before, now = self._phase, FORWARD if phase == "forward" else phase
        assert now in PHASES, f"{phase!r} is no phase of the panel: forward, {', '.join(PHASES)}"
        self._switch(now)
        try:
            yield
        finally:
            self._switch(before)

    def count(self, batch: Batch) -> None:
        """Note a micro-batch that is learned from. Cheapest before it is moved to a GPU, which would be waited for."""
        lengths = batch.packing.lengths
        self._tokens += batch.num_tokens
        self._padding += batch.num_tokens - sum(lengths)
        if self._work is not None:
            self._flops += self._work.for_batch(batch, lengths)

    def row(self) -> dict[str, float]:
        """Figures since the last row: seconds by phase, which sum to seconds/wall, padding_share, and mfu where known.

        padding_share: tokens beyond the sequences among all. mfu: FLOPs that forward and backward need (recomputation
        and adapters not counted) by what this process' device could do in the wall time at its peak.
        """
        spent, wall = self._clock.read()
        counted = {"wall": wall, "flops": self._flops, "tokens": self._tokens, "padding": self._padding}
        self._flops = self._tokens = self._padding = 0.0
        for name, value in {**spent, **counted}.items():
            self._total[name] += value
        return self._figures({**spent, **counted})

    def table(self) -> str:
        """All rows so far as one table: seconds and share of every phase."""
        total = self._total
        wall = max(total["wall"], 1e-9)
        rows = [("", "seconds", "share")]
        rows += [(p.replace("_", " "), f"{total[p]:.1f}", f"{100 * total[p] / wall:.1f} %") for p in PHASES]
        rows.append(("wall", f"{total['wall']:.1f}", "100.0 %"))
        figures = self._figures(total)
        rows += [(n, "", f"{100 * figures[k]:.1f} %") for n, k in _SHARES.items() if k in figures]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows)

    def _figures(self, total: Mapping[str, float]) -> dict[str, float]:
        row = {f"seconds/{phase}": total.get(phase, 0.0) for phase in (*PHASES, "wall")}
        row["padding_share"] = total["padding"] / max(total["tokens"], 1)
        if self._work is not None and self._peak is not None:
            row["mfu"] = total["flops"] / self._peak / max(total["wall"], 1e-9)
        return row

    def _switch(self, phase: str) -> None:
        self._phase = phase
        self._clock.switch(phase)

    def __enter__(self) -> Panel:
        for name, module in self._timed():
            self._hooks += [
                module.register_forward_pre_hook(self._entering(name), prepend=True),
                module.register_forward_hook(self._leaving(name), always_call=True),
            ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _timed(self) -> Iterator[tuple[str, nn.Module]]:
        """What is charged to a part: a projector's body and head are also run apart, a body layer by layer."""
        yield "encoder", self._model.encoder
        projector: Any = self._model.projector
        layers = list(projector.body) if type(projector.body) is nn.Sequential else []
        for module in dict.fromkeys((projector, projector.body, projector.head, *layers)):
            yield "projector", module

    # Only a forward is split: what evaluation runs, or backward computes again, stays with its own phase. Graphs of
    # torch.compile must not hold a clock.

    def _entering(self, name: str) -> Any:
        def enter(module: nn.Module, arguments: Any) -> None:
            if not torch.compiler.is_compiling() and self._phase == FORWARD:
                self._inside = module
                self._switch(name)

        return enter

    def _leaving(self, name: str) -> Any:
        def leave(module: nn.Module, arguments: Any, output: Any) -> None:
            if not torch.compiler.is_compiling() and self._inside is module:
                self._inside = None
                self._switch(FORWARD)

        return leave


_SHARES = {"padding": "padding_share", "of peak FLOPs (MFU)": "mfu"}


# Work ---------------------------------------------------------------------------------------------------------------

_PROBE_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Work:
    """FLOPs of forward and backward: per view of the encoder; per cell of the projector's body and per row of its head; per
    token, and per pair of tokens of a sequence (attention, in full although a causal kernel may skip half), of all decoder
    layers but the last; of the last per asked row and per pair of one with a token; per labelled row (the head).
    """

    encoder: float
    body: float
    head: float
    token: float
    pair: float
    asked: float
    asked_pair: float
    label: float
    cells: tuple[int, int]
    """Of a view before and after the projector, where a batch does not say which are used."""

    @classmethod
    def of(cls, model: OneVision, composition: Examination | None = None) -> Work | None:
        """The work of a model with its present learning parts; None, logged with the reason, where it cannot be counted.

        composition: the dry build of the model, where there is one.
        """
        seen = composition or examine(model.spec)
        flops, notes = prefill_flops(seen, 1, _PROBE_TOKENS)
        if missing := [part for part in ("encoder", "projector", "backbone", "head") if flops.get(part) is None]:
            log.info("no MFU: the FLOPs of %s are unknown. %s", ", ".join(missing), "; ".join(notes))
            return None
        known = {part: float(n or 0) for part, n in flops.items()}
        encoder, projector, backbone = (
            _learning_share(getattr(model, p)) for p in ("encoder", "projector", "backbone")
        )
        early = encoder > 0 or projector > 0 or any(mark.requires_grad for mark in model.marks.values())
        projects = 1 + _any(encoder or projector) + projector
        through, attends = 1 + _any(early or backbone) + backbone, 1 + 2 * _any(early or backbone)
        grid, projected = model.encoder.grid, model.projector.out_grid(model.encoder.grid)
        per_row = 2.0 * sum(weight.numel() for weight in model.projector.head.parameters() if weight.ndim == 2)
        token, asked, pair, asked_pair = _layers(known["backbone"], known["attention"], seen.backbone)
        return cls(
            encoder=known["encoder"] * (1 + _any(encoder) + encoder),
            body=(known["projector"] - projected.area * per_row) / grid.area * projects,
            head=per_row * projects,
            token=token * through,
            pair=pair * attends,
            asked=asked * through,
            asked_pair=asked_pair * attends,
            label=known["head"] * through,
            cells=(grid.area, projected.area),
        )

    def for_batch(self, batch: Batch, lengths: list[int]) -> float:
        """FLOPs of one micro-batch; features that came with it cost the encoder nothing."""
        encoded = self.encoder * batch.num_views if batch.features is None else 0.0
        cells, rows = self._projected(batch)
        tokens = self.token * sum(lengths) + self.pair * sum(n * n for n in lengths)
        asked = batch.learned.counts
        last = self.asked * sum(asked) + self.asked_pair * sum(n * m for n, m in zip(asked, lengths, strict=True))
        return encoded + self.body * cells + self.head * rows + tokens + last + self.label * sum(asked)

    def _projected(self, batch: Batch) -> tuple[int, int]:
        """Cells that enter the projector's body, and rows that enter its head."""
        before, after = (batch.num_views * cells for cells in self.cells)
        if batch.layout is None:
            return before, after
        used = batch.layout.cells
        return before if used is None else len(used.rows), len(batch.layout.positions)


def _layers(total: float, attention: float, backbone: Any) -> tuple[float, float, float, float]:
    """Of a sequence's FLOPs: per token and per asked row, per pair and per pair with an asked row."""
    tokens = _PROBE_TOKENS
    one, one_attention = last_row_flops(backbone, tokens)
    asked = (total - attention - (one - one_attention)) / (tokens - 1)
    asked_pair = (attention - one_attention) / (tokens * (tokens - 1))
    return (total - attention) / tokens - asked, asked, attention / tokens**2 - asked_pair, asked_pair


def _any(learns: float | bool) -> int:
    """Gradients of activations are computed as soon as anything in a part, or before it, learns."""
    return 1 if learns else 0


def _learning_share(module: nn.Module) -> float:
    """Share of a part's weights for which gradients are computed."""
    learning = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return learning / max(weights_in(module), 1)


# Peaks --------------------------------------------------------------------------------------------------------------

PEAKS = {
    "GB200": 2500e12,
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Dense bfloat16 FLOPs per second of GPUs by a piece of their name, from NVIDIA's data sheets; the first that fits."""


def peak_of(device: torch.device) -> float | None:
    """FLOPs per second that a device could do; None, logged, for a GPU that `PEAKS` does not list."""
    if device.type != "cuda":
        return _measured_peak(torch.get_num_threads())
    name = torch.cuda.get_device_name(device)
    return gpu_peak(name)


def gpu_peak(name: str) -> float | None:
    """The dense bfloat16 peak of a GPU by the name its driver gives it."""
    words = f" {name.replace('-', ' ')} "
    peak = next((value for piece, value in PEAKS.items() if f" {piece} " in words), None)
    if peak is None:
        log.info("no MFU: the peak of %s is not known; give it as Panel(peak_flops=...).", name)
    return peak


@cache
def _measured_peak(threads: int) -> float:
    """What a float32 matrix product reaches on this CPU with so many threads, best of five."""
    side = 512
    a = torch.ones(side, side, device="cpu")
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - begin)
    peak = 2 * side**3 / best
    log.info(
        "MFU on the CPU: of %.0f GFLOP/s, measured with a %dx%d matrix product on %d threads",
        peak / 1e9,
        side,
        side,
        threads,
    )
    return peak
