"""Accuracy of a model on TinyWorld's held-out questions, by question type."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
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
    """The number of exact answers and of questions."""

    num_right: int
    num_questions: int

    @property
    def exact_share(self) -> float:
        return self.num_right / self.num_questions if self.num_questions else 0.0

    def __add__(self, other: ExactScore) -> ExactScore:
        return ExactScore(self.num_right + other.num_right, self.num_questions + other.num_questions)


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

    visuals: where images stand in the questions (see `mmblocks.data.sample.visual_placement.place_visuals`).
    """
    return {task: _evaluate_task(model, task, samples, batch_size, seed, visuals) for task in tasks}


def sum_scores(scores: dict[str, ExactScore]) -> ExactScore:
    """All question types of a task together."""
    return sum(scores.values(), ExactScore(0, 0))


def format_scores(table: ScoreTable) -> str:
    """The scores as a Markdown table: one row per question type, one in bold per task."""
    rows = ["| task | question type | questions | exact |", "|---|---|---:|---:|"]
    for task, scores in table.items():
        rows += [_format_row(task, kind, score) for kind, score in sorted(scores.items())]
        rows.append(_format_row(f"**{task}**", "**all**", sum_scores(scores)))
    return "\n".join(rows)


def _format_row(task: str, kind: str, score: ExactScore) -> str:
    return f"| {task} | {kind} | {score.num_questions} | {100 * score.exact_share:.1f} % |"


def _evaluate_task(
    model: OneVision, task: tinyworld.Task, samples: int, batch_size: int, seed: int, visuals: VisualOrder
) -> dict[str, ExactScore]:
    scores: dict[str, ExactScore] = defaultdict(lambda: ExactScore(0, 0))
    with tqdm(total=samples, desc=task, unit="question", leave=False) as bar:
        for first in range(0, samples, batch_size):
            indices = range(first, min(first + batch_size, samples))
            records = [tinyworld.make_record(task, i, seed=seed, split="heldout") for i in indices]
            questions = [
                place_visuals(Conversation.from_messages(r["messages"][:1], f"held-out {task}"), visuals)
                for r in records
            ]
            answers = answer(model, questions, Decoding(max_new_tokens=32))
            for record, given in zip(records, answers, strict=True):
                expected = record["messages"][1]["content"][0]["text"]
                scores[record["kind"]] += ExactScore(int(given == expected), 1)
            bar.update(len(records))
    return dict(scores)
