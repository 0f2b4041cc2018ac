"""Clients that leave, stall or send too much, full queues, failing models and stops: each has an end, and a named one."""

import copy
import gc
import json
import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import openai
import pytest

import mmblocks
from mmblocks.assets import find_tiny_model
from mmblocks.chat import answer, image
from mmblocks.chat.engine import EngineLimits
from mmblocks.conversation import Conversation, Message, Text
from mmblocks.errors import ConfigError
from mmblocks.server import ServerLimits
from tests.server.asking import (
    NAME,
    QUESTION,
    RED,
    ask,
    encode_png,
    make_client,
    make_raw_request,
    open_socket,
    picture,
    post,
    request,
    user,
    wait_until,
)


class Brake:
    """Makes a model slow, and fail where it is told to."""

    def __init__(self, model):
        self.model = copy.deepcopy(model)
        self.seconds, self.error = 0.0, None
        self._compute_logits = self.model.backbone.compute_logits
        self.model.backbone.compute_logits = self.compute_logits

    def compute_logits(self, *arguments):
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return self._compute_logits(*arguments)


@pytest.fixture
def brake(served_model):
    return Brake(served_model)


@contextmanager
def serving(start_server, brake, *, max_running=64, max_queued=64, **limits):
    engine_limits = EngineLimits(cache_bytes=4 << 20, max_running=max_running, max_queued=max_queued)
    with start_server(brake.model, engine_limits=engine_limits, limits=ServerLimits(**limits)) as running:
        yield running
        brake.seconds, brake.error = 0.0, None


def count(server):
    return server.service.engine.read_statistics()


def is_idle(server):
    figures = count(server)
    return (figures.running, figures.queued, server.service.open_requests, server.service.held_bytes) == (0, 0, 0, 0)


def read_all(opened):
    """What comes until the connection is closed, or reset with bytes on their way."""
    content = b""
    try:
        while piece := opened.recv(1 << 16):
            content += piece
    except ConnectionError:
        pass
    opened.close()
    return content


def send_until_refused(opened, pieces, pause_s=0.0):
    """How many pieces could be sent before the other side closed the connection."""
    sent = 0
    with opened, suppress(OSError):
        for piece in pieces:
            opened.sendall(piece)
            sent += 1
            time.sleep(pause_s)
    return sent


def body_of(answer):
    return json.loads(answer.partition(b"\r\n\r\n")[2])


# Clients that leave --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_request(start_server, brake, stream):
    with serving(start_server, brake) as server:
        brake.seconds = 0.02
        body = {"model": NAME, "messages": QUESTION, "max_tokens": 900, "stream": stream}
        opened = open_socket(server, make_raw_request(body))
        wait_until(lambda: count(server).answer_tokens >= 3)
        opened.close()
        wait_until(lambda: is_idle(server), 5)
        assert count(server).answer_tokens < 400
        assert server.service.metrics.cancelled == 1


def test_a_client_of_openai_that_closes_its_stream_ends_its_request(start_server, brake):
    with serving(start_server, brake) as server:
        brake.seconds = 0.02
        with ask(server, max_tokens=900, stream=True) as stream:
            assert next(iter(stream)).choices
        wait_until(lambda: is_idle(server), 5)
        assert count(server).answer_tokens < 400


def test_a_client_that_leaves_the_queue_is_forgotten(start_server, brake):
    with serving(start_server, brake, max_running=1) as server:
        brake.seconds = 0.02
        body = make_raw_request({"model": NAME, "messages": QUESTION, "max_tokens": 900})
        first = open_socket(server, body)
        wait_until(lambda: count(server).running == 1)
        second = open_socket(server, body)
        wait_until(lambda: count(server).queued == 1)
        second.close()
        wait_until(lambda: count(server).queued == 0, 5)
        assert count(server).running == 1
        first.close()
        wait_until(lambda: is_idle(server), 5)


def test_a_reader_who_takes_nothing_loses_the_answer_and_holds_no_memory(start_server, served_model, caplog):
    caplog.set_level(logging.CRITICAL)
    with start_server(limits=ServerLimits(stall_s=1.0)) as server:
        body = {
            "model": NAME,
            "messages": QUESTION,
            "max_tokens": 900,
            "stream": True,
            "n": 8,
            "temperature": 1.0,
            "logprobs": True,
            "top_logprobs": 20,
        }
        opened = socket.socket()
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        opened.connect(("127.0.0.1", server.port))
        opened.sendall(make_raw_request(body))
        wait_until(lambda: server.service.metrics.responses["/v1/chat/completions", 200] == 1)
        wait_until(lambda: is_idle(server), 60)
        wait_until(lambda: not server._server.server_state.connections)  # though its client has not left
        assert b"[DONE]" not in read_all(opened)
        assert ask(server).choices


def test_a_reader_who_is_slow_but_reads_gets_all_of_it(start_server):
    with start_server(limits=ServerLimits(stall_s=2.0)) as server:
        body = {"model": NAME, "messages": QUESTION, "max_tokens": 200, "stream": True, "logprobs": True}
        opened = socket.socket()
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        opened.connect(("127.0.0.1", server.port))
        opened.sendall(make_raw_request({**body, "top_logprobs": 20}))
        content = b""
        while b"[DONE]" not in content:
            content += opened.recv(8192)
            time.sleep(0.005)
        opened.close()
        assert content.count(b'"finish_reason":"') == 1


# Bodies --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def impatient(start_server):
    with start_server(limits=ServerLimits(stall_s=0.4, body_bytes=20_000, connections=20)) as running:
        yield running


@pytest.mark.parametrize("sent", [b"", b'{"model": "ti'])
def test_a_body_of_which_nothing_more_comes_is_given_up(impatient, sent):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
    answer = read_all(open_socket(impatient, head + sent))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert body_of(answer)["error"]["code"] == "body_timeout"
    wait_until(lambda: is_idle(impatient))


def test_a_body_that_comes_byte_by_byte_has_an_end(start_server):
    with start_server(limits=ServerLimits(request_s=0.5, stall_s=0.4)) as running:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
        opened = open_socket(running, head)
        assert send_until_refused(opened, [b" "] * 900, pause_s=0.02) < 900
        assert running.service.metrics.responses["/v1/chat/completions", 408] == 1


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: "])
def test_a_connection_without_a_whole_header_is_closed(impatient, sent):
    began = time.monotonic()
    assert read_all(open_socket(impatient, sent)) == b""
    assert 0.2 < time.monotonic() - began < 10


def test_a_header_that_comes_letter_by_letter_does_not_hold_its_connection(impatient):
    opened, began = open_socket(impatient), time.monotonic()
    letters = b"GET / HTTP/1.1\r\nX-A: " + b"a" * 1000
    assert send_until_refused(opened, (bytes([letter]) for letter in letters), pause_s=0.02) < len(letters)
    assert time.monotonic() - began < 10


def test_a_connection_may_be_used_again_after_a_pause(impatient):
    opened = open_socket(impatient)
    for _ in range(3):
        opened.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        content = b""
        while b'{"status":"ok"}' not in content:
            content += opened.recv(1000)
        time.sleep(0.6)  # longer than a header may take, shorter than a connection is kept
    opened.close()


def test_a_body_that_is_announced_as_too_large_is_refused_before_it_is_sent(impatient):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20001\r\n\r\n"
    answer = read_all(open_socket(impatient, head))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert body_of(answer)["error"]["code"] == "body_too_large"
    assert b"connection: close" in answer.lower()


def test_a_body_without_a_length_is_cut_off_where_it_is_too_large(impatient):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    opened = open_socket(impatient, head)
    chunks = [b"3e8\r\n" + b" " * 1000 + b"\r\n"] * 10_000
    assert send_until_refused(opened, chunks) < len(chunks)
    assert impatient.service.metrics.responses["/v1/chat/completions", 413] >= 1
    wait_until(lambda: is_idle(impatient))


def test_a_large_body_within_the_limit_is_read(start_server, server):
    padding = {"role": "user", "content": " " * 600_000}
    with pytest.raises(openai.BadRequestError, match="tokens"):
        ask(server, [padding, *QUESTION])
    wait_until(lambda: is_idle(server))


def test_the_client_of_openai_does_not_send_a_large_body_again(impatient):
    with pytest.raises(openai.APIStatusError) as found:
        make_client(impatient).with_options(max_retries=2).chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": "a" * 30_000}]
        )
    assert found.value.status_code == 413


def test_bodies_that_are_held_together_have_a_limit(start_server, brake):
    with serving(start_server, brake, open_body_bytes=3000) as server:
        brake.seconds = 0.02
        content = [{"role": "user", "content": "circle " * 200}]
        first = open_socket(server, make_raw_request({"model": NAME, "messages": content, "max_tokens": 200}))
        wait_until(lambda: server.service.held_bytes > 1400)
        second = open_socket(server, make_raw_request({"model": NAME, "messages": content, "max_tokens": 200}))
        wait_until(lambda: server.service.held_bytes > 2800)
        status, headers, answer = post(server, "/v1/chat/completions", {"model": NAME, "messages": content})
        assert (status, answer["error"]["code"], headers["retry-after"]) == (429, "queue_full", "1")
        first.close()
        second.close()
        wait_until(lambda: is_idle(server), 5)
        assert ask(server, content).choices


def test_more_connections_than_allowed_are_refused_and_the_others_served(impatient):
    opened = [open_socket(impatient) for _ in range(20)]
    wait_until(lambda: len(impatient._server.server_state.connections) == 20)
    answer = read_all(open_socket(impatient))
    assert answer.startswith(b"HTTP/1.1 429 ")
    assert body_of(answer)["error"]["type"] == "rate_limit_error"
    for one in opened:
        one.close()
    wait_until(lambda: not impatient._server.server_state.connections)
    assert request(impatient, "GET", "/health")[0] == 200


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", b"HELLO\r\n\r\n", b"GET / HTTP/9\r\n\r\n"]
)
def test_what_is_no_http_is_refused_in_the_form_of_openai(impatient, sent):
    answer = read_all(open_socket(impatient, sent))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert body_of(answer)["error"]["code"] == "invalid_http"


# The queue, the model and the time ---------------------------------------------------------------------------------------------


def test_a_full_queue_is_429_with_when_to_come_back_and_a_client_that_comes_back_is_answered(start_server, brake):
    with serving(start_server, brake, max_running=1, max_queued=1) as server, ThreadPoolExecutor(2) as threads:
        brake.seconds = 0.02
        running = threads.submit(ask, server, max_tokens=100)
        wait_until(lambda: count(server).running == 1)
        waiting = threads.submit(ask, server, max_tokens=2)
        wait_until(lambda: count(server).queued == 1)
        status, headers, body = post(server, "/v1/chat/completions", {"model": NAME, "messages": QUESTION})
        assert (status, headers["retry-after"]) == (429, "1")
        assert body["error"]["type"] == "rate_limit_error"
        with pytest.raises(openai.RateLimitError):
            ask(server)
        brake.seconds = 0.002
        patient = make_client(server).with_options(max_retries=5)
        assert patient.chat.completions.create(model=NAME, messages=QUESTION, max_tokens=2).choices
        assert running.result().choices
        assert waiting.result().choices


@pytest.mark.parametrize("error", [RuntimeError("secret of the machine"), MemoryError()])
def test_a_step_that_raises_is_500_without_its_text_and_the_next_request_is_answered(
    start_server, brake, caplog, error
):
    caplog.set_level(logging.CRITICAL)
    with serving(start_server, brake) as server:
        brake.error = error
        status, _, body = post(server, "/v1/chat/completions", {"model": NAME, "messages": QUESTION})
        assert (status, body["error"]["type"], body["error"]["code"]) == (500, "server_error", "model_failed")
        assert "secret" not in json.dumps(body)
        assert "Traceback" not in json.dumps(body)
        brake.error = None
        assert ask(server).choices == ask(server, stream=False).choices
        wait_until(lambda: is_idle(server))


def test_a_step_that_raises_in_the_middle_of_a_stream_is_an_error_of_the_client(start_server, brake, caplog):
    caplog.set_level(logging.CRITICAL)
    with serving(start_server, brake) as server:
        brake.seconds = 0.01
        pieces = iter(ask(server, max_tokens=900, stream=True))
        assert next(pieces).choices
        brake.error = RuntimeError("secret of the machine")
        with pytest.raises(openai.APIError, match="the model failed") as found:
            list(pieces)
        assert found.value.body["code"] == "model_failed"
        assert "secret" not in str(found.value.body)
        brake.error, brake.seconds = None, 0
        assert ask(server).choices


def test_an_answer_that_takes_too_long_is_stopped(start_server, brake):
    with serving(start_server, brake, request_s=0.5) as server:
        brake.seconds = 0.02
        status, headers, body = post(
            server, "/v1/chat/completions", {"model": NAME, "messages": QUESTION, "max_tokens": 900}
        )
        assert (status, body["error"]["code"], headers["x-should-retry"]) == (504, "request_timeout", "false")
        with pytest.raises(openai.APIError, match=r"more than 0.5 s"):
            list(ask(server, max_tokens=900, stream=True))
        wait_until(lambda: is_idle(server), 5)
        brake.seconds = 0
        assert ask(server, max_tokens=2).choices


# Ends --------------------------------------------------------------------------------------------------------------------------


def test_a_server_that_drains_answers_what_runs_and_refuses_what_is_new(start_server, brake):
    with serving(start_server, brake) as server, ThreadPoolExecutor(2) as threads:
        brake.seconds = 0.02
        running = threads.submit(ask, server, max_tokens=60)
        wait_until(lambda: count(server).running == 1)
        ending = threads.submit(server.close, drain=True)
        wait_until(lambda: server.service.is_draining)
        status, headers, body = post(server, "/v1/chat/completions", {"model": NAME, "messages": QUESTION})
        assert (status, body["error"]["code"], headers["retry-after"]) == (503, "stopping", "5")
        assert request(server, "GET", "/health")[0] == 503
        assert running.result().usage.completion_tokens == 60
        ending.result(timeout=20)
    with pytest.raises(openai.APIConnectionError):
        ask(server)


def test_draining_has_an_end_and_says_so_to_who_is_still_answered(start_server, brake):
    with serving(start_server, brake, drain_s=0.3) as server:
        brake.seconds = 0.02
        pieces = iter(ask(server, max_tokens=900, stream=True))
        next(pieces)
        began = time.monotonic()
        ending = threading.Thread(target=server.close, kwargs={"drain": True})
        ending.start()
        with pytest.raises(openai.APIError, match="stopping"):
            list(pieces)
        ending.join(10)
        assert time.monotonic() - began < 8


def count_files():
    gc.collect()
    return len(list(Path("/dev/fd").iterdir()))


def test_a_server_may_be_closed_twice_and_leaves_no_thread_and_no_file(start_server):
    body = {"model": NAME, "messages": user(picture(RED), "What?"), "max_tokens": 3}
    with start_server() as server:
        assert post(server, "/v1/chat/completions", body)[0] == 200
    threads, files = threading.active_count(), count_files()
    for _ in range(3):
        with start_server() as server:
            assert post(server, "/v1/chat/completions", body)[0] == 200
        server.close()
        server.close(drain=True)
    wait_until(lambda: threading.active_count() <= threads)
    wait_until(lambda: count_files() <= files)


def test_two_servers_do_not_share_a_port(start_server, served_model, server):
    with pytest.raises(ConfigError, match=rf"127.0.0.1:{server.port} cannot be listened on .*0 takes a free one"):
        mmblocks.serve(served_model, port=server.port)
    assert ask(server).choices


@pytest.mark.parametrize(("host", "port"), [("256.1.1.1", 0), ("127.0.0.1", 70_000), ("nowhere.invalid", 0)])
def test_an_address_that_is_none_is_a_named_error(served_model, host, port):
    with pytest.raises(ConfigError, match="cannot be listened on"):
        mmblocks.serve(served_model, host=host, port=port)


def test_a_notebook_serves_a_model_or_what_names_one():
    (wanted,) = answer(mmblocks.load(find_tiny_model()), [talk_about_red()])
    with mmblocks.serve(find_tiny_model(), port=0) as server:
        assert repr(server) == f"ModelServer('tiny' at {server.url})"
        got = ask(server, user(picture(RED), "How many shapes are there?"), model="tiny")
    assert got.choices[0].message.content == wanted


def talk_about_red():
    parts = (image(encode_png(RED)), Text("\n"), Text("How many shapes are there?"))
    return Conversation((Message("user", parts),))


@pytest.mark.parametrize(
    "given",
    [
        {"limits": 3},
        {"api_keys": [""]},
        {"api_keys": ["a b"]},
        {"api_keys": ["ü"]},
        {"api_keys": "secret"},
        {"allow_urls": "a.b"},
        {"allow_hosts": "a.b"},
    ],
)
def test_settings_that_a_server_cannot_have_are_refused(served_model, given):
    with pytest.raises(ConfigError, match=r"server: "):
        mmblocks.serve(served_model, port=0, **given)


@pytest.mark.parametrize("given", [{"body_bytes": 0}, {"stall_s": float("inf")}, {"frames": 1.5}, {"samples": True}])
def test_limits_that_are_none_are_refused(given):
    with pytest.raises(ConfigError, match=f"server: {next(iter(given))}="):
        ServerLimits(**given)
