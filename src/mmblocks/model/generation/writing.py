"""Prefill of prompts without padding, then decoding token by token."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor

from mmblocks.batch import Packing, RowIndex
from mmblocks.model.generation.decoding import Decoding, Streamer
from mmblocks.model.generation.results import AnswerTokens
from mmblocks.model.generation.sampling import RandomKey, TokenSampler
from mmblocks.model.generation.scoring import compute_log_probs
from mmblocks.model.generation.step import DecodingStep, reasons_against_capture
from mmblocks.model.generation.stopping import AnswerWriter, StopSequences
from mmblocks.model.generation.store import KVCache

if TYPE_CHECKING:
    from mmblocks.backbones.causal_lm import CausalLM

log = logging.getLogger(__name__)
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
    sample = TokenSampler(step.backbone, decoding, stop.tokens, keys or [(0, 0)] * len(logits))
    writers = [AnswerWriter(step.backbone, stop) for _ in logits]
    written = torch.empty(len(logits), 0, dtype=torch.int64, device=logits.device)
    for _ in range(decoding.max_new_tokens):
        if written.shape[1]:
            logits = step(written[:, -1], [writer.is_unfinished for writer in writers])
        tokens = sample(written, logits)
        written = torch.cat([written, tokens[:, None]], dim=1)
        log_probs = compute_log_probs(logits, tokens).tolist() if decoding.log_probs else [None] * len(writers)
        if streamer is not None:
            streamer.put(tokens.cpu())
        for writer, token, log_prob in zip(writers, tokens.tolist(), log_probs, strict=True):
            if writer.is_unfinished:
                writer.append_token(token, log_prob)
        if not any(writer.is_unfinished for writer in writers):
            break
    if streamer is not None:
        streamer.end()
    return [writer.to_tokens(log_probs=decoding.log_probs) for writer in writers]


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
