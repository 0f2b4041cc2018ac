"""How well a model answers TinyWorld's held-out questions, by question type."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from mmblocks.chat import answer
from mmblocks.conversation import Conversation
from mmblocks.data import tinyworld
from mmblocks.data.sample.visual_placement import VisualOrder, place_visuals
from mmblocks.model.generate import Decoding
from mmblocks.model.onevision import OneVision

TASKS: tuple[tinyworld.Task, ...] = ("single", "multi", "video")


@dataclass(frozen=True, slots=True)
class ExactScore:
    """Exact answers among those asked."""

    right: int
    asked: int

    @property
    def exact_share(self) -> float:
        return self.right / self.asked if self.asked else 0.0

    def __add__(self, other: ExactScore) -> ExactScore:
        return ExactScore(self.right + other.right, self.asked + other.asked)


ScoreTable = dict[str, dict[str, ExactScore]]


def evaluate_tinyworld(
    model: OneVision,
    tasks: Sequence[tinyworld.Task] = TASKS,
    *,
    samples: int = 500,
    batch_size: int = 50,
    seed: int = 1,
    visuals: VisualOrder = "as_written",
) -> ScoreTable:
    """Scores by task and question type over `samples` held-out conversations of each task, answered greedily.

    visuals: where images stand in the questions (see `mmblocks.data.sample.visual_placement.arranged`).
    """
    return {task: _evaluate_task(model, task, samples, batch_size, seed, visuals) for task in tasks}


def sum_scores(scores: dict[str, ExactScore]) -> ExactScore:
    """All question types of a task together."""
    return sum(scores.values(), ExactScore(0, 0))


def format_scores(table: ScoreTable) -> str:
    """The table as people read it: one row per question type, one in bold per task."""
    rows = ["| task | question | asked | exact |", "|---|---|---:|---:|"]
    for task, scores in table.items():
        rows += [_format_row(task, kind, score) for kind, score in sorted(scores.items())]
        rows.append(_format_row(f"**{task}**", "**all**", sum_scores(scores)))
    return "\n".join(rows)


def _format_row(task: str, kind: str, score: ExactScore) -> str:
    return f"| {task} | {kind} | {score.asked} | {100 * score.exact_share:.1f} % |"


def _evaluate_task(
    model: OneVision, task: tinyworld.Task, samples: int, batch_size: int, seed: int, visuals: VisualOrder
) -> dict[str, ExactScore]:
    scores: dict[str, ExactScore] = defaultdict(lambda: ExactScore(0, 0))
    with tqdm(total=samples, desc=task, unit="question", leave=False) as bar:
        for records in _batches(task, samples, batch_size, seed):
            asked = [
                place_visuals(Conversation.from_messages(r["messages"][:1], f"held-out {task}"), visuals)
                for r in records
            ]
            answers = answer(model, asked, Decoding(max_new_tokens=32))
            for record, said in zip(records, answers, strict=True):
                scores[record["kind"]] += ExactScore(int(said == _expected(record)), 1)
            bar.update(len(records))
    return dict(scores)


def _batches(task: tinyworld.Task, samples: int, size: int, seed: int) -> Iterator[list[dict]]:
    for first in range(0, samples, size):
        indices = range(first, min(first + size, samples))
        yield [tinyworld.make_record(task, i, seed=seed, split="heldout") for i in indices]


def _expected(record: dict) -> str:
    return record["messages"][1]["content"][0]["text"]
