"""Bodies of requests: read within a limit of bytes and of time, and held within another."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest

from mmblocks.server.errors import RequestError
from mmblocks.server.service import Service

CLOSE = {"Connection": "close"}
"""What is left of a body that is not read would be taken for the next request."""


@asynccontextmanager
async def open_body(request: HTTPRequest, service: Service) -> AsyncIterator[Mapping[str, object]]:
    """The JSON object of a request, whose bytes count as held until the end of the block. Raises `RequestError`."""
    held = 0
    content = bytearray()
    try:
        _require_size(int(request.headers.get("content-length", "0")), service.limits.body_bytes)
        async for piece in _read_pieces(request, service.limits.stall_s):
            _require_size(len(content) + len(piece), service.limits.body_bytes)
            service.bodies.reserve(len(piece))
            held += len(piece)
            content += piece
        body = _parse_object(content)
        del content
        yield body
    finally:
        service.bodies.release(held)


async def _read_pieces(request: HTTPRequest, stall_s: float) -> AsyncIterator[bytes]:
    pieces = request.stream()
    while True:
        try:
            async with asyncio.timeout(stall_s):
                piece = await anext(pieces, None)
        except TimeoutError as cause:
            message = f"nothing came of the rest of the body for {stall_s:g} s; send it again."
            raise RequestError(408, message, code="body_timeout", headers=CLOSE) from cause
        except ClientDisconnect as cause:
            raise RequestError(400, "the body was not sent to its end.", code="body_cut", headers=CLOSE) from cause
        if piece is None:
            return
        yield piece


def _require_size(size: int, most: int) -> None:
    if size > most:
        message = f"the body has more than {most:,} bytes; send smaller or fewer images and videos."
        raise RequestError(413, message, code="body_too_large", headers=CLOSE)


def _parse_object(content: bytearray) -> Mapping[str, object]:
    try:
        body = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as cause:  # UnicodeDecodeError is a ValueError
        raise RequestError(400, f"the body is no JSON ({cause!s:.200}).", code="invalid_json") from cause
    if not isinstance(body, dict):
        raise RequestError(400, "the body is no JSON object; write {...}.", code="invalid_json")
    return body


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no number of JSON")
