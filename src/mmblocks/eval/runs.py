"""Runs of evaluation: every document of a task is asked once, and its answer scored."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from mmblocks.chat import respond, score
from mmblocks.conversation import Conversation, Text
from mmblocks.errors import ConfigError, DataError
from mmblocks.eval.document import Document
from mmblocks.eval.endpoint_model import EndpointModel
from mmblocks.eval.likelihoods import ANSWER_BY, LIKELIHOOD, ByLikelihood, find_likeliest
from mmblocks.eval.predictions import Prediction, PredictionFile, open_run_folder, read_predictions
from mmblocks.eval.tasks import DocumentSequence, LikelihoodTask, Scores, Task
from mmblocks.model.generate import Decoding, Result, Score
from mmblocks.model.onevision import OneVision

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)
DOCUMENTS_AT_ONCE = 64
"""Documents whose answers are written together; so many are lost where a run is stopped."""


@dataclass(frozen=True, slots=True)
class NamedTask:
    """A task, and how its answers are generated. settings: its name and own settings, which are stored."""

    name: str
    task: Task | LikelihoodTask
    decoding: Decoding
    settings: Mapping[str, Any]

    @classmethod
    def from_task(cls, name: str, task: Task | LikelihoodTask, **decoding: Any) -> NamedTask:
        """decoding: settings that replace the task's own."""
        own = _list_own_settings(task)
        if isinstance(task, LikelihoodTask):
            if decoding:
                raise ConfigError(
                    f"{name}: nothing is generated, so {next(iter(decoding))}= has no effect; leave it out."
                )
            return cls(name, task, Decoding(), own)
        return cls(name, task, replace(task.decoding, **decoding), own)


def _list_own_settings(task: Task | LikelihoodTask) -> Mapping[str, Any]:
    if isinstance(task, ByLikelihood):
        return {ANSWER_BY.name: LIKELIHOOD, **_list_own_settings(task.task)}
    return asdict(task) if is_dataclass(task) and not isinstance(task, type) else {}


@dataclass(frozen=True, slots=True)
class Selection:
    """Which documents are asked: the first `limit` of all, or of an order drawn with `shuffle_seed`. Of these, the process
    `rank` of several `processes` asks its share.
    """

    limit: int | None = None
    shuffle_seed: int | None = None
    rank: int = 0
    processes: int = 1

    def select_numbers(self, total: int) -> list[int]:
        """Numbers of documents, those of all processes."""
        numbers = list(range(total))
        if self.shuffle_seed is not None:
            random.Random(self.shuffle_seed).shuffle(numbers)
        return numbers[: self.limit]

    def take_share(self, numbers: Sequence[int]) -> Sequence[int]:
        """What this process asks of selected documents."""
        return numbers[self.rank :: self.processes]


def run_task(
    model: OneVision | EndpointModel,
    named: NamedTask,
    folder: Path,
    selection: Selection,
    about_model: Mapping[str, Any],
    *,
    title: str = "",
) -> list[int]:
    """Ask what `folder` has no answer to yet, and write each answer with its scores there.

    Returns the numbers of the selected documents, those of other processes among them.

    about_model: what names the model; a folder of another one is refused. title: of the progress bar, by default the task's name. Documents that cannot be read are written with
    their fault, and are never asked without their images.
    """
    documents = named.task.read_documents()
    open_run_folder(
        folder,
        {
            "task": named.name,
            "model": about_model,
            "settings": named.settings,
            "decoding": asdict(named.decoding),
            "documents": len(documents),
        },
    )
    file, known = PredictionFile(folder, selection.rank), read_predictions(folder)
    answered = {number for number, prediction in known.items() if not prediction.fault}
    numbers = selection.select_numbers(len(documents))
    own = selection.take_share(numbers)
    waiting = [number for number in own if number not in answered]
    done = [known[number] for number in own if number in answered]
    with tqdm(
        total=len(own), initial=len(done), desc=title or named.name, unit="document", disable=selection.rank > 0
    ) as bar:
        for first in range(0, len(waiting), DOCUMENTS_AT_ONCE):
            some = waiting[first : first + DOCUMENTS_AT_ONCE]
            predictions = list(_answer_documents(model, named, documents, some))
            file.append(predictions)
            done += predictions
            bar.update(len(predictions))
            bar.set_postfix_str(_format_running_score(done))
    return numbers


@dataclass(frozen=True, slots=True)
class _Question:
    """A document that can be asked about."""

    number: int
    document: Document
    conversation: Conversation

    def make_prediction(self, answer: str, scores: Scores, answer_tokens: int, **further: Any) -> Prediction:
        """What was answered. further: fields of `Prediction` that a way of answering knows."""
        parts = self.conversation.messages[-1].parts
        return Prediction(
            number=self.number,
            key=self.document.key,
            where=self.document.where,
            prompt="".join(part.text for part in parts if isinstance(part, Text)),
            answer=answer,
            answer_tokens=answer_tokens,
            scores=dict(scores),
            cluster=self.document.cluster,
            fields=self.document.fields,
            **further,
        )


def _answer_documents(
    model: OneVision | EndpointModel, named: NamedTask, documents: DocumentSequence, numbers: Sequence[int]
) -> Iterator[Prediction]:
    questions: list[_Question] = []
    for number in numbers:
        try:
            document = documents[number]
            questions.append(_Question(number, document, named.task.ask(document)))
        except DataError as fault:
            yield _make_fault(number, fault)
    begin = time.perf_counter()
    predictions = _answer_readable(partial(_answer_questions, model, named), questions)
    seconds = round((time.perf_counter() - begin) / max(len(questions), 1), 6)
    yield from (replace(prediction, seconds=seconds) for prediction in predictions)


def _answer_readable(
    answer: Callable[[Sequence[_Question]], list[Prediction]], questions: Sequence[_Question]
) -> list[Prediction]:
    """Answers together; where an image or video cannot be decoded, one by one, with the faults of those that cannot."""
    try:
        return answer(questions)
    except DataError as fault:
        if len(questions) == 1:
            return [_make_fault(questions[0].number, fault)]
    return [one for question in questions for one in _answer_readable(answer, [question])]


def _answer_questions(
    model: OneVision | EndpointModel, named: NamedTask, questions: Sequence[_Question]
) -> list[Prediction]:
    """Generated answers, or for a `LikelihoodTask` the most likely of those that are given."""
    conversations = [question.conversation for question in questions]
    if isinstance(named.task, LikelihoodTask):
        if isinstance(model, EndpointModel):
            raise ConfigError(
                f"{named.name}: an endpoint does not tell how likely given answers are; evaluate the model itself."
            )
        given = [named.task.list_continuations(question.document) for question in questions]
        likelihoods = score(model, conversations, given)
        return [_choose_likeliest(named.task, *one) for one in zip(questions, given, likelihoods, strict=True)]
    task = named.task
    return [
        question.make_prediction(
            result.text,
            task.score(question.document, result.text),
            result.answer_tokens,
            finish_reason=result.finish_reason,
            prompt_tokens=result.prompt_tokens,
        )
        for question, result in zip(questions, _respond(model, conversations, named.decoding), strict=True)
    ]


def _respond(
    model: OneVision | EndpointModel, conversations: Sequence[Conversation], decoding: Decoding
) -> list[Result]:
    if isinstance(model, EndpointModel):
        return model.respond(conversations, decoding)
    return respond(model, conversations, decoding)


def _choose_likeliest(
    task: LikelihoodTask, question: _Question, given: Sequence[str], likelihoods: Sequence[Score]
) -> Prediction:
    best = find_likeliest(likelihoods)
    scores = task.score_likelihoods(question.document, likelihoods)
    return question.make_prediction(given[best], scores, likelihoods[best].tokens)


def _make_fault(number: int, fault: DataError) -> Prediction:
    log.warning("%s", fault)
    return Prediction(number, fault=str(fault))


def _format_running_score(predictions: Sequence[Prediction]) -> str:
    """The mean of the first metric so far."""
    rows = [prediction.scores for prediction in predictions if prediction.scores]
    if not rows:
        return ""
    metric = next(iter(rows[0]))
    values = [row[metric] or 0.0 for row in rows if metric in row]
    return f"{metric} {sum(values) / max(len(values), 1):.3f}"
