"""Where a step's time goes: seconds by phase, padding, and the share of the device's peak.

Phases that the loop names (`StepProfiler.time_phase`) nest: time is charged to the innermost one, and what no phase claims
is "other", so the phases sum to the wall time. A forward pass is split by hooks on the encoder and the projector; the rest
of it (embedding, inserting visual tokens, backbone, loss) is charged to the language model.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from mmblocks.batch import Batch
from mmblocks.model.checks.composition import DryBuild, dry_build
from mmblocks.model.costs.devices import find_peak_flops
from mmblocks.model.costs.flops import ForwardFlops, PassCounts
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import PARTS
from mmblocks.train.reports.parameter_table import count_weights

log = logging.getLogger(__name__)

PHASES = ("data", "encoder", "projector", "language_model", "backward", "optimizer", "saving", "evaluating", "other")
"""Rows of the table. The loop names data, forward, backward, optimizer, saving and evaluating."""
FORWARD, OTHER = "language_model", "other"


class Clock(Protocol):
    """Charges time to phases."""

    def switch_phase(self, phase: str) -> None:
        """From now on time belongs to `phase`."""
        ...

    def read_times(self) -> tuple[dict[str, float], float]:
        """Seconds by phase since the last reading, and the wall time, which they sum to."""
        ...


class HostClock:
    """Time as the process sees it, in whole nanoseconds, so that the parts sum exactly. For the CPU."""

    def __init__(self, now_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self._now_ns = now_ns
        self._phase = OTHER
        self._spent: Counter[str] = Counter()
        self._since = now_ns()

    def switch_phase(self, phase: str) -> None:
        now = self._now_ns()
        self._spent[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def read_times(self) -> tuple[dict[str, float], float]:
        self.switch_phase(self._phase)
        spent, self._spent = self._spent, Counter()
        return {phase: ns / 1e9 for phase, ns in spent.items()}, spent.total() / 1e9


class DeviceClock:
    """Time as the current stream of a GPU sees it: events between the kernels, read together when a row is due.

    The device works behind the process, so what the process does meanwhile (reading data) costs nothing here unless the
    device waits for it. Only `read_times` waits for the device.
    """

    def __init__(
        self,
        device: torch.device,
        event: Callable[[], torch.Event] | None = None,
        now_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._event = event or (lambda: torch.Event(device, enable_timing=True))
        self._now_ns = now_ns
        self._switches: list[tuple[str, torch.Event]] = []
        self._spare: list[torch.Event] = []
        self._phase = OTHER
        self._start_reading()

    def switch_phase(self, phase: str) -> None:
        event = self._spare.pop() if self._spare else self._event()
        event.record()
        self._switches.append((phase, event))
        self._phase = phase

    def read_times(self) -> tuple[dict[str, float], float]:
        self.switch_phase(self._phase)
        self._switches[-1][1].synchronize()
        wall = (self._now_ns() - self._since) / 1e9
        spent: dict[str, float] = defaultdict(float)
        for (phase, begin), (_, end) in zip(self._switches, self._switches[1:], strict=False):
            spent[phase] += begin.elapsed_time(end) / 1e3
        self._spare += [event for _, event in self._switches]
        self._start_reading()
        spent[OTHER] += wall - sum(spent.values())
        return dict(spent), wall

    def _start_reading(self) -> None:
        self._switches = []
        self._since = self._now_ns()
        self.switch_phase(self._phase)


class StepProfiler:
    """The figures of a stage beside its loss. Use it as a context: hooks sit on the model only inside.

    model: as the stage trains it, frozen parts frozen, sharded or not. peak_flops: of one device; by default that of the
    model's GPU by its name. Where it is not known, as on a CPU, there is no MFU. composition: the dry build of the model,
    where there is one.
    """

    def __init__(
        self,
        model: OneVision,
        *,
        peak_flops: float | None = None,
        clock: Clock | None = None,
        composition: DryBuild | None = None,
    ) -> None:
        self._model = model
        self._work = TrainingFlops.from_model(model, composition)
        self._peak = peak_flops if peak_flops is not None else find_peak_flops(model.device)
        self._clock = clock or (DeviceClock(model.device) if model.device.type == "cuda" else HostClock())
        self._phase = OTHER
        self._hooks: list[RemovableHandle] = []
        self._inside: nn.Module | None = None
        self._flops = self._tokens = self._padding = 0.0
        self._total: dict[str, float] = defaultdict(float)

    @contextmanager
    def time_phase(self, phase: str) -> Iterator[None]:
        """Charge what happens inside to a phase: data, forward, backward, optimizer, saving, evaluating or other."""
        before, now = self._phase, FORWARD if phase == "forward" else phase
        assert now in PHASES, f"{phase!r} is no phase of the panel: forward, {', '.join(PHASES)}"
        self._switch_phase(now)
        try:
            yield
        finally:
            self._switch_phase(before)

    def count_batch(self, batch: Batch) -> None:
        """Note a micro-batch that is learned from. Cheapest before it is moved to a GPU, which would be waited for."""
        lengths = batch.packing.lengths
        self._tokens += batch.num_tokens
        self._padding += batch.num_tokens - sum(lengths)
        if self._work is not None:
            self._flops += self._work.count_flops(batch, lengths)

    def read_metrics(self) -> dict[str, float]:
        """Figures since the last row: seconds by phase, which sum to seconds/wall, padding_share, and mfu where known.

        padding_share: tokens beyond the sequences among all. mfu: FLOPs that forward and backward need (`TrainingFlops`) by
        what this process' device could do in the wall time at its peak.
        """
        spent, wall = self._clock.read_times()
        counted = {"wall": wall, "flops": self._flops, "tokens": self._tokens, "padding": self._padding}
        self._flops = self._tokens = self._padding = 0.0
        for name, value in {**spent, **counted}.items():
            self._total[name] += value
        return self._compute_metrics({**spent, **counted})

    def format_totals(self) -> str:
        """All rows so far as one table: seconds and share of every phase."""
        total = self._total
        wall = max(total["wall"], 1e-9)
        rows = [("", "seconds", "share")]
        rows += [(p.replace("_", " "), f"{total[p]:.1f}", f"{100 * total[p] / wall:.1f} %") for p in PHASES]
        rows.append(("wall", f"{total['wall']:.1f}", "100.0 %"))
        figures = self._compute_metrics(total)
        rows += [(n, "", f"{100 * figures[k]:.1f} %") for n, k in _SHARES.items() if k in figures]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows)

    def _compute_metrics(self, total: Mapping[str, float]) -> dict[str, float]:
        row = {f"seconds/{phase}": total.get(phase, 0.0) for phase in (*PHASES, "wall")}
        row["padding_share"] = total["padding"] / max(total["tokens"], 1)
        if self._work is not None and self._peak is not None:
            row["mfu"] = total["flops"] / self._peak / max(total["wall"], 1e-9)
        return row

    def _switch_phase(self, phase: str) -> None:
        self._phase = phase
        self._clock.switch_phase(phase)

    def __enter__(self) -> StepProfiler:
        """Time the encoder and the projector, whose body and head are also run apart, a body layer by layer.

        Only a forward pass is split: what evaluation runs, or backward computes again, stays with its own phase. Graphs of
        torch.compile must not hold a clock.
        """
        projector = self._model.projector
        layers = list(projector.body) if type(projector.body) is nn.Sequential else []
        timed = [("projector", m) for m in dict.fromkeys((projector, projector.body, projector.head, *layers))]
        for name, module in (("encoder", self._model.encoder), *timed):

            def enter_module(module: nn.Module, _: object, name: str = name) -> None:
                if not torch.compiler.is_compiling() and self._phase == FORWARD:
                    self._inside = module
                    self._switch_phase(name)

            self._hooks.append(module.register_forward_pre_hook(enter_module, prepend=True))
            self._hooks.append(module.register_forward_hook(self._leave_module, always_call=True))
        return self

    def _leave_module(self, module: nn.Module, *_: object) -> None:
        if not torch.compiler.is_compiling() and self._inside is module:
            self._inside = None
            self._switch_phase(FORWARD)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


_SHARES = {"padding": "padding_share", "of peak FLOPs (MFU)": "mfu"}


@dataclass(frozen=True, slots=True)
class TrainingFlops:
    """FLOPs that forward and backward of a model need, with its present learning parts.

    Never more than what is computed: recomputation and adapters are not counted, nor is the backward pass of a batch of text
    alone through a frozen language model.
    """

    forward: ForwardFlops
    passes: PassCounts
    text_passes: PassCounts

    @classmethod
    def from_model(cls, model: OneVision, composition: DryBuild | None = None) -> TrainingFlops | None:
        """None, logged with the reason, where torch cannot count the FLOPs. composition: the dry build of the model."""
        forward = ForwardFlops.from_dry_build(composition or dry_build(model.spec))
        if forward.notes:
            log.info("no MFU: %s", "; ".join(forward.notes))
            return None
        learning = {}
        for name in PARTS:
            trained = sum(p.numel() for p in getattr(model, name).parameters() if p.requires_grad)
            if trained:
                learning[name] = trained / count_weights(getattr(model, name))
        passes = PassCounts.from_learning(learning)
        return cls(forward, passes, PassCounts.from_learning(learning, with_visuals=False))

    def count_flops(self, batch: Batch, lengths: list[int]) -> float:
        """FLOPs of one micro-batch, whose sequences have these lengths."""
        passes = self.passes if batch.plans else self.text_passes
        return self.forward.count_batch(batch, lengths, batch.target_rows.counts, passes)
