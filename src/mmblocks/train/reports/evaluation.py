"""What is measured while training: the loss on conversations that are not learned, and TinyWorld's exact answers.

Both are sums over packs that are the same for any number of processes, each of which runs its share of them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from mmblocks.batch import IGNORE, Batch
from mmblocks.conversation import Conversation, PreferencePair
from mmblocks.data import tinyworld
from mmblocks.data.mixing.fingerprints import Fingerprints, fingerprint_draws
from mmblocks.data.mixing.mixture import Draws, Mixture
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.encode import Targets, TooLong
from mmblocks.data.sample.processor import Processor, Sample
from mmblocks.errors import DataError
from mmblocks.eval.metrics.direction import is_lower_better
from mmblocks.model.modes import use_evaluation_mode
from mmblocks.model.onevision import OneVision
from mmblocks.train.distributed import World
from mmblocks.train.stages import Curriculum, Evaluation, Stage

log = logging.getLogger(__name__)

EVAL = "eval/"
LOSS, TINY = f"{EVAL}loss", f"{EVAL}tiny/"
TASKS: tuple[tinyworld.Task, ...] = ("single", "multi", "video")
TINY_SEED = 1
"""The seed of the questions that `mmblocks eval` asks."""
PACK_TOKENS, PACK_VIEWS = 4096, 64
"""Most tokens and views of a forward pass where the stage does not say."""


def is_due(evaluate: Evaluation | None, done: int, steps: int) -> bool:
    """Whether to measure after `done` of a stage's `steps`."""
    return evaluate is not None and (done % evaluate.every == 0 or done == steps)


@torch.no_grad()
def evaluate_model(
    model: OneVision, curriculum: Curriculum, stage: Stage, processor: Processor, world: World | None = None
) -> dict[str, float]:
    """Held-out loss per labelled token ("eval/loss") and shares of exact answers ("eval/tiny/single", ...).

    The same conversations every time, encoded as the stage's `processor` does; of a pair, the preferred answer.
    TinyWorld questions are asked in the model's own chat template, the first questions of `mmblocks eval`. Every process calls it
    and gets the same figures. Empty where `curriculum.evaluate` is None.
    """
    evaluate = curriculum.evaluate
    if evaluate is None:
        return {}
    world = world or World(0, 1, model.device)
    run = curriculum.run
    work = _Evaluator(model, world, stage, skips=run.broken == "skip")
    processor = replace(processor, features=None)  # those are kept for what is learned
    with use_evaluation_mode(model):
        measured = work.measure_loss(evaluate, processor, run.seed) if evaluate.data else {}
        return measured | {
            f"{TINY}{task}": work.measure_exact_answers(task, evaluate.tiny) for task in TASKS if evaluate.tiny
        }


def is_better(measured: Mapping[str, float], best: Mapping[str, float] | None) -> bool:
    """Whether these metrics are better than the best so far: by the held-out loss; where no data is held out, by the first
    number of the first task; without tasks, by the mean share of exact answers. Ties keep the earlier weights; what is not
    finite is never better.
    """
    return math.isfinite(_compute_minimized_score(measured)) and (
        best is None or _compute_minimized_score(measured) < _compute_minimized_score(best)
    )


def _compute_minimized_score(measured: Mapping[str, float]) -> float:
    if LOSS in measured:
        return measured[LOSS]
    shares = {name: value for name, value in measured.items() if name.startswith(TINY)}
    for name, value in measured.items():
        if name.startswith(EVAL) and name not in shares:
            return value if is_lower_better(name) else -value
    return -sum(shares.values()) / max(len(shares), 1)


def format_measurements(measured: Mapping[str, float]) -> str:
    """In one line, for the terminal: "loss 2.345, pope/accuracy 51.20"."""
    return ", ".join(f"{name.removeprefix(EVAL)} {value:.4g}" for name, value in measured.items())


def fingerprint_held_out(evaluate: Evaluation, seed: int, before: Fingerprints | None) -> tuple[Mixture, Fingerprints]:
    """The held-out conversations, and their fingerprints. before: those of an earlier start."""
    held_out = _HeldOut.from_evaluation(evaluate, seed)
    return held_out.mixture, fingerprint_draws(held_out.mixture, held_out.draws, before=before)


@dataclass(frozen=True, slots=True)
class _Evaluator:
    """A model, and how its processes share packs."""

    model: OneVision
    world: World
    stage: Stage
    skips: bool

    def measure_loss(self, evaluate: Evaluation, processor: Processor, seed: int) -> dict[str, float]:
        conversations = _HeldOut.from_evaluation(evaluate, seed)
        total, rows = 0.0, 0
        for batch in self._make_batches(_HeldOutEncoder(conversations, processor, self.stage.targets, self.skips)):
            summed = self.model(batch)
            total, rows = total + float(summed.total), rows + summed.num_terms
        total, rows = self.world.sum_over_processes(total, rows)
        if rows == 0:
            raise DataError("evaluate.data: none of the held-out conversations can be read; nothing was measured.")
        return {LOSS: total / rows}

    def measure_exact_answers(self, task: tinyworld.Task, questions: int) -> float:
        """An answer is exact when every token of it, its end included, is what the model would write after the ones
        before: what answering greedily gives, in one forward pass.
        """
        records = (tinyworld.make_record(task, n, seed=TINY_SEED, split="heldout") for n in range(questions))
        conversations = [Conversation.from_messages(record["messages"][:2], f"held-out {task}") for record in records]
        right = 0
        for batch in self._make_batches(
            _HeldOutEncoder(conversations, Processor.from_model(self.model), "answers", skips=False)
        ):
            labelled = (batch.targets != IGNORE).split(batch.packing.lengths)
            hits = self.model.compute_row_hits(batch).cpu().split([int(part.sum()) for part in labelled])
            right += sum(bool(answer.all()) for answer in hits if len(answer))
        return self.world.sum_over_processes(right)[0] / questions

    def _make_batches(self, encoding: _HeldOutEncoder) -> Iterator[Batch]:
        """This process' packs, as many on each process."""
        packs = list(encoding.list_packs(self.stage.pack_tokens or PACK_TOKENS, self.stage.pack_views or PACK_VIEWS))
        size, view_px = self.world.size, self.model.encoder.view_px
        for first in range(0, len(packs), size):
            mine = packs[first + self.world.rank : first + self.world.rank + 1]
            samples = [sample for pack in mine for sample in encoding.read_samples(pack)]
            batch = collate(samples) if samples else Batch.make_empty(view_px)
            yield (batch if self.world.is_single_process else batch.with_blank_view(view_px)).to(self.model.device)


@dataclass(frozen=True, slots=True)
class _HeldOutEncoder:
    """Conversations by number, and how they become samples. skips: leave out those that cannot be read."""

    conversations: Sequence[Conversation] | _HeldOut
    processor: Processor
    targets: Targets
    skips: bool

    def list_packs(self, max_tokens: int, max_views: int) -> Iterator[list[int]]:
        """Numbers in their order, as many together as the caps allow; from headers alone, so the same everywhere."""
        pack: list[int] = []
        tokens = views = 0
        for number in range(len(self.conversations)):
            with self._skip_unreadable():
                samples = self.processor.make_item_runs(self.conversations[number], self.targets)
                more_tokens = sum(map(len, samples))
                more_views = sum(len(routed.plan.unique_views) for one in samples for routed in one.plans)
                if pack and (tokens + more_tokens > max_tokens or views + more_views > max_views):
                    yield pack
                    pack, tokens, views = [], 0, 0
                pack.append(number)
                tokens, views = tokens + more_tokens, views + more_views
        if pack:
            yield pack

    def read_samples(self, pack: Sequence[int]) -> list[Sample]:
        read = []
        for number in pack:
            with self._skip_unreadable():
                read += self.processor.make_training_samples(self.conversations[number], self.targets)
        return read

    @contextmanager
    def _skip_unreadable(self) -> Iterator[None]:
        try:
            yield
        except DataError as fault:
            if not (self.skips or (isinstance(fault, TooLong) and self.processor.overlong == "skip")):
                raise
            log.warning("evaluation leaves out a record: %s", fault)


@dataclass(frozen=True, slots=True)
class _HeldOut:
    """Held-out conversations, read on access."""

    mixture: Mixture
    draws: Draws

    @classmethod
    def from_evaluation(cls, evaluate: Evaluation, seed: int) -> _HeldOut:
        """Drawn by weight, or all where there are no more than `samples`."""
        mixture = Mixture.from_entries(evaluate.data)
        few = len(mixture) <= evaluate.samples
        return cls(mixture, mixture.draw_all() if few else mixture.draw_by_weight(evaluate.samples, (seed,)))

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, number: int) -> Conversation:
        item = self.mixture[self.draws[number]]
        return item.chosen if isinstance(item, PreferencePair) else item
