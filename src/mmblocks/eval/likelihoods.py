"""Multiple choice by log-likelihood: the likeliest of the options' letters is the answer, and nothing is generated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mmblocks.components import has_capability
from mmblocks.conversation import Conversation
from mmblocks.errors import ConfigError
from mmblocks.eval.document import Document, ScoredDocument
from mmblocks.eval.tasks import ChoiceTask, DocumentSequence, DocumentTask, Scores, tasks
from mmblocks.model.generation.results import Score
from mmblocks.settings import Setting

LIKELIHOOD = "likelihood"
ANSWER_BY = Setting("answer_by", Literal["generation", "likelihood"], "generation")
"""A setting of every task: how its answers are found."""


@dataclass(frozen=True, slots=True)
class ByLikelihood:
    """A task whose answer is the letter that is likeliest behind the prompt, scored by the task's own rule.

    The sums of log-probabilities are compared as they are, as in `acc` of lm-evaluation-harness: the prompt shows the
    options and asks for a letter, so no length is divided by.
    """

    task: ChoiceTask

    def read_documents(self) -> DocumentSequence:
        return self.task.read_documents()

    def ask(self, document: Document) -> Conversation:
        return self.task.ask(document)

    def list_continuations(self, document: Document) -> Sequence[str]:
        return self.task.list_choices(document)

    def score_likelihoods(self, document: Document, likelihoods: Sequence[Score]) -> Scores:
        return self.task.score(document, self.task.list_choices(document)[find_likeliest(likelihoods)])

    def summarise(self, rows: Sequence[ScoredDocument]) -> Mapping[str, float]:
        return self.task.summarise(rows)


def find_likeliest(likelihoods: Sequence[Score]) -> int:
    """The number of the continuation of the highest log-probability, the first of equal ones."""
    return max(range(len(likelihoods)), key=lambda number: likelihoods[number].log_prob)


def answer_by_likelihood(name: str, task: DocumentTask) -> ByLikelihood:
    """Raises `ConfigError` for a task that lists no choices, with the names of those that do."""
    if not isinstance(task, ChoiceTask):
        known = [other for other in tasks if has_capability(tasks[other].builder, ChoiceTask)]
        raise ConfigError(
            f"{name}: answer_by={LIKELIHOOD} compares options, and this task has none; leave it out, or evaluate one of "
            f"{', '.join(known)}."
        )
    return ByLikelihood(task)
