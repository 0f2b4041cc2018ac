"""Many questions to one model at a time: continuous batching in a thread of its own.

>>> with Engine(model) as engine:                                                             # doctest: +SKIP
...     requests = [engine.submit(conversation) for conversation in conversations]
...     texts = [request.wait()[0].text for request in requests]
"""

from __future__ import annotations

import asyncio
import atexit
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, replace
from threading import Condition, Thread
from typing import TYPE_CHECKING

from mmblocks.chat.engine.limits import EngineLimits, EngineStatistics
from mmblocks.chat.engine.scheduling import AnswerProgress, EngineQuestion, Scheduler
from mmblocks.chat.inputs import check_conversations, check_decoding
from mmblocks.chat.prompts import ChatPrompt
from mmblocks.conversation import Conversation
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import ConfigError, MMBlocksError
from mmblocks.model.generate import Decoding, Result, StopSequences
from mmblocks.model.generation.results import DrawnToken
from mmblocks.model.generation.stopping import AnswerText
from mmblocks.model.onevision import OneVision
from mmblocks.settings import format_value

if TYPE_CHECKING:
    from mmblocks.data.video.video_reader import VideoReader

__all__ = ["Engine", "EngineLimits", "EngineStatistics", "Piece", "QueueFullError", "Request"]

log = logging.getLogger(__name__)


class QueueFullError(MMBlocksError):
    """As many questions wait as an engine takes."""


class EngineClosedError(MMBlocksError):
    """The engine takes no more questions, or ended before this one was answered."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some more of an answer. The texts of all pieces of a sample, joined, are the text of its result.

    tokens: drawn since the last piece. result: in the last piece of a sample.
    """

    sample: int
    text: str
    tokens: tuple[DrawnToken, ...]
    result: Result | None = None


class Request:
    """A question that was submitted. Its answers are read once, by `stream`, `astream` or `wait`.

    prompt_tokens: rows of the prompt. visual_tokens: how many of these each visual has. has_ended: whether all answers are
    there, or an error.
    """

    def __init__(self, model: OneVision, question: EngineQuestion, wake_engine: Callable[[], None]) -> None:
        self.prompt_tokens = len(question.prompt)
        self.visual_tokens = tuple(question.prompt.row_counts)
        self.samples = question.samples
        self.question, self._wake_engine = question, wake_engine
        self.has_ended, self._left = False, question.samples
        self._texts = [AnswerText(model.backbone, question.stop) for _ in range(question.samples)]
        self._changed = Condition()
        self._told: deque[AnswerProgress] = deque()
        self._wake_reader: Callable[[], object] | None = None

    def cancel(self) -> None:
        """Stop answering at the next step, from any thread. Whoever reads gets an `EngineClosedError`."""
        self.question.is_cancelled = True
        self.tell(AnswerProgress(self.question, error=EngineClosedError("the request was cancelled.")))
        self._wake_engine()

    def stream(self) -> Iterator[Piece]:
        """Pieces as they are written, of all samples. Raises what ended the request. Without a reader it is cancelled."""
        left = self.samples
        try:
            while left:
                with self._changed:
                    self._changed.wait_for(lambda: self._told)
                for piece in self._take_pieces():
                    left -= piece.result is not None
                    yield piece
        finally:
            if left:
                self.cancel()

    async def astream(self) -> AsyncIterator[Piece]:
        """As `stream`, in asyncio."""
        loop, event = asyncio.get_running_loop(), asyncio.Event()
        with self._changed:
            self._wake_reader = lambda: loop.call_soon_threadsafe(event.set)
        left = self.samples
        try:
            while left:
                event.clear()
                for piece in self._take_pieces():
                    left -= piece.result is not None
                    yield piece
                if left:
                    await event.wait()
        finally:
            self._wake_reader = None
            if left:
                self.cancel()

    def wait(self) -> list[Result]:
        """The result of each sample, when all are there."""
        results = {piece.sample: piece.result for piece in self.stream() if piece.result is not None}
        return [results[sample] for sample in range(self.samples)]

    def tell(self, progress: AnswerProgress) -> None:
        """What the engine reports."""
        with self._changed:
            self._told.append(progress)
            self._left -= progress.result is not None
            self.has_ended = self.has_ended or not self._left or progress.error is not None
            self._changed.notify_all()
            if self._wake_reader is not None:
                with suppress(RuntimeError):  # the reader's event loop has been closed
                    self._wake_reader()

    def _take_pieces(self) -> Iterator[Piece]:
        """What was told since the last time; texts are decoded in the reader's thread."""
        while self._told:
            progress = self._told.popleft()
            if progress.error is not None:
                raise progress.error
            text, tokens = "", ()
            if progress.token is not None:
                text, tokens = self._texts[progress.sample].append_token(progress.token.id), (progress.token,)
            if progress.result is not None:
                text = self._texts[progress.sample].finish(progress.result.text)
            yield Piece(progress.sample, text, tokens, progress.result)


class Engine:
    """Answers questions to a model in a thread of its own, which ends with `close` or at the end of a `with` block.

    Answers do not depend on who else asks: greedy ones have the same tokens, and seeded ones are drawn by the same numbers.
    """

    def __init__(
        self, model: OneVision, limits: EngineLimits | None = None, *, video_reader: VideoReader | None = None
    ) -> None:
        """video_reader: as of `Processor.from_model`."""
        if not isinstance(limits, EngineLimits | None):
            raise ConfigError(f"engine: limits={format_value(limits)} are no EngineLimits.")
        self.model, self.limits = model, limits or EngineLimits()
        self.processor = Processor.from_model(model, video_reader=video_reader)
        self._scheduler = self._make_scheduler()
        self._changed = Condition()
        self._submitted: list[EngineQuestion] = []
        self._requests: dict[EngineQuestion, Request] = {}
        self._takes_questions, self._runs, self._is_woken = True, True, False
        self._thread = Thread(target=copy_context().run, args=(self._run,), name="mmblocks engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a thread that still computes would end the interpreter with an error

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(
        self, conversation: Conversation, decoding: Decoding | None = None, *, samples: int = 1, top_log_probs: int = 0
    ) -> Request:
        """Ask for answers to a conversation that ends with a message of the user; they are read from what is returned.

        Headers, text and pixels are read in the caller's thread. samples: answers to the prompt, which is run once.
        top_log_probs: so many of the likeliest tokens come with each token. Raises `DataError` for what cannot be read or
        does not fit, `QueueFullError`, and `EngineClosedError` after `close`.
        """
        (conversation,), decoding = check_conversations([conversation]), check_decoding(decoding)
        for name, value, lowest in (("samples", samples, 1), ("top_log_probs", top_log_probs, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
                raise ConfigError(f"engine: {name}={format_value(value)}; write a whole number, {lowest} or more.")
        self._require_place()
        prompt = ChatPrompt.from_conversation(self.processor, conversation)
        stop = StopSequences.from_model(self.model, decoding.stop)
        question = EngineQuestion(prompt, decoding, stop, samples, top_log_probs)
        self._scheduler.require_room(question)
        self._scheduler.open_visuals(question)
        request = Request(self.model, question, self._wake)
        with self._changed:
            self._require_place()
            self._submitted.append(question)
            self._requests[question] = request
            self._wake()
        return request

    def read_statistics(self) -> EngineStatistics:
        """What is running, and what has been done."""
        with self._changed:
            statistics = self._scheduler.read_statistics()
            return replace(statistics, queued=statistics.queued + len(self._submitted))

    def close(self, *, drain: bool = False, timeout: float | None = None) -> None:
        """Take no more questions and end: at once, or with `drain` when all are answered or `timeout` seconds have passed."""
        with self._changed:
            self._takes_questions = False
            if drain:
                self._changed.wait_for(lambda: not self._requests, timeout)
            self._runs = False
            self._wake()
        self._thread.join()
        atexit.unregister(self.close)

    def _make_scheduler(self) -> Scheduler:
        return Scheduler(
            self.model,
            self.processor,
            slots=self.limits.count_slots(self.model),
            step_tokens=self.limits.get_step_tokens(self.model),
            max_running=self.limits.max_running,
            visual_bytes=self.limits.visual_bytes,
        )

    def _require_place(self) -> None:
        if not self._takes_questions:
            raise EngineClosedError("the engine is closed and takes no more questions.")
        waiting = len(self._submitted) + self._scheduler.num_queued
        if waiting >= self.limits.max_queued:
            raise QueueFullError(f"{waiting} questions wait, and no more are taken; ask again later.")

    def _wake(self) -> None:
        with self._changed:
            self._is_woken = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_woken or self._scheduler.has_work)
                submitted, self._submitted, self._is_woken = self._submitted, [], False
                if not self._runs:
                    break
            for question in submitted:
                self._scheduler.append(question)
            self._tell_progress()
        self._end_requests(EngineClosedError("the engine was closed."))

    def _tell_progress(self) -> None:
        """Advance all questions by one step. An error that is nobody's own ends them all, and the engine begins anew."""
        try:
            for progress in self._scheduler.advance():
                if (request := self._requests.get(progress.question)) is not None:  # else it was cancelled meanwhile
                    request.tell(progress)
        except Exception as cause:
            log.exception("engine: a step failed; all questions end with this error")
            self._end_requests(cause)
            self._scheduler = self._make_scheduler()
        for request in [one for one in [*self._requests.values()] if one.has_ended]:
            self._forget_request(request)

    def _end_requests(self, cause: Exception) -> None:
        for request in [*self._requests.values()]:
            request.tell(AnswerProgress(request.question, error=cause))
            self._forget_request(request)

    def _forget_request(self, request: Request) -> None:
        with self._changed:
            del self._requests[request.question]
            self._changed.notify_all()
