"""What computing takes on this machine: a dozen small training passes, and the four rates that explain their times."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import numpy as np
import torch
from PIL import Image

from mmblocks.batch import Batch
from mmblocks.conversation import Conversation, Message, Text, Visual
from mmblocks.data.planning.cost import SampleCost
from mmblocks.data.planning.measure import SampleSizes
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import ConfigError
from mmblocks.model.onevision import OneVision

log = logging.getLogger(__name__)

WORST_FIT = 0.25
"""Typical relative error beyond which the four rates do not describe a machine."""


def calibrate_cost(
    model: OneVision,
    processor: Processor,
    *,
    tokens: int = 2048,
    repeats: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> SampleCost:
    """Measure a training pass of `model`, as it stands, on rows of up to about `tokens` tokens.

    The parts that require gradients learn; no gradients are left behind. The rows differ in their numbers of views, tokens,
    labels and in the lengths of their sequences; the quickest of `repeats` passes counts. Raises `ConfigError` when the
    times do not follow these four numbers (a busy machine, rows too small to be noticed).
    """
    tokens = min(tokens, int(0.9 * (processor.max_tokens or tokens)))
    batches = [
        collate([processor.make_training_sample(c) for c in row]).to(model.device)
        for row in _make_probe_rows(processor, tokens)
    ]
    for batch in batches:  # first passes compile, allocate and choose kernels
        _time_pass(model, batch, clock)
    seconds = [min(_time_pass(model, batch, clock) for _ in range(repeats)) for batch in batches]
    return fit_cost(
        SampleSizes.from_rows(
            (b.num_tokens, b.num_views, b.num_labelled, sum(n * n for n in b.packing.lengths)) for b in batches
        ),
        seconds,
    )


def fit_cost(sizes: SampleSizes, seconds: Sequence[float]) -> SampleCost:
    """The rates whose costs are nearest to measured times, relatively; none is negative.

    A part of the time that is the same for every row, as starting kernels is, belongs to no rate. Raises `ConfigError`
    when the typical error is above 25 %.
    """
    times = np.asarray(seconds, dtype=np.float64)
    table = np.column_stack([sizes.views, sizes.tokens, sizes.pairs, sizes.labels, np.ones(len(times))]).astype(float)
    rates = _solve_nonnegative(table / times[:, None], np.ones(len(times)))
    error = float(np.sqrt(np.mean((table @ rates / times - 1) ** 2)))
    log.info("calibration: %d passes explained within %.1f %%", len(times), 100 * error)
    if error > WORST_FIT or not rates[:4].any():
        raise ConfigError(
            f"{len(times)} measured passes do not follow views, tokens, pairs and labels (typical error {error:.0%}); "
            "measure on an idle machine and with longer rows, or use the estimated cost."
        )
    return SampleCost(*map(float, rates[:4]))


def _solve_nonnegative(table: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The best of the least-squares solutions over all choices of columns that have no negative weight."""
    columns = table.shape[1]
    scale = np.linalg.norm(table, axis=0)
    best, least = np.zeros(columns), float("inf")
    for chosen in (c for size in range(1, columns + 1) for c in combinations(range(columns), size)):
        kept = [c for c in chosen if scale[c] > 0]
        weights = np.zeros(columns)
        weights[kept] = np.linalg.lstsq(table[:, kept] / scale[kept], target, rcond=None)[0] / scale[kept]
        error = float(np.sum((table @ weights - target) ** 2))
        if (weights >= 0).all() and error < least:
            best, least = weights, error
    return best


# What is measured ---------------------------------------------------------------------------------------------------


def _make_probe_rows(processor: Processor, tokens: int) -> Iterator[list[Conversation]]:
    """Rows from which four rates follow: long and short, long questions and answers, one sequence and many, with views or
    without.
    """
    few, many = (len(processor.make_training_sample(_make_text_conversation(words, 1)).encoded) for words in (100, 200))
    per_word = max(0.1, (many - few) / 100)  # of a long text, so that what a template adds does not count
    for share in (1.0, 0.5, 0.25):
        words = max(8, int(share * tokens / per_word))
        yield [_make_text_conversation(words, 4)]
        yield [_make_text_conversation(4, words)]
        yield [_make_text_conversation(words // 8, 4)] * 8
        yield [_make_text_conversation(4, words // 8)] * 8
    image = Visual("image", Image.new("RGB", (processor.view_px.width, processor.view_px.height)))
    each = len(processor.make_training_sample(_make_text_conversation(4, 1, image)).encoded)
    for images in sorted({1, 2, max(2, tokens // each // 2), max(2, tokens // each)}):
        yield [_make_text_conversation(4, 1, image)] * images
        yield [_make_text_conversation(4, max(4, int(tokens / per_word / images)), image)] * images


def _make_text_conversation(question_words: int, answer_words: int, *visuals: Visual) -> Conversation:
    question, answer = (Text(" ".join(["red"] * max(1, n))) for n in (question_words, answer_words))
    messages = (Message("user", (*visuals, question)), Message("assistant", (answer,)))
    return Conversation(messages, "calibration")


def _time_pass(model: OneVision, batch: Batch, clock: Callable[[], float]) -> float:
    """Seconds of forward and backward; gradients that are there stay as they are."""
    _synchronize_device(model.device)
    begin = clock()
    kept = {name: p.grad for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = None
    loss = model(batch).loss
    if loss.requires_grad:  # text alone meets neither encoder nor projector
        loss.backward()
    for name, parameter in model.named_parameters():
        parameter.grad = kept[name]
    _synchronize_device(model.device)
    return clock() - begin


def _synchronize_device(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
