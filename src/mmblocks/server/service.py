"""What the routes share: the engine behind them, its threads, and what has been counted."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import TypeVar

from mmblocks.chat.engine import Engine, QueueFullError, Request
from mmblocks.errors import ConfigError, DataError
from mmblocks.model.generation.decoding import MAX_NEW_TOKENS
from mmblocks.server.errors import RefusedError, make_busy_error
from mmblocks.server.fields import ChatFields
from mmblocks.server.limits import ServerLimits
from mmblocks.server.messages import MessageReader
from mmblocks.server.metrics import Metrics
from mmblocks.server.preparation import PreparedPrompt, PromptReader
from mmblocks.server.token_texts import TokenTexts

T = TypeVar("T")
QUEUE_FULL = "as many requests wait as this server takes; ask again later."


@dataclass(frozen=True, slots=True)
class Access:
    """Who may ask for what. keys: of whom one is to be sent, none where there are none. url_hosts: as of `MessageReader`.

    hosts: what a Host header may name; None for anything.
    """

    keys: tuple[str, ...] = ()
    url_hosts: Collection[str] | None = None
    hosts: tuple[str, ...] | None = None

    def accepts_key(self, given: str) -> bool:
        """Whether a key is one of `keys`; takes as long for a wrong one as for a right one."""
        matches = [hmac.compare_digest(given.encode("utf-8", "replace"), key.encode()) for key in self.keys]
        return any(matches) or not self.keys


@dataclass(slots=True)
class Service:
    """One model that is served. name: what clients call it.

    open_requests, held_bytes: of all routes, and of the bodies of requests that are not answered yet. Both are changed in
    the thread of the event loop alone.
    """

    engine: Engine
    name: str
    limits: ServerLimits
    access: Access
    metrics: Metrics = field(default_factory=Metrics)
    is_draining: bool = False
    reader: PromptReader = field(init=False)
    texts: TokenTexts = field(init=False)
    workers: ThreadPoolExecutor = field(init=False)
    open_requests: int = 0
    held_bytes: int = 0
    created: int = field(default_factory=lambda: int(time.time()))
    _num_preparing: int = 0
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        messages = MessageReader(self.limits, self.access.url_hosts)
        self.reader = PromptReader(self.engine.processor, messages)
        self.texts = TokenTexts(self.engine.model.backbone.text_tokenizer)
        self.workers = ThreadPoolExecutor(self.limits.workers, thread_name_prefix="mmblocks server")

    @property
    def most_answer_tokens(self) -> int:
        """The most tokens of an answer that a request may ask for."""
        return min(self.most_tokens, self.limits.answer_tokens or self.most_tokens)

    @property
    def most_tokens(self) -> int:
        """The most tokens of a prompt and its answer."""
        return self.engine.model.backbone.max_tokens or MAX_NEW_TOKENS

    def require_model(self, name: object) -> None:
        """Raise `RefusedError` for another model than the one that is served."""
        if not isinstance(name, str):
            raise RefusedError(
                400, "model is missing; write the name of /v1/models.", param="model", code="invalid_value"
            )
        if name != self.name:
            message = f"there is no model {name[:200]!r} here; write {self.name!r}."
            raise RefusedError(404, message, param="model", code="model_not_found")

    @property
    def num_preparing(self) -> int:
        """Requests that are read in threads, or wait for one."""
        return self._num_preparing

    async def run_in_worker(self, call: Callable[[], T], drop: Callable[[T], None] | None = None) -> T:
        """Run what takes time in a thread. drop: called with the result where nobody waits for it any more."""
        with self._lock:
            if self._num_preparing >= self.engine.limits.max_queued + self.limits.workers:
                raise make_busy_error(QUEUE_FULL)
            self._num_preparing += 1
        future = self.workers.submit(call)
        future.add_done_callback(self._count_prepared)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if drop is not None:
                future.add_done_callback(lambda done: drop(done.result()) if _has_result(done) else None)
            raise

    def submit_prompt(self, messages: object, fields: ChatFields) -> Request:
        """Read messages and hand them to the engine; in a thread, since media are decoded here. Raises `RefusedError`."""
        prompt = self.reader.prepare_prompt(messages, fields.num_frames)
        try:
            decoding = self.fit_answer(prompt, fields).decoding
            return self.engine.submit(
                prompt.conversation, decoding, samples=fields.samples, top_log_probs=fields.top_log_probs
            )
        except QueueFullError as fault:
            raise make_busy_error(QUEUE_FULL) from fault
        except DataError as fault:
            named = self.reader.find_broken_part(prompt)
            raise named or RefusedError(400, str(fault), param="messages", code="invalid_prompt") from fault
        except ConfigError as fault:
            raise RefusedError(400, str(fault), code="invalid_value") from fault

    def fit_answer(self, prompt: PreparedPrompt, fields: ChatFields) -> ChatFields:
        """The fields with an answer that fits behind a prompt. Raises `RefusedError` where what was asked for does not."""
        room = self.most_tokens - len(prompt.encoded)
        if (fields.max_tokens is not None and fields.max_tokens > room) or room < 1:
            message = (
                f"the prompt has {len(prompt.encoded)} tokens, and {fields.max_tokens or 1} more do not fit in the "
                f"{self.most_tokens} that the model takes; ask for less, or show less."
            )
            raise RefusedError(400, message, param="messages", code="context_length_exceeded")
        return fields.with_answer_tokens(min(fields.decoding.max_new_tokens, room, self.most_answer_tokens))

    def close(self) -> None:
        """End the engine and the threads; what has not begun is dropped."""
        self.workers.shutdown(wait=False, cancel_futures=True)
        self.engine.close()

    def _count_prepared(self, _: object) -> None:
        with self._lock:
            self._num_preparing -= 1


def _has_result(done: Future[T]) -> bool:
    return not done.cancelled() and done.exception() is None
