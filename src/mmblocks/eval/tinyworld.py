"""How well a model answers TinyWorld's held-out questions, by question type."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from mmblocks.chat import answer
from mmblocks.conversation import Conversation
from mmblocks.data import tinyworld
from mmblocks.data.sample.positions import Visuals, arranged
from mmblocks.model.generate import Decoding
from mmblocks.model.onevision import OneVision

TASKS: tuple[tinyworld.Task, ...] = ("single", "multi", "video")


@dataclass(frozen=True, slots=True)
class Score:
    """Exact answers among those asked."""

    right: int
    asked: int

    @property
    def share(self) -> float:
        return self.right / self.asked if self.asked else 0.0

    def __add__(self, other: Score) -> Score:
        return Score(self.right + other.right, self.asked + other.asked)


Table = dict[str, dict[str, Score]]


def evaluate(
    model: OneVision,
    tasks: Sequence[tinyworld.Task] = TASKS,
    *,
    samples: int = 500,
    batch_size: int = 50,
    seed: int = 1,
    visuals: Visuals = "as_written",
) -> Table:
    """Scores by task and question type over `samples` held-out conversations of each task, answered greedily.

    visuals: where pictures stand in the questions (see `mmblocks.data.sample.positions.arranged`).
    """
    return {task: _evaluate_task(model, task, samples, batch_size, seed, visuals) for task in tasks}


def total(scores: dict[str, Score]) -> Score:
    """All question types of a task together."""
    return sum(scores.values(), Score(0, 0))


def as_markdown(table: Table) -> str:
    """The table as people read it: one row per question type, one in bold per task."""
    rows = ["| task | question | asked | exact |", "|---|---|---:|---:|"]
    for task, scores in table.items():
        rows += [_row(task, kind, score) for kind, score in sorted(scores.items())]
        rows.append(_row(f"**{task}**", "**all**", total(scores)))
    return "\n".join(rows)


def _row(task: str, kind: str, score: Score) -> str:
    return f"| {task} | {kind} | {score.asked} | {100 * score.share:.1f} % |"


def _evaluate_task(
    model: OneVision, task: tinyworld.Task, samples: int, batch_size: int, seed: int, visuals: Visuals
) -> dict[str, Score]:
    scores: dict[str, Score] = defaultdict(lambda: Score(0, 0))
    with tqdm(total=samples, desc=task, unit="question", leave=False) as bar:
        for records in _batches(task, samples, batch_size, seed):
            asked = [arranged(Conversation.of(r["messages"][:1], f"held-out {task}"), visuals) for r in records]
            answers = answer(model, asked, Decoding(max_new_tokens=32))
            for record, said in zip(records, answers, strict=True):
                scores[record["kind"]] += Score(int(said == _expected(record)), 1)
            bar.update(len(records))
    return dict(scores)


def _batches(task: tinyworld.Task, samples: int, size: int, seed: int) -> Iterator[list[dict]]:
    for first in range(0, samples, size):
        indices = range(first, min(first + size, samples))
        yield [tinyworld.record(task, i, seed=seed, split="heldout") for i in indices]


def _expected(record: dict) -> str:
    return record["messages"][1]["content"][0]["text"]
