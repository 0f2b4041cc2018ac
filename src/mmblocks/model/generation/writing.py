"""Prefill of prompts without padding, then decoding token by token."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor

from mmblocks.batch import Packing, RowIndex
from mmblocks.model.generation.decoding import Decoding, Streamer
from mmblocks.model.generation.drawing import CopiedTokens
from mmblocks.model.generation.results import AnswerTokens
from mmblocks.model.generation.sampling import RandomKey, RandomNumbers, SamplingRule
from mmblocks.model.generation.step import DecodingStep, reasons_against_capture
from mmblocks.model.generation.stopping import AnswerWriter, StopSequences
from mmblocks.model.generation.store import KVCache

if TYPE_CHECKING:
    from mmblocks.backbones.causal_lm import CausalLM

log = logging.getLogger(__name__)
STEPS_AHEAD = {"cuda": 2}
"""By device: so many steps are started before a token is looked at, so that a GPU never waits for the host. So many are
computed in vain when the last answer has ended."""
_logged_reasons: set[tuple[str, ...]] = set()
_uncapturable: WeakSet[Any] = WeakSet()


def prefill_prompts(backbone: CausalLM, store: KVCache, x: Tensor, lengths: Sequence[int]) -> Tensor:
    """(len(lengths), vocabulary): the logits of each sequence's next token, after `lengths[i]` further rows.

    x: (rows, dim), the new rows of all sequences end to end. They see what the cache holds of their own sequence. Sequences
    of the store behind those of `lengths` stay as they are.
    """
    ends = list(accumulate(lengths))
    with store.place_packed_rows(lengths, x.device) as positions:
        key_lengths = [before + new for before, new in zip(store.lengths, lengths, strict=False)]
        keys = Packing.from_lengths(key_lengths).to(x.device) if any(store.lengths) else None
        index = [end - 1 for end in ends]
        last = RowIndex(torch.tensor(index, device=x.device), (1,) * len(ends), tuple(index), (0, *ends))
        packing = Packing.from_lengths(lengths).to(x.device)
        hidden = backbone.compute_hidden_states(x, positions, packing, last, cache=store, keys=keys)
        return backbone.compute_logits(hidden)


def decode_answers(
    step: DecodingStep,
    logits: Tensor,
    decoding: Decoding,
    stop: StopSequences,
    *,
    keys: Sequence[RandomKey] | None = None,
    streamer: Streamer | None = None,
) -> list[AnswerTokens]:
    """The tokens of every answer. `logits` are those of `prefill_prompts`.

    keys: tell the random numbers of the sequences apart. Afterwards the step's cache holds each prompt and its answer,
    except for the token that was drawn last.
    """
    rule = SamplingRule.from_settings(step.backbone, decoding, stop.tokens)
    drawer, on_cuda = step.get_drawer(rule), logits.is_cuda
    drawer.begin_answers(
        RandomNumbers(decoding.seed, keys or [(0, 0)] * len(logits), pin_memory=on_cuda)
        if rule.temperature > 0
        else None
    )
    writers = [AnswerWriter(step.backbone, stop) for _ in logits]
    begins, copied = step.store.lengths, deque[CopiedTokens]()
    for number in range(decoding.max_new_tokens):
        drawer.draw_tokens(step() if number else logits, in_place=number > 0 and step.has_graph)
        copied.append(drawer.copy_to_host())
        if len(copied) > STEPS_AHEAD.get(logits.device.type, 0):
            _write_tokens(writers, copied.popleft(), rule, streamer)
        if not any(writer.is_unfinished for writer in writers):
            break
    while copied and any(writer.is_unfinished for writer in writers):
        _write_tokens(writers, copied.popleft(), rule, streamer)
    if streamer is not None:
        streamer.end()
    step.store.keep_lengths([begin + w.num_tokens - 1 for begin, w in zip(begins, writers, strict=True)])
    return [writer.to_tokens(log_probs=decoding.log_probs) for writer in writers]


def _write_tokens(
    writers: Sequence[AnswerWriter], tokens: CopiedTokens, rule: SamplingRule, streamer: Streamer | None
) -> None:
    tokens.wait()
    if streamer is not None:
        streamer.put(tokens.ids)
    log_probs = tokens.log_probs.tolist() if rule.log_probs else [None] * len(writers)
    for writer, token, log_prob in zip(writers, tokens.ids.tolist(), log_probs, strict=True):
        if writer.is_unfinished:
            writer.append_token(token, log_prob)


def prepare_step(step: DecodingStep, max_new_tokens: int) -> None:
    """Capture a step as a CUDA graph, or log once why it is not captured."""
    reasons = reasons_against_capture(step.backbone, step.ids.device, max_new_tokens)
    if not reasons and step.backbone.lm not in _uncapturable:
        try:
            step.capture_graph()
        except RuntimeError as cause:  # a family that waits for the host within a step
            _uncapturable.add(step.backbone.lm)
            reasons = [f"{step.backbone.config.model_type!r} cannot be captured: {str(cause).partition(chr(10))[0]}"]
        else:
            return
    step.release_graph()
    if (key := tuple(reasons)) not in _logged_reasons:
        _logged_reasons.add(key)
        log.info("generation: steps are not captured (%s)", "; ".join(reasons))
