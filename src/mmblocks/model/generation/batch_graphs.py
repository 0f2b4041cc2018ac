"""Steps of one row for each of several sequences as CUDA graphs, for any sequences of a pool."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmblocks.batch import Packing
from mmblocks.model.generation.pool import KVPool
from mmblocks.model.generation.step import reasons_against_capture
from mmblocks.ops.attention.spans import StepSpans
from mmblocks.ops.graphs import capture_cuda_graph

if TYPE_CHECKING:
    from mmblocks.backbones.causal_lm import CausalLM

log = logging.getLogger(__name__)
SHORTEST = 1024
"""Graphs are for spans of so many slots, or twice, four times, ... as many."""
USES_BEFORE_CAPTURE = 4
"""A step is captured when its size has been used so often: capturing costs about as much as some steps."""
_Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class StepRow:
    """A row to run. slot: where its keys and values are written; begin, length: of what it sees, itself included."""

    token: int
    slot: int
    position: int
    begin: int
    length: int


class BatchGraphs:
    """Logits of the next tokens of several sequences, from a graph for the next larger number of them.

    Graphs read the weights and the pool where they are: `drop_graphs` when these are others.
    """

    def __init__(self, backbone: CausalLM, pool: KVPool) -> None:
        self._backbone, self._pool = backbone, pool
        self._device = device = backbone.lm.get_input_embeddings().weight.device
        self._graphs: dict[_Size, _BatchGraph] = {}
        self._uses: Counter[_Size] = Counter()
        self._memory: Any = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self._spare: StepRow | None = None  # what the rows do that a graph has to spare
        self._reasons: list[str] = []

    def drop_graphs(self) -> None:
        """Forget what was captured."""
        self._graphs.clear()
        self._uses.clear()

    def compute_logits(self, rows: list[StepRow], longest: int) -> Tensor | None:
        """(rows, vocabulary), which the next call overwrites; None where the step is not captured, or not yet.

        longest: slots of the longest span.
        """
        if self._find_reasons():
            return None
        size = 1 << (len(rows) - 1).bit_length(), max(SHORTEST, 1 << (longest - 1).bit_length())
        self._uses[size] += 1
        spare = self._find_spare_slot() if self._uses[size] > USES_BEFORE_CAPTURE else None
        if spare is None:
            return None
        if size not in self._graphs:
            try:
                self._graphs[size] = _BatchGraph(self._backbone, self._pool, [spare] * size[0], size[1], self._memory)
            except RuntimeError as cause:  # a family that waits for the host within a step
                self._reasons = [str(cause).partition("\n")[0]]
                log.info("engine: steps are not captured (%s)", self._reasons[0])
                return None
        return self._graphs[size].replay_step([*rows, *[spare] * (size[0] - len(rows))])[: len(rows)]

    def _find_spare_slot(self) -> StepRow | None:
        if self._spare is None and (span := self._pool.reserve_span(1)) is not None:
            self._spare = StepRow(0, span.start, 0, span.start, 1)
        return self._spare

    def _find_reasons(self) -> list[str]:
        return self._reasons or reasons_against_capture(self._backbone, self._device, USES_BEFORE_CAPTURE * 2)


class _BatchGraph:
    """A captured step of so many rows, in spans up to `longest` slots. rows: what is run while it is captured."""

    def __init__(self, backbone: CausalLM, pool: KVPool, rows: list[StepRow], longest: int, memory: Any) -> None:
        device = backbone.lm.get_input_embeddings().weight.device
        self._numbers = _make_numbers(rows).to(device)
        packing = Packing.from_lengths([1] * len(rows)).to(device)

        def run_step() -> Tensor:
            ids, slots, positions, begins, lengths = self._numbers.unbind()
            with pool.place_slots(slots):
                hidden = backbone.compute_hidden_states(
                    backbone.embed_tokens(ids), positions, packing, cache=pool, keys=StepSpans(begins, lengths, longest)
                )
            return backbone.compute_logits(hidden)

        self._graph, self._logits = capture_cuda_graph(run_step, warm_ups=2, pool=memory)

    def replay_step(self, rows: list[StepRow]) -> Tensor:
        """(rows, vocabulary), which the next replay overwrites."""
        self._numbers.copy_(_make_numbers(rows), non_blocking=True)
        self._graph.replay()
        return self._logits


def _make_numbers(rows: list[StepRow]) -> Tensor:
    """(5, rows) int64."""
    return torch.tensor([*zip(*((r.token, r.slot, r.position, r.begin, r.length) for r in rows), strict=True)])
