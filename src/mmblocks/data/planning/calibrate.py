"""What computing takes on this machine: a dozen small training passes, and the four rates that explain their times."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import numpy as np
import torch
from PIL import Image

from mmblocks.batch import Batch
from mmblocks.conversation import Conversation, Message, Text, Visual
from mmblocks.data.planning.cost import Cost
from mmblocks.data.planning.measure import Sizes
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import ConfigError
from mmblocks.model.onevision import OneVision

log = logging.getLogger(__name__)

WORST_FIT = 0.25
"""Typical relative error beyond which the four rates do not describe a machine."""


def calibrate(
    model: OneVision,
    processor: Processor,
    *,
    tokens: int = 2048,
    repeats: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> Cost:
    """Measure a training pass of `model`, as it stands, on rows of up to about `tokens` tokens.

    What learns is what asks for gradients; none are left behind. The rows differ in their numbers of views, tokens,
    labels and in the lengths of their sequences; the quickest of `repeats` passes counts. Raises `ConfigError` when the
    times do not follow these four numbers (a busy machine, rows too small to be noticed).
    """
    tokens = min(tokens, int(0.9 * (processor.max_tokens or tokens)))
    batches = [
        collate([processor.training_sample(c) for c in row]).to(model.device) for row in _rows(processor, tokens)
    ]
    for batch in batches:  # first passes compile, allocate and choose kernels
        _pass(model, batch)
    seconds = [min(_timed(model, batch, clock) for _ in range(repeats)) for batch in batches]
    return fitted(Sizes.of(map(_size, batches)), seconds)


def fitted(sizes: Sizes, seconds: Sequence[float]) -> Cost:
    """The rates whose costs are nearest to measured times, relatively; none is negative.

    A part of the time that is the same for every row, as starting kernels is, belongs to no rate. Raises `ConfigError`
    when the typical error is above 25 %.
    """
    times = np.asarray(seconds, dtype=np.float64)
    table = np.column_stack([sizes.views, sizes.tokens, sizes.pairs, sizes.labels, np.ones(len(times))]).astype(float)
    rates = _nonnegative_least_squares(table / times[:, None], np.ones(len(times)))
    error = float(np.sqrt(np.mean((table @ rates / times - 1) ** 2)))
    log.info("calibration: %d passes explained within %.1f %%", len(times), 100 * error)
    if error > WORST_FIT or not rates[:4].any():
        raise ConfigError(
            f"{len(times)} measured passes do not follow views, tokens, pairs and labels (typical error {error:.0%}); "
            "measure on an idle machine and with longer rows, or use the estimated cost."
        )
    return Cost(*map(float, rates[:4]))


def _nonnegative_least_squares(table: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The best of the least-squares solutions over all choices of columns that have no negative weight."""
    columns = table.shape[1]
    scale = np.linalg.norm(table, axis=0)
    best, least = np.zeros(columns), float("inf")
    for chosen in (c for size in range(1, columns + 1) for c in combinations(range(columns), size)):
        kept = [c for c in chosen if scale[c] > 0]
        weights = np.zeros(columns)
        weights[kept] = np.linalg.lstsq(table[:, kept] / scale[kept], wanted, rcond=None)[0] / scale[kept]
        error = float(np.sum((table @ weights - wanted) ** 2))
        if (weights >= 0).all() and error < least:
            best, least = weights, error
    return best


# What is measured ---------------------------------------------------------------------------------------------------


def _rows(processor: Processor, tokens: int) -> Iterator[list[Conversation]]:
    """Rows that tell the four rates apart: long and short, asked and answered, one sequence and many, with views or not."""
    per_word = _tokens_per_word(processor)
    for share in (1.0, 0.5, 0.25):
        words = max(8, int(share * tokens / per_word))
        yield [_text(words, 4)]
        yield [_text(4, words)]
        yield [_text(words // 8, 4)] * 8
        yield [_text(4, words // 8)] * 8
    picture = Visual("image", Image.new("RGB", (processor.view_px.width, processor.view_px.height)))
    each = len(processor.training_sample(_shown(picture, 1)).encoded)
    for pictures in sorted({1, 2, max(2, tokens // each // 2), max(2, tokens // each)}):
        yield [_shown(picture, 1)] * pictures
        yield [_shown(picture, max(4, int(tokens / per_word / pictures)))] * pictures


def _tokens_per_word(processor: Processor) -> float:
    """Of a long text, so that what a template adds does not count."""
    few, many = (len(processor.training_sample(_text(words, 1)).encoded) for words in (100, 200))
    return max(0.1, (many - few) / 100)


def _text(asked: int, answered: int) -> Conversation:
    return _conversation((Text(_words(asked)),), answered)


def _shown(picture: Visual, answered: int) -> Conversation:
    return _conversation((picture, Text(_words(4))), answered)


def _conversation(question: tuple[Text | Visual, ...], answered: int) -> Conversation:
    answer = Message("assistant", (Text(_words(answered)),))
    return Conversation((Message("user", question), answer), "calibration")


def _words(number: int) -> str:
    return " ".join(["red"] * max(1, number))


def _size(batch: Batch) -> tuple[int, int, int, int]:
    return batch.num_tokens, batch.num_views, batch.num_labelled, sum(n * n for n in batch.packing.lengths)


def _timed(model: OneVision, batch: Batch, clock: Callable[[], float]) -> float:
    _wait(model.device)
    begin = clock()
    _pass(model, batch)
    _wait(model.device)
    return clock() - begin


def _pass(model: OneVision, batch: Batch) -> None:
    """Forward and backward; gradients that are there stay as they are."""
    kept = {name: p.grad for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = None
    loss = model(batch).mean
    if loss.requires_grad:  # text alone meets neither encoder nor projector
        loss.backward()
    for name, parameter in model.named_parameters():
        parameter.grad = kept[name]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
