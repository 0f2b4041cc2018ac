"""Log-probabilities of continuations: one run over prompts and continuations, each prompt once, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmblocks.batch import Packing, RowIndex
from mmblocks.model.generation.results import Score
from mmblocks.reprs import format_by_shape

if TYPE_CHECKING:
    from mmblocks.backbones.causal_lm import CausalLM

LOGIT_ROWS = 256
"""Rows that meet the vocabulary at once."""
Ids = Sequence[int]


@torch.no_grad()
def score_continuations(
    backbone: CausalLM, x: Tensor, lengths: Sequence[int], continuations: Sequence[Sequence[Ids]]
) -> list[list[Score]]:
    """The scores of several continuations, of at least one token each, for every prompt.

    x: (rows, dim), embedded prompts end to end, `lengths[i]` rows of prompt i; continuations[i]: those of prompt i.
    """
    layout = _ScoringLayout()
    for length, texts in zip(lengths, continuations, strict=True):
        layout.append_prompt(length, texts)
    hidden = _compute_output_rows(backbone, x, lengths, layout)
    log_probs, is_best = _compare_with_tokens(backbone, hidden, layout)
    scores: list[list[Score]] = []
    begin = 0
    for texts in continuations:
        scores.append([])
        for ids in texts:
            of_tokens = slice(begin, begin + len(ids))
            own = tuple(log_probs[of_tokens])
            scores[-1].append(Score(sum(own), len(ids), all(is_best[of_tokens]), own))
            begin += len(ids)
    return scores


def count_key_rows(prompt: int, continuations: Sequence[Ids]) -> int:
    """Rows of keys that a prompt of so many rows and its continuations attend to."""
    return prompt + sum(prompt + len(ids) - 1 for ids in continuations if len(ids) > 1)


class _ScoringLayout:
    """What is run: each prompt, and behind it, as sequences of their own, its continuations without their last tokens.

    lengths, key_lengths: of every sequence, its rows and the rows that it sees: those of its prompt and its own.
    key_rows: the numbers of the rows that sequences see, end to end. positions: of every row.
    inputs: for each prompt the ids of the rows behind it. outputs: the rows that predict something, of each sequence.
    predictions: for every token of every continuation the number of the output that predicts it. tokens: their ids.
    """

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.key_lengths: list[int] = []
        self.key_rows: list[range] = []
        self.positions: list[range] = []
        self.inputs: list[list[int]] = []
        self.outputs: list[range] = []
        self.predictions: list[int] = []
        self.tokens: list[int] = []
        self._num_rows = self._num_outputs = 0

    def append_prompt(self, length: int, continuations: Sequence[Ids]) -> None:
        """A prompt of `length` rows and the ids of its continuations."""
        prompt = self._append_sequence(range(0), length, num_outputs=1)
        last = self._num_outputs - 1
        self.inputs.append([])
        for ids in continuations:
            further = range(self._num_outputs, self._num_outputs + len(ids) - 1)
            self.predictions += [last, *further]
            self.tokens += ids
            if further:
                self.inputs[-1] += ids[:-1]
                self._append_sequence(prompt, len(further), num_outputs=len(further))

    def _append_sequence(self, prompt: range, length: int, *, num_outputs: int) -> range:
        """Rows that see those of a prompt and each other, the last of them outputs; returns their numbers."""
        rows = range(self._num_rows, self._num_rows + length)
        self.lengths.append(length)
        self.key_lengths.append(len(prompt) + length)
        self.key_rows += [prompt, rows]
        self.positions.append(range(len(prompt), len(prompt) + length))
        self.outputs.append(rows[length - num_outputs :])
        self._num_rows += length
        self._num_outputs += num_outputs
        return rows


@dataclass(frozen=True)
class _SharedKeys:
    """A `KeyValueCache` that keeps nothing: every sequence gets the keys and values of the rows that it sees.

    rows: (key rows,) int64, the numbers of these rows in what is run.
    """

    rows: Tensor
    __repr__ = format_by_shape

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        rows = self.rows.to(keys.device)
        return keys.index_select(2, rows), values.index_select(2, rows)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Under transformers' name: no token comes before those that are run."""
        return 0


def _compute_output_rows(backbone: CausalLM, x: Tensor, lengths: Sequence[int], layout: _ScoringLayout) -> Tensor:
    """(outputs, dim): the last hidden states of the rows that predict something."""
    device = x.device
    further = torch.tensor([i for ids in layout.inputs for i in ids], dtype=torch.int64, device=device)
    parts = x.split(list(lengths)), backbone.embed_tokens(further).to(x.dtype).split([len(i) for i in layout.inputs])
    rows = torch.cat([part for pair in zip(*parts, strict=True) for part in pair])
    outputs = [i for span in layout.outputs for i in span]
    ends = (0, *accumulate(layout.lengths))
    index = RowIndex(torch.tensor(outputs, device=device), tuple(map(len, layout.outputs)), tuple(outputs), ends)
    has_own_keys = len(layout.lengths) > len(lengths)
    return backbone.compute_hidden_states(
        rows,
        _to_tensor(layout.positions, device),
        Packing.from_lengths(layout.lengths).to(device),
        index,
        cache=_SharedKeys(_to_tensor(layout.key_rows, device)) if has_own_keys else None,
        keys=Packing.from_lengths(layout.key_lengths).to(device) if has_own_keys else None,
    )


def _to_tensor(ranges: Sequence[range], device: torch.device) -> Tensor:
    return torch.cat([torch.arange(r.start, r.stop) for r in ranges]).to(device)


def _compare_with_tokens(backbone: CausalLM, hidden: Tensor, layout: _ScoringLayout) -> tuple[list[float], list[bool]]:
    """For every token of every continuation its log-probability, and whether it is the most likely one."""
    log_probs: list[float] = []
    is_best: list[bool] = []
    for begin in range(0, len(layout.tokens), LOGIT_ROWS):
        part = slice(begin, begin + LOGIT_ROWS)
        outputs, tokens = (torch.tensor(i[part], device=hidden.device) for i in (layout.predictions, layout.tokens))
        logits = backbone.compute_logits(hidden[outputs])
        log_probs += compute_log_probs(logits, tokens).tolist()
        is_best += (logits.argmax(-1) == tokens).tolist()
    return log_probs, is_best


def compute_log_probs(logits: Tensor, tokens: Tensor) -> Tensor:
    """(n,) float32, the natural logarithm of the probability of each of `tokens` (n,); logits: (n, vocabulary)."""
    scores = logits.float()
    return scores.gather(1, tokens[:, None]).squeeze(1) - scores.logsumexp(-1)
