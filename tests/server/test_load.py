"""Many clients of every kind at once: every request gets its answer or a named error, and nothing is left behind."""

import gc
import json
import random
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmblocks.chat.engine import EngineLimits
from mmblocks.server import ServerLimits
from tests.server.asking import (
    BLUE,
    NAME,
    RED,
    clip,
    make_raw_request,
    make_uri,
    open_socket,
    picture,
    post,
    user,
    wait_until,
)

REQUESTS, CLIENTS = 500, 16
PROMPTS = [
    user("What colour is the circle?"),
    user("How many shapes are there in all?"),
    user(picture(RED), "What?"),
    user(picture(BLUE), "Where is the square?"),
    user(picture(RED), "or", picture(BLUE)),
    user(clip(), "Where to?"),
    [{"role": "system", "content": "Be short."}, *user(picture(BLUE), "What?")],
]
BROKEN = {"type": "image_url", "image_url": {"url": make_uri(b"no image")}}


def make_body(random_, **fields):
    return {"model": NAME, "messages": random_.choice(PROMPTS), "max_tokens": random_.randrange(1, 24), **fields}


class Client:
    """One request of a kind that a number draws; what it got is a word, or an error of the test."""

    def __init__(self, server, number):
        self.server, self.random = server, random.Random(number)
        self.asked = []

    def ask_once(self):
        kinds = [self.answer] * 5 + [self.stream] * 4 + [self.leave] * 2 + [self.read_slowly, self.send_half]
        return self.random.choice([*kinds, self.send_broken, self.send_oversized, self.send_wrong_field])()

    def answer(self):
        body = make_body(self.random)
        status, _, got = post(self.server, "/v1/chat/completions", body)
        if status == 429:
            assert got["error"]["code"] == "queue_full"
            return "queue full"
        assert status == 200, got
        self.asked.append((body, got["choices"][0]["message"]["content"]))
        return "answered"

    def stream(self):
        body = make_body(self.random)
        status, _, got = post(self.server, "/v1/chat/completions", {**body, "stream": True})
        if status == 429:
            return "queue full"
        *events, done, end = got.split("\n\n")
        assert (status, done, end) == (200, "data: [DONE]", "")
        chunks = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
        assert chunks[-1]["finish_reason"] in ("stop", "length")
        self.asked.append((body, "".join(chunk["delta"].get("content", "") for chunk in chunks)))
        return "streamed"

    def leave(self):
        opened = open_socket(self.server, make_raw_request({**make_body(self.random, stream=True), "max_tokens": 200}))
        time.sleep(self.random.random() / 50)
        opened.close()
        return "left"

    def read_slowly(self):
        opened = socket.socket()
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        opened.connect(("127.0.0.1", self.server.port))
        body = make_body(self.random, stream=True)
        opened.sendall(make_raw_request(body))
        content = b""
        while b"[DONE]" not in content and b"queue_full" not in content:
            piece = opened.recv(512)
            assert piece, content
            content += piece
            time.sleep(0.001)
        opened.close()
        return "read slowly"

    def send_half(self):
        content = make_raw_request(make_body(self.random), length=100_000)
        opened = open_socket(self.server, content)
        if self.random.random() < 0.5:
            opened.close()
            return "left a body"
        answer = opened.recv(1 << 16)
        opened.close()
        assert answer.startswith(b"HTTP/1.1 408 "), answer
        return "timed out"

    def send_broken(self):
        body = make_body(self.random) | {"messages": user(picture(RED), BROKEN, "What?")}
        return self.expect(body, 400, "invalid_media", "messages[0].content[1]")

    def send_wrong_field(self):
        return self.expect(make_body(self.random, tools=[{}]), 400, "unsupported_field", "tools")

    def send_oversized(self):
        body = {**make_body(self.random), "user": "x" * 300_000}
        try:
            return self.expect(body, 413, "body_too_large", None)
        except (BrokenPipeError, ConnectionResetError):  # the server has refused before all was sent
            return "body_too_large"

    def expect(self, body, status, code, param):
        got, _, answer = post(self.server, "/v1/chat/completions", body)
        if got == 429 and status != 413:
            return "queue full"
        assert (got, answer["error"]["code"], answer["error"]["param"]) == (status, code, param)
        return code


def run_clients(server, numbers):
    """The clients, and how often each outcome was."""
    clients = [Client(server, number) for number in numbers]
    with ThreadPoolExecutor(CLIENTS) as threads:
        return clients, Counter(threads.map(Client.ask_once, clients))


def list_threads():
    return sorted(thread.name for thread in threading.enumerate())


def count_files():
    gc.collect()
    return len(list(Path("/dev/fd").iterdir()))


def is_idle(server):
    figures, service = server.service.engine.read_statistics(), server.service
    return (figures.running, figures.queued, service.open_requests, service.held_bytes, service.num_preparing) == (
        0,
    ) * 5


@pytest.fixture(scope="module")
def loaded(start_server):
    limits = ServerLimits(stall_s=1.5, body_bytes=200_000)
    engine_limits = EngineLimits(cache_bytes=2 << 20, max_running=12, max_queued=40)
    with start_server(limits=limits, engine_limits=engine_limits) as running:
        yield running


def test_no_request_of_many_is_lost_and_every_answer_is_that_of_a_quiet_server(loaded):
    run_clients(loaded, range(REQUESTS, REQUESTS + 60))  # every thread of the server has begun then
    wait_until(lambda: is_idle(loaded))
    before = list_threads(), count_files()
    clients, outcomes = run_clients(loaded, range(REQUESTS))
    assert sum(outcomes.values()) == REQUESTS
    assert {"answered", "streamed", "left", "read slowly", "left a body", "timed out"} <= set(outcomes), outcomes
    assert {"invalid_media", "unsupported_field", "body_too_large"} <= set(outcomes), outcomes
    assert outcomes["answered"] + outcomes["streamed"] > REQUESTS / 3, outcomes
    wait_until(lambda: is_idle(loaded))
    wait_until(lambda: list_threads() == before[0])
    wait_until(lambda: count_files() <= before[1] + 2)  # a connection that is kept alive for a while, at most
    quiet = {}
    for body, got in (pair for client in clients for pair in client.asked):
        key = json.dumps(body, sort_keys=True)
        if key not in quiet:
            quiet[key] = post(loaded, "/v1/chat/completions", body)[2]["choices"][0]["message"]["content"]
        assert got == quiet[key]
