"""What every request passes: whom it names as its host, where it comes from, its key; and what every answer is counted by."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmblocks.server.answering import encode_json
from mmblocks.server.errors import RefusedError
from mmblocks.server.service import Service

PRIVATE_PATHS = ("/v1/", "/api/plan", "/metrics")
"""What needs a key where there are keys: not the page, nor what it must know before it can ask for a key."""
COUNTED_PATHS = ("/v1/chat/completions", "/v1/models", "/api/model", "/api/plan", "/health", "/metrics", "/")
SAFE_HEADERS = ((b"x-content-type-options", b"nosniff"),)


class Guard:
    """An ASGI application around another."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        route = path if path in COUNTED_PATHS else "page" if path.startswith("/page/") else "other"

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._service.metrics.responses[route, message["status"]] += 1
                message = {**message, "headers": [*message.get("headers", ()), *SAFE_HEADERS]}
            await send(message)

        self._service.open_requests += 1
        try:
            self._check_request(scope["method"], path, Headers(scope=scope))
        except RefusedError as error:
            body, headers = encode_json(error.to_dict()), {"Connection": "close", **error.headers}
            await Response(body, error.status, headers, "application/json")(scope, receive, send_counted)
        else:
            await self._app(scope, receive, send_counted)
        finally:
            self._service.open_requests -= 1

    def _check_request(self, method: str, path: str, headers: Headers) -> None:
        """Raises `RefusedError`."""
        access, host = self._service.access, headers.get("host", "")
        if access.hosts is not None and _read_host_name(host) not in access.hosts:
            message = (
                f"this server is not {host[:100]!r}; ask it as {access.hosts[0]} (or start it with --allow-hosts)."
            )
            raise RefusedError(403, message, code="wrong_host")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise RefusedError(403, "pages of other sites may not ask this server.", code="wrong_origin")
        if self._service.is_draining and method == "POST":
            raise RefusedError(503, "the server is stopping.", code="stopping", headers={"Retry-After": "5"})
        scheme, _, key = headers.get("authorization", "").partition(" ")
        is_private = any(path == one or (one.endswith("/") and path.startswith(one)) for one in PRIVATE_PATHS)
        if is_private and not access.accepts_key(key if scheme.lower() == "bearer" else ""):
            message = "the API key is missing or wrong; send 'Authorization: Bearer KEY'."
            raise RefusedError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _read_host_name(host: str) -> str:
    """The name in a Host header, without its port; "" for none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # half of an IPv6 address
        return ""
