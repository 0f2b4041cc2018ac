"""A server as a thread or as a program: its socket, its engine, and how it stops."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mmblocks.server.answering import encode_json
from mmblocks.server.app import make_app
from mmblocks.server.errors import RefusedError, make_busy_error
from mmblocks.server.guard import Guard
from mmblocks.server.limits import ServerLimits
from mmblocks.server.service import Service

log = logging.getLogger(__name__)
KEEP_ALIVE_S = 15
GRACE_S = 2
"""What cancelled requests get to write their errors."""


class LimitedProtocol(H11Protocol):
    """HTTP/1.1 with at most so many connections, which end where no whole header comes, or nothing is taken, for a time."""

    max_connections: int
    stall_s: float
    _header_timer: asyncio.TimerHandle | None = None
    _reader_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._refuse_connection(make_busy_error("as many clients are connected as this server takes."))
        else:
            self._watch_header()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget_header_timer()
        self._forget_reader_timer()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget_header_timer()
        elif self._header_timer is None:
            self._watch_header()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader_timer = self.loop.call_later(self.stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_reader_timer()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self.loop.call_later(self.stall_s, self.transport.abort)  # closing waits until all is taken

    def send_400_response(self, msg: str) -> None:
        self._refuse_connection(RefusedError(400, "this is no request of HTTP/1.1.", code="invalid_http"))

    def _watch_header(self) -> None:
        self._header_timer = self.loop.call_later(self.stall_s, self.timeout_keep_alive_handler)

    def _forget_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _forget_reader_timer(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def _refuse_connection(self, error: RefusedError) -> None:
        body = encode_json(error.to_dict())
        lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}", "Content-Type: application/json"]
        lines += [f"{name}: {value}" for name, value in error.headers.items()]
        lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
        self.transport.write("\r\n".join(lines).encode() + body)
        self.transport.close()


def make_protocol(limits: ServerLimits) -> type[LimitedProtocol]:
    """The protocol with the limits of a server."""
    values = {"max_connections": limits.connections, "stall_s": limits.stall_s}
    return type("ServerProtocol", (LimitedProtocol,), values)


class _DrainingServer(uvicorn.Server):
    """Stops in two steps: running requests are answered first, new ones are refused meanwhile."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._deadline = 0.0

    def begin_draining(self, seconds: float) -> None:
        """Refuse new requests and stop when the running ones are answered, at the latest after so many seconds."""
        if not self._service.is_draining:
            self._deadline = time.monotonic() + seconds
            self._service.is_draining = True

    async def on_tick(self, counter: int) -> bool:
        if self._service.is_draining and not self.should_exit:
            is_late = time.monotonic() > self._deadline
            if is_late:  # running answers end with an error
                await asyncio.to_thread(self._service.engine.close)
            self.should_exit = is_late or not self._service.open_requests
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second one stops at once."""
        if self._service.is_draining:
            self.should_exit = self.force_exit = True
        self.begin_draining(self._service.limits.drain_s)


class ModelServer:
    """A model that is served at `url` until `close`, or until the end of a `with` block.

    url: of the page; clients of OpenAI's API take `base_url`.
    """

    def __init__(self, service: Service, listener: socket.socket) -> None:
        self.service, self._socket = service, listener
        host, self.port = listener.getsockname()[:2]
        name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
        self.url = f"http://{name}:{self.port}/"
        self.base_url = f"{self.url}v1"
        config = uvicorn.Config(
            Guard(make_app(service), service),
            http=make_protocol(service.limits),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
        )
        self._server = _DrainingServer(config, service)
        self._thread: threading.Thread | None = None

    def __enter__(self) -> ModelServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"ModelServer({self.service.name!r} at {self.url})"

    def start_thread(self) -> ModelServer:
        """Serve in a thread, from now on."""
        self._thread = threading.Thread(target=self._run, name="mmblocks http", daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.005)
        return self

    def run_until_stopped(self, announce: Callable[[], None]) -> None:
        """Serve in this thread until SIGTERM or Ctrl-C. announce: called when connections are taken."""
        announce()
        self._run()

    def close(self, *, drain: bool = False) -> None:
        """Take no more requests and end: at once, or with `drain` when running ones are answered (`ServerLimits.drain_s`)."""
        self._server.begin_draining(self.service.limits.drain_s if drain else 0.0)
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._end_service()

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._end_service()

    def _end_service(self) -> None:
        self._socket.close()
        self.service.close()
