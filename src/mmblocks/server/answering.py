"""From a request of the engine to the bytes of its answer, within a time and only while its client is there."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mmblocks.chat.engine import EngineClosedError, Piece, Request
from mmblocks.errors import MMBlocksError
from mmblocks.model.generate import Result
from mmblocks.server.bodies import HeldBody
from mmblocks.server.errors import RefusedError
from mmblocks.server.fields import ChatFields
from mmblocks.server.responses import DONE, CompletionWriter, format_event
from mmblocks.server.service import Service

log = logging.getLogger(__name__)
T = TypeVar("T")


class ClientLeftError(Exception):
    """The client has closed its connection; nobody reads the answer."""


@dataclass(slots=True)
class Answering:
    """One request while it is answered. began: when its body had come, in seconds of `time.monotonic`."""

    service: Service
    fields: ChatFields
    request: Request
    writer: CompletionWriter
    held: HeldBody
    began: float = field(default_factory=time.monotonic)

    @property
    def deadline(self) -> float:
        """When the answer is stopped."""
        return self.began + self.service.limits.request_s

    async def read_pieces(self) -> AsyncGenerator[Piece]:
        """The pieces of an answer; the time to the first of them is counted. Raises `TimeoutError`."""
        pieces, is_first = aiter(self.request.astream()), True
        try:
            while True:
                async with asyncio.timeout(self.deadline - time.monotonic()):
                    piece = await anext(pieces, None)
                if piece is None:
                    return
                if is_first:
                    self.service.metrics.first_token_s.add_value(time.monotonic() - self.began)
                    is_first = False
                yield piece
        finally:
            self.request.cancel()  # nothing, where it has ended

    async def write_completion(self) -> dict:
        """The whole answer."""
        async with aclosing(self.read_pieces()) as pieces:
            return self.writer.write_completion(self.request, [piece async for piece in pieces])

    async def write_events(self) -> AsyncGenerator[str]:
        """The answer in chunks; an error in the middle is one of them, and the last."""
        results: list[Result] = []
        for event in self.writer.write_first_chunks(self.fields.samples):
            yield event
        try:
            async with aclosing(self.read_pieces()) as pieces:
                async for piece in pieces:
                    for event in self.writer.write_piece(piece):
                        yield event
                    results += [piece.result] if piece.result is not None else []
        except Exception as error:
            yield format_event(explain_error(error, self.service.limits.request_s).to_dict())
            return
        if self.fields.has_usage:
            yield self.writer.write_usage_chunk(self.request, results)
        yield DONE


class EventStream(Response):
    """An answer in chunks, written as they are taken: the connection of a reader who takes nothing is closed by its protocol."""

    def __init__(self, answering: Answering) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(headers=headers, media_type="text/event-stream")
        del self.headers["content-length"]
        self._answering = answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._answering.service
        try:
            await wait_while_connected(receive, self._send_events(send))
        except ClientLeftError:
            service.metrics.cancelled += 1
        finally:
            self._answering.request.cancel()
            self._answering.held.release()

    async def _send_events(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self._answering.write_events()) as events:
            async for event in events:
                await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def wait_while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves. Raises `ClientLeftError` then."""
    task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_wait_for_leaving(receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeftError
        return task.result()
    finally:
        for one in (task, leaving):
            one.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def _wait_for_leaving(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def explain_error(error: BaseException, limit_s: float) -> RefusedError:
    """What a client is told of an error; one that is nobody's fault but ours is logged, and not shown."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, TimeoutError):
        message = f"the answer took more than {limit_s:g} s and was stopped; ask for a shorter one."
        return RefusedError(504, message, code="request_timeout", headers={"X-Should-Retry": "false"})
    if isinstance(error, EngineClosedError):
        return RefusedError(503, "the server is stopping.", code="stopping", headers={"Retry-After": "5"})
    if isinstance(error, MMBlocksError):
        log.warning("a request ended with an error: %s", error)
    else:
        log.error("a request ended with an error", exc_info=error)
    return RefusedError(500, "the model failed on this request; the server's log says why.", code="model_failed")


def encode_json(content: object) -> bytes:
    """The body of an answer."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
