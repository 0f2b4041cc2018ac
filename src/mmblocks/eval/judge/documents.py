"""The answers of a task before a judge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from mmblocks.errors import DataError
from mmblocks.eval.document import Document, ScoredDocument
from mmblocks.eval.judge.client import Judge, JudgeReply, JudgeUsage
from mmblocks.eval.tasks import JudgedTask, JudgeRequest, Scores


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge said about a task's answers.

    scores: by document. replies: the last reply's text by document. unreadable: documents of which no reply could be read,
    whose scores are None. faults: why a document got no reply; it has no scores. usage: of all tries.
    """

    scores: dict[str, Scores] = field(default_factory=dict)
    replies: dict[str, str] = field(default_factory=dict, repr=False)
    unreadable: list[str] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)
    usage: JudgeUsage = field(default_factory=JudgeUsage)

    def merge_scores(self, rows: Sequence[ScoredDocument]) -> list[ScoredDocument]:
        """Rows with the judge's scores beside their own, ready for the task's summary."""
        return [replace(row, scores={**row.scores, **self.scores.get(row.key, {})}) for row in rows]


def make_requests(task: JudgedTask, answers: Iterable[tuple[Document, str]]) -> dict[str, JudgeRequest]:
    """What a judge is asked about each document's answer, by the document's key.

    Raises `DataError` where a document or a file of instructions is at fault, or two documents have one key.
    """
    requests: dict[str, JudgeRequest] = {}
    for document, answer in answers:
        if document.key in requests:
            raise DataError(f"{document.where}: a second document with the key {document.key!r}; keys must differ.")
        requests[document.key] = task.ask_judge(document, answer)
    return requests


def judge_documents(
    task: JudgedTask,
    answers: Iterable[tuple[Document, str]],
    judge: Judge,
    on_reply: Callable[[JudgeReply], None] | None = None,
) -> Judgement:
    """Ask a judge about every (document, answer), again where its reply cannot be read and the request allows.

    on_reply: called with each reply, those of further tries too. Raises as `make_requests` before anything is sent, and as
    `Judge.ask_all`; called again, it goes on from the stored replies.
    """
    judgement = Judgement()
    requests = make_requests(task, answers)
    while requests:
        asked, requests = requests, {}
        for reply in judge.ask_all(asked):
            judgement.usage.add_reply(reply)
            if on_reply:
                on_reply(reply)
            again = _enter_reply(judgement, task, reply, asked[reply.key])
            if again is not None:
                requests[reply.key] = again
    return judgement


def _enter_reply(
    judgement: Judgement, task: JudgedTask, reply: JudgeReply, request: JudgeRequest
) -> JudgeRequest | None:
    """Enter a reply; the next try where it cannot be read."""
    if reply.text is None:
        judgement.faults[reply.key] = reply.fault or "no reply"
        return None
    judgement.replies[reply.key] = reply.text
    scores = task.read_reply(reply.text)
    if any(score is None for score in scores.values()):
        if again := request.make_next_try():
            return again
        judgement.unreadable.append(reply.key)
    judgement.scores[reply.key] = scores
    return None
