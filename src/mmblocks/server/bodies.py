"""Bodies of requests: read within a limit of bytes and of time, and held within another."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest

from mmblocks.server.errors import RefusedError, make_busy_error
from mmblocks.server.limits import ServerLimits
from mmblocks.server.service import Service

CLOSE = {"Connection": "close"}
"""What is left of a body that is not read would be taken for the next request."""
LARGE_BODY = 1 << 18
"""Bytes from which on a body is parsed in a thread, so that other requests do not wait for it."""


@dataclass(slots=True)
class HeldBody:
    """The bytes that a request counts for until it is answered."""

    service: Service
    size: int = 0

    def reserve(self, size: int) -> None:
        """Count more bytes. Raises `RefusedError` where there is no room now."""
        if self.service.held_bytes + size > self.service.limits.open_body_bytes:
            fault = make_busy_error("the bodies of other requests fill the memory for bodies; ask again later.")
            fault.headers |= CLOSE
            raise fault
        self.service.held_bytes += size
        self.size += size

    def release(self) -> None:
        """Count nothing any more."""
        self.service.held_bytes -= self.size
        self.size = 0


async def read_body(request: HTTPRequest, held: HeldBody) -> dict[str, object]:
    """The JSON object of a request. Raises `RefusedError`."""
    service, content = held.service, bytearray()
    _require_size(int(request.headers.get("content-length", "0")), service.limits.body_bytes)
    async for piece in _read_pieces(request, service.limits):
        _require_size(len(content) + len(piece), service.limits.body_bytes)
        held.reserve(len(piece))
        content += piece
    if len(content) < LARGE_BODY:
        return _parse_object(content)
    return await service.run_in_worker(lambda: _parse_object(content))


async def _read_pieces(request: HTTPRequest, limits: ServerLimits) -> AsyncIterator[bytes]:
    pieces, deadline = aiter(request.stream()), time.monotonic() + limits.request_s
    while True:
        try:
            async with asyncio.timeout(min(limits.stall_s, deadline - time.monotonic())):
                piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except TimeoutError as cause:
            message = f"nothing came of the body for {limits.stall_s:g} s, or not all in {limits.request_s:g} s; send it again."
            raise RefusedError(408, message, code="body_timeout", headers=CLOSE) from cause
        except ClientDisconnect as cause:
            raise RefusedError(400, "the body was not sent to its end.", code="body_cut", headers=CLOSE) from cause
        yield piece


def _require_size(size: int, most: int) -> None:
    if size > most:
        message = f"the body has more than {most:,} bytes; send smaller or fewer images and videos."
        raise RefusedError(413, message, code="body_too_large", headers=CLOSE)


def _parse_object(content: bytearray) -> dict[str, object]:
    try:
        body = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as cause:  # a UnicodeDecodeError is a ValueError
        raise RefusedError(400, f"the body is no JSON ({cause!s:.200}).", code="invalid_json") from cause
    if not isinstance(body, dict):
        raise RefusedError(400, "the body is no JSON object; write {...}.", code="invalid_json")
    return body


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no number of JSON")
