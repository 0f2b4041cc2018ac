"""The routes of a server."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from mmblocks.chat.engine import Request
from mmblocks.model.generate import StopSequences
from mmblocks.server.answering import (
    Answering,
    ClientLeftError,
    EventStream,
    encode_json,
    explain_error,
    wait_while_connected,
)
from mmblocks.server.bodies import HeldBody, read_body
from mmblocks.server.descriptions import describe_model, describe_plan
from mmblocks.server.errors import RefusedError
from mmblocks.server.fields import ChatFields
from mmblocks.server.responses import CompletionWriter
from mmblocks.server.service import Service

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

Handler = Callable[[Service, HTTPRequest], Awaitable[Response]]


def make_app(service: Service) -> FastAPI:
    """The application of ASGI."""
    app = FastAPI(title="mmblocks", openapi_url=None)
    routes: tuple[tuple[str, str, Handler], ...] = (
        ("GET", "/v1/models", list_models),
        ("GET", "/v1/models/{name:path}", show_listed_model),
        ("POST", "/v1/chat/completions", answer_chat),
        ("GET", "/api/model", show_model),
        ("POST", "/api/plan", plan_messages),
        ("GET", "/health", show_health),
        ("GET", "/metrics", show_metrics),
        ("GET", "/", show_page),
        ("GET", "/page/{name}", show_page),
    )
    for method, path, handler in routes:
        app.add_route(path, _answer_errors(service, handler), methods=[method])
    app.add_exception_handler(HTTPException, answer_http_error)
    return app


def _answer_errors(service: Service, handler: Handler) -> Callable[[HTTPRequest], Awaitable[Response]]:
    """A route whose errors are answered in OpenAI's form."""

    async def answer(request: HTTPRequest) -> Response:
        try:
            return await handler(service, request)
        except ClientLeftError:
            service.metrics.cancelled += 1
            return Response(status_code=CLIENT_LEFT)
        except Exception as error:
            return make_error(explain_error(error, service.limits.request_s))

    return answer


def make_json(content: object, status: int = 200) -> Response:
    """An answer in JSON."""
    return Response(encode_json(content), status, media_type="application/json")


def make_error(error: RefusedError) -> Response:
    """An error in OpenAI's form."""
    return Response(encode_json(error.to_dict()), error.status, error.headers, "application/json")


async def answer_http_error(request: HTTPRequest, error: Exception) -> Response:
    """What the framework refuses: unknown addresses and methods."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    messages = {404: f"there is no {path!r} here.", 405: f"{path} takes no {request.method}."}
    codes = {404: "not_found", 405: "method_not_allowed"}
    message, code = messages.get(error.status_code, str(error.detail)), codes.get(error.status_code)
    return make_error(RefusedError(error.status_code, message, code=code, headers=error.headers))


async def list_models(service: Service, request: HTTPRequest) -> Response:
    """Of `GET /v1/models`."""
    return make_json({"object": "list", "data": [_describe_listed(service)]})


async def show_listed_model(service: Service, request: HTTPRequest) -> Response:
    """Of `GET /v1/models/NAME`."""
    service.require_model(request.path_params["name"])
    return make_json(_describe_listed(service))


def _describe_listed(service: Service) -> dict:
    return {"id": service.name, "object": "model", "created": service.created, "owned_by": "mmblocks"}


async def show_model(service: Service, request: HTTPRequest) -> Response:
    """Of `GET /api/model`."""
    limits = {**asdict(service.limits), "answer_tokens": service.most_answer_tokens}
    return make_json(describe_model(service.engine.model, service.name, limits, needs_key=bool(service.access.keys)))


async def show_health(service: Service, request: HTTPRequest) -> Response:
    """Of `GET /health`."""
    return make_json({"status": "stopping" if service.is_draining else "ok"}, 503 if service.is_draining else 200)


async def show_metrics(service: Service, request: HTTPRequest) -> Response:
    """Of `GET /metrics`."""
    text = service.metrics.format_text(service.engine.read_statistics(), service.num_preparing)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def show_page(service: Service, request: HTTPRequest) -> Response:
    """A file of the page; their names are those of its folder."""
    name = request.path_params.get("name", "index.html")
    known = {file.name: file for file in PAGE.iterdir() if file.suffix in PAGE_TYPES}
    if name not in known:
        raise RefusedError(404, f"there is no page file {name[:200]!r}.", code="not_found")
    return Response(known[name].read_bytes(), 200, PAGE_HEADERS, PAGE_TYPES[known[name].suffix])


async def plan_messages(service: Service, http: HTTPRequest) -> Response:
    """Of `POST /api/plan`."""
    held = HeldBody(service)
    try:
        body = await read_body(http, held)
        for name in body:
            if name not in ("messages", "model"):
                raise RefusedError(400, f"a plan has no field {name!r:.80}.", param=name[:80], code="unknown_field")
        messages = body.pop("messages", None)
        preparing = service.run_in_worker(lambda: service.reader.prepare_prompt(messages))
        return make_json(describe_plan(await wait_while_connected(http.receive, preparing)))
    finally:
        held.release()


async def answer_chat(service: Service, http: HTTPRequest) -> Response:
    """Of `POST /v1/chat/completions`."""
    held, is_streaming = HeldBody(service), False
    try:
        body = await read_body(http, held)
        began = time.monotonic()
        service.require_model(body.pop("model", None))
        messages = [body.pop("messages", None)]  # to be forgotten as soon as it is read: it may be large
        fields = ChatFields.from_body(body, service.limits, service.most_answer_tokens)
        submitting = service.run_in_worker(lambda: service.submit_prompt(messages.pop(), fields), Request.cancel)
        request = await wait_while_connected(http.receive, submitting)
        answering = Answering(service, fields, request, make_writer(service, fields), held, began)
        if is_streaming := fields.is_streamed:
            return EventStream(answering)
        return make_json(await wait_while_connected(http.receive, answering.write_completion()))
    finally:
        if not is_streaming:
            held.release()


def make_writer(service: Service, fields: ChatFields) -> CompletionWriter:
    """The writer of an answer."""
    stop = StopSequences.from_model(service.engine.model, fields.decoding.stop)
    texts = service.texts if fields.decoding.log_probs else None
    return CompletionWriter(service.name, texts, frozenset(stop.tokens))
