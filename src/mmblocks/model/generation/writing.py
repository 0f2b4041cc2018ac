"""Prompts read without padding, then answers written token by token."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import accumulate
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from mmblocks.batch import Packing, RowIndex
from mmblocks.model.generation.decoding import Decoding, EndDetector, StopSequences, TokenSampler, cut_at_stop
from mmblocks.model.generation.step import DecodingStep, reasons_against_capture
from mmblocks.model.generation.store import KVCache

log = logging.getLogger(__name__)
_logged_reasons: set[tuple[str, ...]] = set()
_uncapturable: WeakSet[Any] = WeakSet()


def prefill_prompts(backbone: Any, store: KVCache, x: Tensor, lengths: Sequence[int]) -> Tensor:
    """(sequences, vocabulary): what each sequence goes on with, after `lengths[i]` further rows.

    x: (rows, dim), the new rows of all sequences end to end. They see what the store holds of their own sequence.
    """
    ends = list(accumulate(lengths))
    with store.place_packed_rows(lengths, x.device) as positions:
        held = [b + n for b, n in zip(store.lengths, lengths, strict=True)]
        keys = Packing.from_lengths(held).to(x.device) if any(store.lengths) else None
        last = RowIndex(torch.tensor(ends, device=x.device) - 1, (1,) * len(ends))
        packing = Packing.from_lengths(lengths).to(x.device)
        hidden = backbone.compute_hidden_states(x, positions, packing, last, cache=store, keys=keys)
        logits = backbone.compute_logits(hidden)
    return logits


def decode_answers(
    step: DecodingStep, logits: Tensor, decoding: Decoding, stop: StopSequences, *, streamer: Any = None
) -> list[list[int]]:
    """The tokens of every answer, without the one that ended it. `logits` are those of `read`.

    The step's store then holds each prompt and its answer, but for the token that was drawn last.
    """
    with torch.random.fork_rng(enabled=decoding.seed is not None):
        if decoding.seed is not None:
            torch.manual_seed(decoding.seed)
        return _decode_tokens(step, logits, decoding, EndDetector(step.backbone, stop, logits.device), streamer)


def _decode_tokens(
    step: DecodingStep, logits: Tensor, decoding: Decoding, ending: EndDetector, streamer: Any
) -> list[list[int]]:
    choose = TokenSampler(step.backbone, decoding)
    written = torch.empty(len(logits), 0, dtype=torch.int64, device=logits.device)
    going, counts = torch.ones(len(logits), dtype=torch.bool, device=logits.device), [0] * len(logits)
    goes = going.tolist()
    for _ in range(decoding.max_new_tokens):
        if written.shape[1]:
            logits = step(written[:, -1], goes)
        chosen = torch.where(going, choose(written, logits), ending.padding)
        written = torch.cat([written, chosen[:, None]], dim=1)
        counts = [n + one for n, one in zip(counts, goes, strict=True)]
        if streamer is not None:
            streamer.put(chosen.cpu())
        going = going & ~ending(written)
        goes = going.tolist()
        if not any(goes):
            break
    if streamer is not None:
        streamer.end()
    return [cut_at_stop(row[:n], ending.tokens) for row, n in zip(written.tolist(), counts, strict=True)]


def prepare_step(step: DecodingStep, max_new_tokens: int) -> None:
    """Capture a step on CUDA, or say once why it is run as it is."""
    reasons = reasons_against_capture(step.backbone, step.ids.device, max_new_tokens)
    if not reasons and step.backbone.lm not in _uncapturable:
        try:
            step.capture_graph()
        except RuntimeError as cause:  # a family that asks the host in the middle of a step
            _uncapturable.add(step.backbone.lm)
            reasons = [f"{step.backbone.config.model_type!r} cannot be captured: {str(cause).partition(chr(10))[0]}"]
        else:
            return
    step.release_graph()
    if (told := tuple(reasons)) not in _logged_reasons:
        _logged_reasons.add(told)
        log.info("generation: steps are not captured (%s)", "; ".join(reasons))
