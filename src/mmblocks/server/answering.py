"""From a request of the engine to the bytes of its answer, within a time and only while its client is there."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mmblocks.chat.engine import Piece, Request
from mmblocks.errors import MMBlocksError
from mmblocks.model.generate import Result
from mmblocks.server.errors import RequestError
from mmblocks.server.fields import ChatFields
from mmblocks.server.responses import DONE, CompletionWriter, format_event
from mmblocks.server.service import Service

log = logging.getLogger(__name__)
T = TypeVar("T")


class ClientLeftError(Exception):
    """The client has closed its connection; nobody reads the answer."""


async def read_pieces(service: Service, request: Request, began: float) -> AsyncIterator[Piece]:
    """The pieces of an answer; the time to the first of them is counted."""
    is_first = True
    async for piece in request.astream():
        if is_first:
            service.metrics.first_token_s.add_value(time.monotonic() - began)
            is_first = False
        yield piece


async def wait_while_connected(http: HTTPRequest, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves. Raises `ClientLeftError` then."""
    task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_wait_for_leaving(http.receive))
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


def explain_error(error: BaseException, limits_s: float) -> RequestError:
    """What a client is told of an error; one that is nobody's fault but ours is logged, and not shown."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, TimeoutError):
        return RequestError(504, f"the answer took more than {limits_s:g} s and was stopped.", code="request_timeout")
    if type(error).__name__ == "EngineClosedError":
        return RequestError(503, "the server is stopping.", code="stopping", headers={"Retry-After": "5"})
    if isinstance(error, MMBlocksError):
        log.warning("a request ended with an error: %s", error)
    else:
        log.error("a request ended with an error", exc_info=error)
    return RequestError(500, "the model failed on this request; the server's log says why.", code="model_failed")


class EventStream(Response):
    """An answer in chunks, as an ASGI response. A reader who takes nothing for `stall_s` loses the answer."""

    def __init__(
        self, service: Service, fields: ChatFields, request: Request, began: float, writer: CompletionWriter
    ) -> None:
        self._service, self._fields, self._request, self._began = service, fields, request, began
        self._writer = writer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        headers.append((b"x-accel-buffering", b"no"))
        sending = asyncio.ensure_future(self._send_events(send, headers))
        leaving = asyncio.ensure_future(_wait_for_leaving(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                self._service.metrics.cancelled += 1
        finally:
            for one in (sending, leaving):
                one.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
            self._request.cancel()

    async def _send_events(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        async def send_within_time(message: dict[str, Any]) -> None:
            async with asyncio.timeout(self._service.limits.stall_s):
                await send(message)

        await send_within_time({"type": "http.response.start", "status": 200, "headers": headers})
        async for event in self._write_events():
            await send_within_time({"type": "http.response.body", "body": event.encode(), "more_body": True})
        await send_within_time({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write_events(self) -> AsyncIterator[str]:
        limit_s = self._service.limits.request_s
        deadline = self._began + limit_s
        counts: dict[int, int] = {}
        results: list[Result] = []
        for event in self._writer.write_first_chunks(self._fields.samples):
            yield event
        pieces = read_pieces(self._service, self._request, self._began)
        try:
            while True:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    piece = await anext(pieces, None)
                if piece is None:
                    break
                for event in self._writer.write_piece(piece, counts.get(piece.sample, 0)):
                    yield event
                counts[piece.sample] = counts.get(piece.sample, 0) + len(piece.tokens)
                results += [piece.result] if piece.result is not None else []
        except Exception as error:
            yield format_event(explain_error(error, limit_s).to_dict())
            return
        finally:
            with suppress(Exception):
                await pieces.aclose()
        if self._fields.has_usage:
            yield self._writer.write_usage_chunk(self._request, results)
        yield DONE


def encode_json(content: object) -> bytes:
    """The body of an answer."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
