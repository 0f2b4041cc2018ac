"""A run before a judge: the answers on disk, their documents read again, and the judge's scores beside their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from tqdm import tqdm

from mmblocks.eval.document import Document
from mmblocks.eval.judge import (
    METRIC,
    Judge,
    Judgement,
    JudgeReply,
    PlannedRequest,
    ReferenceJudge,
    judge_documents,
    make_requests,
)
from mmblocks.eval.own_data import OwnData
from mmblocks.eval.predictions import Prediction
from mmblocks.eval.tasks import DocumentTask, JudgedTask


def find_judged(task: DocumentTask) -> JudgedTask | None:
    """What asks a judge about a task's answers: the task itself, or the metric of someone's own data; None for others."""
    if isinstance(task, OwnData):
        return ReferenceJudge() if task.metric == METRIC else None
    return task if isinstance(task, JudgedTask) else None


def plan_requests(
    task: DocumentTask, judged: JudgedTask, predictions: Sequence[Prediction], judge: Judge
) -> Iterator[PlannedRequest]:
    """What `judge_predictions` would send at first; nothing is sent."""
    return judge.describe_requests(make_requests(judged, _read_answers(task, predictions)))


def judge_predictions(
    task: DocumentTask, judged: JudgedTask, predictions: Sequence[Prediction], judge: Judge
) -> tuple[list[Prediction], Judgement]:
    """Predictions with the judge's scores. judged: what asks the judge, the task itself or a metric.

    A document without a reply keeps its own scores, and one whose reply cannot be read has None.
    """
    answers = list(_read_answers(task, predictions))
    with tqdm(total=len(answers), desc=f"judge {judge.model}", unit="reply") as bar:

        def show(reply: JudgeReply) -> None:
            bar.update()

        judgement = judge_documents(judged, answers, judge, show)
    scored = [
        replace(one, scores={**(one.scores or {}), **judgement.scores.get(one.key, {})}) if not one.fault else one
        for one in predictions
    ]
    return scored, judgement


def _read_answers(task: DocumentTask, predictions: Sequence[Prediction]) -> Iterator[tuple[Document, str]]:
    documents = task.read_documents()
    for prediction in predictions:
        if not prediction.fault:
            yield documents[prediction.number], prediction.answer


def format_judgement(judge: Judge, judgement: Judgement) -> str:
    """How many replies there were, and what they took."""
    usage = judgement.usage
    text = (
        f"judge {judge.model}: {usage.asked} replies, {usage.cached} stored ones, {len(judgement.unreadable)} that could not be "
        f"read, {len(judgement.faults)} requests without a reply; {usage.prompt_tokens} + {usage.reply_tokens} tokens."
    )
    first = next(iter(judgement.faults.values()), "")
    return f"{text} The first fault: {first}" if first else text
