"""What the routes share: the engine behind them, its threads, and what has been counted."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from mmblocks.chat.engine import Engine, QueueFullError, Request
from mmblocks.errors import ConfigError, DataError
from mmblocks.server.errors import RequestError, make_busy_error
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
class OpenBodies:
    """Bytes of the bodies that are held, within a limit."""

    most: int
    held: int = 0

    def reserve(self, size: int) -> None:
        """Raises `RequestError` where there is no room now."""
        if self.held + size > self.most:
            raise make_busy_error(
                "the bodies of other requests fill the memory that is meant for them; ask again later."
            )
        self.held += size

    def release(self, size: int) -> None:
        """Give back what was reserved."""
        self.held -= size


@dataclass(slots=True)
class Service:
    """One model that is served. name: what clients call it."""

    engine: Engine
    name: str
    limits: ServerLimits
    access: Access
    metrics: Metrics = field(default_factory=Metrics)
    is_draining: bool = False
    reader: PromptReader = field(init=False)
    texts: TokenTexts = field(init=False)
    bodies: OpenBodies = field(init=False)
    workers: ThreadPoolExecutor = field(init=False)
    waiting: int = 0
    open_requests: int = 0

    def __post_init__(self) -> None:
        messages = MessageReader(self.limits, self.access.url_hosts)
        self.reader = PromptReader(self.engine.processor, messages)
        self.texts = TokenTexts(self.engine.model.backbone.text_tokenizer)
        self.bodies = OpenBodies(self.limits.open_body_bytes)
        self.workers = ThreadPoolExecutor(self.limits.workers, thread_name_prefix="mmblocks server")

    @property
    def most_answer_tokens(self) -> int:
        """The most tokens of an answer that a request may ask for."""
        most = self.engine.model.backbone.max_tokens
        return min(most, self.limits.answer_tokens or most)

    def require_model(self, name: object) -> None:
        """Raise `RequestError` for another model than the one that is served."""
        if not isinstance(name, str):
            raise RequestError(
                400, "model is missing; write the name of /v1/models.", param="model", code="invalid_value"
            )
        if name != self.name:
            message = f"there is no model {name[:200]!r} here; write {self.name!r}."
            raise RequestError(404, message, param="model", code="model_not_found")

    async def run_in_worker(self, call: Callable[[], T], drop: Callable[[T], None] | None = None) -> T:
        """Run what takes time in a thread. drop: called with the result where nobody waits for it any more."""
        if self.waiting >= self.engine.limits.max_queued:
            raise make_busy_error(QUEUE_FULL)
        self.waiting += 1
        try:
            future: Future[T] = self.workers.submit(call)
        except BaseException:
            self.waiting -= 1
            raise
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._count_finished))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if drop is not None:
                future.add_done_callback(lambda done: drop(done.result()) if _has_result(done) else None)
            raise

    def submit_prompt(self, messages: object, fields: ChatFields) -> Request:
        """Read messages and hand them to the engine; in a thread, since media are decoded here. Raises `RequestError`."""
        prompt = self.reader.prepare_prompt(messages, fields.num_frames)
        decoding = self.fit_answer(prompt, fields).decoding
        try:
            return self.engine.submit(
                prompt.conversation, decoding, samples=fields.samples, top_log_probs=fields.top_log_probs
            )
        except QueueFullError as fault:
            raise make_busy_error(QUEUE_FULL) from fault
        except DataError as fault:
            named = self.reader.find_broken_part(prompt)
            raise named or RequestError(400, str(fault), param="messages", code="invalid_prompt") from fault
        except ConfigError as fault:
            raise RequestError(400, str(fault), code="invalid_value") from fault

    def fit_answer(self, prompt: PreparedPrompt, fields: ChatFields) -> ChatFields:
        """The fields with an answer that fits behind a prompt. Raises `RequestError` where what was asked for does not."""
        room = self.engine.model.backbone.max_tokens - len(prompt.encoded)
        if (fields.max_tokens is not None and fields.max_tokens > room) or room < 1:
            message = (
                f"the prompt has {len(prompt.encoded)} tokens, and {fields.max_tokens or 1} more do not fit in the "
                f"{self.engine.model.backbone.max_tokens} that the model takes; ask for less, or show less."
            )
            raise RequestError(400, message, param="messages", code="context_length_exceeded")
        return fields.with_answer_tokens(min(fields.decoding.max_new_tokens, room, self.most_answer_tokens))

    def close(self) -> None:
        """End the engine and the threads; what has not begun is dropped."""
        self.workers.shutdown(wait=False, cancel_futures=True)
        self.engine.close()

    def _count_finished(self) -> None:
        self.waiting -= 1


def _has_result(done: Future[T]) -> bool:
    return not done.cancelled() and done.exception() is None


def list_models(names: Sequence[str], created: int) -> dict:
    """Of `GET /v1/models`."""
    rows = [{"id": name, "object": "model", "created": created, "owned_by": "mmblocks"} for name in names]
    return {"object": "list", "data": rows}
