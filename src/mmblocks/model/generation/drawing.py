"""The next tokens of all sequences, drawn and kept on the device, so that no token waits for the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmblocks.model.generation.sampling import RandomNumbers, SamplingRule, TokenSampler
from mmblocks.model.generation.scoring import compute_log_probs
from mmblocks.ops.graphs import capture_cuda_graph
from mmblocks.reprs import format_by_shape

if TYPE_CHECKING:
    from mmblocks.backbones.causal_lm import CausalLM

EAGER_DRAWS = 2
"""The first tokens are drawn uncaptured: of the prompts' logits, which lie elsewhere, and once for what kernels set up."""


class TokenDrawer:
    """Draws the next token of every sequence by one rule into `next_ids` (sequences,) int64.

    slots: no answer has more tokens. Where logits are always in one place, drawing is replayed as a CUDA graph. There the
    processors see a row of all slots, of which those that are not written yet repeat the first token.
    """

    def __init__(self, backbone: CausalLM, rule: SamplingRule, next_ids: Tensor, slots: int) -> None:
        self.rule = rule
        self._next_ids = next_ids
        self._sampler = TokenSampler(rule, next_ids.device)
        with torch.inference_mode(False):  # these may be written in any mode
            self._written = next_ids.new_zeros(len(next_ids), slots)
            self._count = next_ids.new_zeros(1)
            self._numbers = next_ids.new_zeros(len(next_ids), dtype=torch.float64)
            self._log_probs = next_ids.new_zeros(len(next_ids), dtype=torch.float32)
        self._random: RandomNumbers | None = None
        self._num_drawn = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._graph_logits: Tensor | None = None

    def is_valid_for(self, rule: SamplingRule, slots: int) -> bool:
        """Whether it draws by this rule, for answers of as many slots."""
        return rule == self.rule and slots == self._written.shape[1]

    def begin_answers(self, random: RandomNumbers | None) -> None:
        """Draw first tokens next. random: None for a greedy rule."""
        self._random, self._num_drawn = random, 0
        self._count.zero_()

    def draw_tokens(self, logits: Tensor, *, in_place: bool) -> None:
        """logits: (sequences, vocabulary). in_place: whether they are always in this place, as a captured step's are."""
        if self._random is not None:
            self._numbers.copy_(self._random.draw(), non_blocking=True)
        if in_place and self.rule.is_capturable and self._num_drawn >= max(EAGER_DRAWS, self.rule.min_new_tokens):
            self._replay(logits)
        else:
            self._append_tokens(self._written[:, : self._num_drawn], logits)
        if self._num_drawn == 0:
            self._written.copy_(self._next_ids[:, None].expand_as(self._written))
        self._num_drawn += 1

    def copy_to_host(self) -> CopiedTokens:
        """The tokens drawn last, on their way to the host."""
        on_cuda = self._next_ids.is_cuda
        ids, log_probs = (
            torch.empty_like(x, device="cpu", pin_memory=on_cuda).copy_(x, non_blocking=True)
            for x in (self._next_ids, self._log_probs)
        )
        arrival = torch.cuda.Event() if on_cuda else None
        if arrival is not None:
            arrival.record(torch.cuda.current_stream(self._next_ids.device))
        return CopiedTokens(ids, log_probs, arrival)

    def _append_tokens(self, written: Tensor, logits: Tensor) -> None:
        tokens = self._sampler(written, logits, self._numbers)
        if self.rule.log_probs:
            self._log_probs.copy_(compute_log_probs(logits, tokens))
        self._written.index_copy_(1, self._count, tokens[:, None])
        self._next_ids.copy_(tokens)
        self._count += 1

    def _replay(self, logits: Tensor) -> None:
        if self._graph is None or self._graph_logits is not logits:
            self._graph, _ = capture_cuda_graph(lambda: self._append_tokens(self._written, logits))
            self._graph_logits = logits
        self._graph.replay()


@dataclass(frozen=True, slots=True)
class CopiedTokens:
    """Tokens of one step on the host: ids (sequences,) and their log-probabilities, once `arrival` has happened."""

    ids: Tensor
    log_probs: Tensor
    arrival: torch.cuda.Event | None
    __repr__ = format_by_shape

    def wait(self) -> None:
        """Return when they are there."""
        if self.arrival is not None:
            self.arrival.synchronize()
