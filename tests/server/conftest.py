"""A server of a tiny random model, for all tests that leave it as it is."""

import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

import mmblocks
from mmblocks.chat.engine import EngineLimits
from mmblocks.server import ServerLimits, serve
from tests.server.asking import NAME, RED, encode_png


@pytest.fixture(scope="session")
def served_model(tiny_spec):
    """A model that writes many different tokens, parts of characters among them, and other ones for other images."""
    spec = {**tiny_spec, "backbone": {**tiny_spec["backbone"], "tie_embeddings": False}}
    model = mmblocks.build(spec, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="session")
def start_server(served_model):
    """Starts a server of the tiny model with limits of its own."""

    def start(model=None, *, engine_limits=None, **given):
        engine_limits = engine_limits or EngineLimits(cache_bytes=4 << 20, max_queued=64)
        return serve(model or served_model, port=0, name=NAME, engine_limits=engine_limits, **given)

    return start


@pytest.fixture(scope="session")
def server(start_server):
    with start_server(limits=ServerLimits(answer_tokens=300, samples=4)) as running:
        yield running


@pytest.fixture(autouse=True)
def quiet_log(caplog):
    caplog.set_level(logging.ERROR, logger="uvicorn.error")


class ImageHost(ThreadingHTTPServer):
    """A host of one image, and of redirects."""

    daemon_threads = True
    requests = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/image.png"

    def redirect_to(self, url):
        return f"http://127.0.0.1:{self.server_port}/redirect?{url}"


class _ImageHandler(BaseHTTPRequestHandler):
    server: ImageHost

    def do_GET(self):
        self.server.requests += 1
        _, is_redirect, target = self.path.partition("/redirect?")
        content = encode_png(RED)
        self.send_response(302 if is_redirect else 200)
        self.send_header("Location" if is_redirect else "Content-Length", target or str(len(content)))
        self.end_headers()
        self.wfile.write(b"" if is_redirect else content)

    def log_message(self, *_):
        pass


@pytest.fixture
def image_host():
    with ImageHost(("127.0.0.1", 0), _ImageHandler) as host:
        thread = threading.Thread(target=host.serve_forever, daemon=True)
        thread.start()
        yield host
        host.shutdown()
        thread.join()
