"""Continuous batching: sequences that join and leave between steps, each step one packed run of the language model.

A step runs the next row of every sequence that writes its answer, and rows of prompts up to a limit. Its results differ from
those of a sequence alone in the order in which a matrix product sums, at most.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmblocks.batch import Packing, RowIndex
from mmblocks.model.generation.batch_graphs import BatchGraphs, StepRow
from mmblocks.model.generation.decoding import Decoding
from mmblocks.model.generation.pool import KVPool, list_numbers
from mmblocks.model.generation.results import DrawnToken
from mmblocks.model.generation.sampling import RandomKey, RandomNumbers, SamplingRule, TokenSampler
from mmblocks.model.generation.scoring import compute_log_probs
from mmblocks.model.generation.stopping import AnswerWriter, StopSequences
from mmblocks.ops.attention.spans import SeenSpans

if TYPE_CHECKING:
    from mmblocks.backbones.causal_lm import CausalLM

log = logging.getLogger(__name__)
MAX_SAMPLERS = 64
ALONE = 4
"""So many times the rows of prompts are run in a step while nobody writes."""


class SequenceState:
    """One answer while it is computed: the rows of its prompt that are not run yet, its span, and what it has written.

    x: (rows, dim), the rows behind the first `kept`, whose keys and values are in the span. siblings: other answers to the
    same prompt, which is run once; their spans get its keys and values. top_log_probs: so many of the likeliest tokens are
    given with each token that is drawn.
    """

    def __init__(
        self,
        backbone: CausalLM,
        x: Tensor | None,
        span: range,
        decoding: Decoding,
        stop: StopSequences,
        *,
        kept: int = 0,
        random_key: RandomKey = (0, 0),
        top_log_probs: int = 0,
        siblings: Sequence[SequenceState] = (),
    ) -> None:
        self.span, self.length = span, kept
        self.siblings = tuple(siblings)
        self.decoding, self.top_log_probs = decoding, top_log_probs
        self.rule = _share_rule(SamplingRule.from_settings(backbone, decoding, stop.tokens))
        self.writer = AnswerWriter(backbone, stop)
        self.drawn: list[int] = []
        self._random = RandomNumbers(decoding.seed, [random_key]) if self.rule.temperature > 0 else None
        self._pending = x

    @property
    def is_finished(self) -> bool:
        return not self.writer.is_unfinished or len(self.drawn) == self.decoding.max_new_tokens

    @property
    def num_pending(self) -> int:
        """Rows to run before a token can be drawn."""
        return 1 if self._pending is None else len(self._pending)

    def get_prompt_rows(self, rows: int) -> Tensor:
        """(rows, dim) of the prompt, to be run next."""
        assert self._pending is not None
        return self._pending[:rows]

    def advance(self, rows: int) -> None:
        """So many rows have been run."""
        self.length += rows
        if self._pending is not None:
            self._pending = self._pending[rows:] if rows < len(self._pending) else None

    def copy_prompt(self, pool: KVPool, sibling: SequenceState) -> None:
        """Take the keys and values of a sibling that has run the prompt."""
        pool.copy_rows(sibling.span, self.span, sibling.length)
        self.length = sibling.length

    def draw_number(self) -> float:
        """A random number for the next token, at least 0 and below 1."""
        assert self._random is not None, "greedy rules draw none"
        return float(self._random.draw())

    def append_token(self, token: DrawnToken) -> None:
        """Take the token that was drawn."""
        self.drawn.append(token.id)
        self.writer.append_token(token.id, token.log_prob)


@lru_cache(maxsize=256)
def _share_rule(rule: SamplingRule) -> SamplingRule:
    """One object for equal rules: sequences of one rule are found by it in every step."""
    return rule


_Rows = tuple[SequenceState, int]
"""A sequence and how many of its next rows are run."""


@dataclass(slots=True)
class StepOutcome:
    """What a step did. tokens: drawn ones, with their sequences. failures: sequences that could not be run, and why."""

    tokens: list[tuple[SequenceState, DrawnToken]] = field(default_factory=list)
    failures: list[tuple[SequenceState, Exception]] = field(default_factory=list)


class Batcher:
    """Runs sequences together over one pool of keys and values.

    step_tokens: rows of prompts in one step, so that long prompts do not delay those who write.
    """

    def __init__(self, backbone: CausalLM, pool: KVPool, step_tokens: int) -> None:
        self.backbone, self.pool, self.step_tokens = backbone, pool, step_tokens
        self.running: list[SequenceState] = []
        self._sampler = _Sampler()
        self._device = backbone.lm.get_input_embeddings().weight.device
        self._graphs = BatchGraphs(backbone, pool)

    @torch.no_grad()
    def step(self) -> StepOutcome:
        """One run of the model. Sequences that have ended or failed are not running afterwards.

        Where a run raises an error, each sequence is run alone, so that one that cannot be run ends no other.
        """
        outcome = StepOutcome()
        writing, reading = self._choose_rows()
        captured = self._replay_step([sequence for sequence, _ in writing])
        for chosen in [[*writing, *reading]] if captured is None else [reading]:
            try:
                computed = [(chosen, self._compute_logits(chosen))] if chosen else []
            except Exception as cause:  # whatever a kernel or a family raises
                if len(chosen) > 1:
                    log.warning("generation: a step of %s sequences is repeated one by one: %r", len(chosen), cause)
                computed = [*self._compute_one_by_one(chosen, outcome)]
            for pairs, logits in computed:
                self._advance(pairs, logits, outcome)
        if captured is not None:
            self._advance(writing, captured, outcome)
        failed = {id(sequence) for sequence, _ in outcome.failures}
        self.running = [s for s in self.running if not s.is_finished and id(s) not in failed]
        return outcome

    def drop_graphs(self) -> None:
        """Forget captured steps: weights lie elsewhere."""
        self._graphs.drop_graphs()

    def _choose_rows(self) -> tuple[list[_Rows], list[_Rows]]:
        """The sequences of the next step and their rows: one behind what each has written, and of prompts up to the limit."""
        writing = [(sequence, 1) for sequence in self.running if sequence.drawn]
        reading, left = list[_Rows](), self.step_tokens if writing else ALONE * self.step_tokens
        for sequence in self.running:
            if not sequence.drawn and left:
                count = min(sequence.num_pending, left)
                left -= count
                reading.append((sequence, count))
        return writing, reading

    def _replay_step(self, sequences: Sequence[SequenceState]) -> Tensor | None:
        """The logits of those that write, from a captured step where there is one."""
        if not sequences:
            return None
        rows = [
            StepRow(one.drawn[-1], one.span.start + one.length, one.length, one.span.start, one.length + 1)
            for one in sequences
        ]
        return self._graphs.compute_logits(rows, max(len(one.span) for one in sequences))

    def _compute_one_by_one(
        self, chosen: Sequence[_Rows], outcome: StepOutcome
    ) -> Iterator[tuple[Sequence[_Rows], Tensor | None]]:
        for pair in chosen:
            try:
                yield [pair], self._compute_logits([pair])
            except Exception as cause:
                outcome.failures.append((pair[0], cause))

    def _advance(self, chosen: Sequence[_Rows], logits: Tensor | None, outcome: StepOutcome) -> None:
        """Rows have been run: draw a token behind those that are the last of a prompt or answer."""
        writing = [sequence for sequence, count in chosen if count == sequence.num_pending]
        for sequence, count in chosen:
            sequence.advance(count)
        if logits is None:
            return
        rows = list(range(len(writing)))
        for row, sequence in enumerate(tuple(writing)):
            if not sequence.drawn:
                for sibling in sequence.siblings:
                    sibling.copy_prompt(self.pool, sequence)
                writing += sequence.siblings
                self.running += sequence.siblings
                rows += [row] * len(sequence.siblings)
        self._sampler.append_tokens(writing, logits if len(rows) == len(logits) else logits[rows], outcome)

    def _compute_logits(self, chosen: Sequence[_Rows]) -> Tensor | None:
        """(writing sequences, vocabulary) of the next tokens; None where no prompt ends here and nobody writes."""
        counts = [count for _, count in chosen]
        x = self._embed_rows(chosen)
        begins = [sequence.length for sequence, _ in chosen]
        spans = [sequence.span for sequence, _ in chosen]
        lengths = [b + n for b, n in zip(begins, counts, strict=True)]
        positions = list_numbers(map(range, begins, lengths)).to(x.device)
        seen = SeenSpans(counts, [span.start for span in spans], lengths)
        last = _find_last_rows([count == sequence.num_pending for sequence, count in chosen], counts, x.device)
        new = [span[begin:end] for span, begin, end in zip(spans, begins, lengths, strict=True)]
        with self.pool.place_rows(new, x.device):
            packing = Packing.from_lengths(counts).to(x.device)
            hidden = self.backbone.compute_hidden_states(x, positions, packing, last, cache=self.pool, keys=seen)
        return self.backbone.compute_logits(hidden) if len(hidden) else None

    def _embed_rows(self, chosen: Sequence[_Rows]) -> Tensor:
        """(rows, dim): of the tokens that were drawn last, then of prompts."""
        last = [sequence.drawn[-1] for sequence, _ in chosen if sequence.drawn]
        prompts = [sequence.get_prompt_rows(count) for sequence, count in chosen if not sequence.drawn]
        if not last:
            return prompts[0] if len(prompts) == 1 else torch.cat(prompts)
        x = self.backbone.embed_tokens(torch.tensor(last, device=self._device))
        return torch.cat([x, *prompts]) if prompts else x


def _find_last_rows(wanted: Sequence[bool], counts: Sequence[int], device: torch.device) -> RowIndex:
    """The last row of each wanted sequence."""
    ends = (0, *accumulate(counts))
    index = tuple(end - 1 for end, is_wanted in zip(ends[1:], wanted, strict=True) if is_wanted)
    return RowIndex(torch.tensor(index, dtype=torch.int64, device=device), tuple(map(int, wanted)), index, ends)


class _Sampler:
    """Draws the next tokens of sequences, those of one rule together."""

    def __init__(self) -> None:
        self._samplers: OrderedDict[SamplingRule, TokenSampler] = OrderedDict()

    def append_tokens(self, sequences: Sequence[SequenceState], logits: Tensor, outcome: StepOutcome) -> None:
        """logits: (sequences, vocabulary)."""
        groups: dict[tuple[int, int], list[int]] = {}
        for row, sequence in enumerate(sequences):
            num_written = len(sequence.drawn) if sequence.rule.reads_written else 0
            groups.setdefault((id(sequence.rule), num_written), []).append(row)
        for (_, num_written), rows in groups.items():
            own = [sequences[row] for row in rows]
            chosen = logits if len(rows) == len(logits) else logits[rows]
            try:
                tokens = self._draw_tokens(own[0].rule, own, num_written, chosen)
            except Exception as cause:
                outcome.failures += [(sequence, cause) for sequence in own]
                continue
            for sequence, token in zip(own, tokens, strict=True):
                sequence.append_token(token)
                outcome.tokens.append((sequence, token))

    def _draw_tokens(
        self, rule: SamplingRule, sequences: Sequence[SequenceState], num_written: int, logits: Tensor
    ) -> list[DrawnToken]:
        device = logits.device
        written = torch.tensor([s.drawn[:num_written] for s in sequences], dtype=torch.int64, device=device)
        numbers = torch.zeros(0)
        if rule.temperature > 0:
            numbers = torch.tensor([s.draw_number() for s in sequences], dtype=torch.float64, device=device)
        ids = self._get_sampler(rule, device)(written.view(len(sequences), -1), logits, numbers)
        if not rule.log_probs and not any(s.top_log_probs for s in sequences):
            return list(map(DrawnToken, ids.tolist()))
        log_probs = compute_log_probs(logits, ids).tolist()
        return [
            DrawnToken(token, log_prob, _find_likeliest(row, sequence.top_log_probs))
            for token, log_prob, row, sequence in zip(ids.tolist(), log_probs, logits, sequences, strict=True)
        ]

    def _get_sampler(self, rule: SamplingRule, device: torch.device) -> TokenSampler:
        if rule not in self._samplers:
            self._samplers[rule] = TokenSampler(rule, device)
            if len(self._samplers) > MAX_SAMPLERS:
                self._samplers.popitem(last=False)
        self._samplers.move_to_end(rule)
        return self._samplers[rule]


def _find_likeliest(logits: Tensor, number: int) -> tuple[tuple[int, float], ...]:
    """The likeliest tokens of a row (vocabulary,) with their log-probabilities."""
    if not number:
        return ()
    values, ids = logits.float().log_softmax(-1).topk(min(number, len(logits)))
    return tuple(zip(ids.tolist(), values.tolist(), strict=True))
