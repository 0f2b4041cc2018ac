"""The routes of a server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from mmblocks.chat.engine import Piece, Request
from mmblocks.server.answering import (
    ClientLeftError,
    EventStream,
    encode_json,
    explain_error,
    read_pieces,
    wait_while_connected,
)
from mmblocks.server.bodies import open_body
from mmblocks.server.descriptions import describe_model, describe_plan
from mmblocks.server.errors import RequestError
from mmblocks.server.fields import ChatFields
from mmblocks.server.responses import CompletionWriter
from mmblocks.server.service import Service, list_models

PAGE = Path(__file__).parent / "page"
PAGE_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".mp4": "video/mp4",
}
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "media-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
CLIENT_LEFT = 499
"""What nginx calls a request whose client has left; nobody reads it."""

Handler = Callable[[HTTPRequest], Awaitable[Response]]


def make_app(service: Service) -> FastAPI:
    """The application of ASGI."""
    app = FastAPI(title="mmblocks", openapi_url=None)
    created = int(time.time())

    async def list_served_models(request: HTTPRequest) -> Response:
        return make_json(list_models([service.name], created))

    async def show_model(request: HTTPRequest) -> Response:
        needs_key = bool(service.access.keys)
        model = service.engine.model
        return make_json(describe_model(model, service.name, service.limits, service.most_answer_tokens, needs_key))

    async def show_health(request: HTTPRequest) -> Response:
        return make_json({"status": "draining" if service.is_draining else "ok"}, 503 if service.is_draining else 200)

    async def show_metrics(request: HTTPRequest) -> Response:
        text = service.metrics.format_text(service.engine.read_statistics(), service.waiting)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def plan(request: HTTPRequest) -> Response:
        return await plan_messages(request, service)

    async def complete_chat(request: HTTPRequest) -> Response:
        return await answer_chat(request, service)

    routes: tuple[tuple[str, str, Handler], ...] = (
        ("GET", "/v1/models", list_served_models),
        ("POST", "/v1/chat/completions", complete_chat),
        ("GET", "/api/model", show_model),
        ("POST", "/api/plan", plan),
        ("GET", "/health", show_health),
        ("GET", "/metrics", show_metrics),
        ("GET", "/", show_page),
        ("GET", "/page/{name}", show_page),
    )
    for method, path, handler in routes:
        app.add_route(path, handler, methods=[method])
    app.add_exception_handler(RequestError, answer_error)
    app.add_exception_handler(HTTPException, answer_http_error)
    app.add_exception_handler(RequestValidationError, answer_invalid)
    app.add_exception_handler(Exception, answer_error)
    return app


def make_json(content: object, status: int = 200) -> Response:
    """An answer in JSON."""
    return Response(encode_json(content), status, media_type="application/json")


def make_error(error: RequestError) -> Response:
    """An error in OpenAI's form."""
    return Response(encode_json(error.to_dict()), error.status, error.headers, "application/json")


async def answer_http_error(request: HTTPRequest, error: Exception) -> Response:
    """What the framework refuses: unknown addresses and methods."""
    assert isinstance(error, HTTPException)
    what = {
        404: f"there is no {request.url.path[:200]!r} here.",
        405: f"{request.url.path[:200]} takes no {request.method}.",
    }
    message = what.get(error.status_code, str(error.detail))
    codes = {404: "not_found", 405: "method_not_allowed"}
    return make_error(
        RequestError(error.status_code, message, code=codes.get(error.status_code), headers=error.headers)
    )


async def answer_error(request: HTTPRequest, error: Exception) -> Response:
    """An error that a route raises."""
    return make_error(explain_error(error, 0))


async def answer_invalid(request: HTTPRequest, error: Exception) -> Response:
    """What the framework cannot read of a request."""
    return make_error(RequestError(422, f"the request cannot be read ({error!s:.200}).", code="invalid_request"))


async def show_page(request: HTTPRequest) -> Response:
    """A file of the page; their names are those of its folder."""
    name = request.path_params.get("name", "index.html")
    known = {file.name: file for file in PAGE.iterdir() if file.suffix in PAGE_TYPES} if PAGE.is_dir() else {}
    if name not in known:
        raise RequestError(404, f"there is no page file {name[:200]!r}.", code="not_found")
    return Response(known[name].read_bytes(), 200, PAGE_HEADERS, PAGE_TYPES[known[name].suffix])


async def plan_messages(request: HTTPRequest, service: Service) -> Response:
    """Of `POST /api/plan`."""
    async with open_body(request, service) as body:
        for name in body:
            if name not in ("messages", "model"):
                raise RequestError(400, f"a plan has no field {name!r:.80}.", param=name[:80], code="unknown_field")
        messages = body.get("messages")
        prompt = await service.run_in_worker(lambda: service.reader.prepare_prompt(messages))
        return make_json(describe_plan(prompt))


async def answer_chat(http: HTTPRequest, service: Service) -> Response:
    """Of `POST /v1/chat/completions`."""
    async with open_body(http, service) as body:
        began = time.monotonic()
        service.require_model(body.get("model"))
        fields = ChatFields.from_body(body, service.limits, service.most_answer_tokens)
        messages = body.get("messages")
        submitting = service.run_in_worker(lambda: service.submit_prompt(messages, fields), Request.cancel)
        try:
            request = await wait_while_connected(http, submitting)
            writer = CompletionWriter(service.name, service.texts if fields.decoding.log_probs else None)
            if fields.is_streamed:
                return EventStream(service, fields, request, began, writer)
            async with asyncio.timeout(service.limits.request_s):
                pieces = await wait_while_connected(http, collect_pieces(service, request, began))
            return make_json(writer.write_completion(request, pieces))
        except ClientLeftError:
            service.metrics.cancelled += 1
            return Response(status_code=CLIENT_LEFT)
        except Exception as error:
            return make_error(explain_error(error, service.limits.request_s))


async def collect_pieces(service: Service, request: Request, began: float) -> list[Piece]:
    """All pieces of an answer."""
    return [piece async for piece in read_pieces(service, request, began)]
