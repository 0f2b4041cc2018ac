"""Benchmarks: documents of local files -> a conversation and its decoding -> scores -> the numbers of the published table.

A task is a frozen dataclass of settings that registers itself; packages outside mmblocks add tasks through entry points of
the group `mmblocks.task`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from mmblocks.conversation import Conversation
from mmblocks.eval.document import Document, ScoredDocument
from mmblocks.registry import Registry

if TYPE_CHECKING:  # torch is not needed to list tasks
    from mmblocks.model.generation.decoding import Decoding
    from mmblocks.model.generation.results import Score

Scores = Mapping[str, float | None]
"""By metric, from 0 to 1 where the published scale is a share; None: no answer could be read, which counts as 0."""


class DocumentSequence(Protocol):
    """`documents[i]` raises a `DataError` where document `i` is at fault; the others can still be read."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Document: ...


class DocumentTask(Protocol):
    """What is asked about documents, and what numbers are made of their scores."""

    def read_documents(self) -> DocumentSequence:
        """The documents of the task's files. Raises `DataError` for files that hold none of this task."""
        ...

    def ask(self, document: Document, /) -> Conversation:
        """The conversation up to the user's last message. Raises `DataError` where the document's fields do not fit."""
        ...

    def summarise(self, rows: Sequence[ScoredDocument], /) -> Mapping[str, float]:
        """The numbers of the published table from at least one row, shares in percent.

        "metric" is that of all rows, "metric/field/value" that of the rows with this value, "no_answer" how many answers
        could not be read.
        """
        ...


class Task(DocumentTask, Protocol):
    """A task whose answers are generated and scored. decoding: how answers are generated in published runs."""

    decoding: ClassVar[Decoding]

    def score(self, document: Document, answer: str, /) -> Scores:
        """The metrics of one answer that need no judge. answer: without white space at its ends, as lmms-eval has it."""
        ...


@runtime_checkable
class ChoiceTask(Task, Protocol):
    """Its questions have options with letters, which `answer_by=likelihood` compares instead of generating an answer."""

    def list_choices(self, document: Document, /) -> Sequence[str]:
        """The answers that the prompt offers: the letters of the options. Raises `DataError` where there are none."""
        ...


@runtime_checkable
class LikelihoodTask(DocumentTask, Protocol):
    """A task that asks how likely given answers are."""

    def list_continuations(self, document: Document, /) -> Sequence[str]:
        """The answers whose probabilities are compared, or of which there is one."""
        ...

    def score_likelihoods(self, document: Document, likelihoods: Sequence[Score], /) -> Scores:
        """The metrics from the log-probabilities of the continuations, in their order."""
        ...


@dataclass(frozen=True, slots=True)
class JudgeRequest:
    """What a judge is asked: messages of chat-completions ({"role", "content"}) and how its reply is generated.

    tries: how often it is asked at most, as long as its reply cannot be read. temperature_step: what each further try adds
    to the temperature. attempt: 0 for the first try.
    """

    messages: tuple[Mapping[str, str], ...]
    temperature: float = 0.0
    max_tokens: int = 1024
    tries: int = 1
    temperature_step: float = 0.0
    attempt: int = 0

    def make_next_try(self) -> JudgeRequest | None:
        """The request after a reply that could not be read; None after the last try."""
        if self.attempt + 1 >= self.tries:
            return None
        return replace(self, temperature=self.temperature + self.temperature_step, attempt=self.attempt + 1)


@runtime_checkable
class JudgedTask(Protocol):
    """A task of which a judge gives some scores. judge: the model of the published figures."""

    judge: ClassVar[str]

    def ask_judge(self, document: Document, answer: str, /) -> JudgeRequest:
        """The messages that show a judge an answer."""
        ...

    def read_reply(self, reply: str, /) -> Scores:
        """The scores of a judge's reply; None for each that could not be read: such replies are counted, not scored."""
        ...


tasks: Registry[Task] = Registry("task", "mmblocks.eval.tasks", capabilities=(ChoiceTask,))
