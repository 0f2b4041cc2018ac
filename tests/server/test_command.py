"""`mmblocks serve` as a program: what it prints, what it refuses, and how it stops; and a judge that asks it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

import openai
import pytest

from mmblocks.assets import find_tiny_model
from mmblocks.cli import main, serve
from mmblocks.eval.judge import Judge
from mmblocks.eval.tasks import JudgeRequest
from mmblocks.server.addresses import listen_on
from tests.server.asking import NAME, QUESTION, RED, ask, picture, post, request, user, wait_until

COMMAND = [sys.executable, "-m", "mmblocks", "serve"]


@contextmanager
def running(*options, port=0):
    """The program, when it has printed its address."""
    process = subprocess.Popen(
        [*COMMAND, "--port", str(port), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"page: +http://127\.0\.0\.1:(\d+)/\n", line)
        assert found, (line, process.stderr.read())
        port = int(found[1])
        assert process.stdout.readline() == f"API:    http://127.0.0.1:{port}/v1   model tiny\n"
        yield SimpleNamespace(port=port, base_url=f"http://127.0.0.1:{port}/v1", process=process)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_running_answer_is_finished_at_a_stop_and_the_program_ends_with_0(sign):
    with running() as server:
        messages = user(picture(RED), "How many shapes are there?")
        pieces = iter(ask(server, messages, model="tiny", max_tokens=1000, min_tokens=300, stream=True))
        next(pieces)
        server.process.send_signal(sign)
        wait_until(lambda: request(server, "GET", "/health")[0] == 503)
        status, _, body = post(server, "/v1/chat/completions", {"model": "tiny", "messages": QUESTION})
        assert (status, body["error"]["code"]) == (503, "stopping")
        assert list(pieces)[-1].choices[0].finish_reason in ("stop", "length")
        assert server.process.wait(20) == 0
        assert "Traceback" not in server.process.stderr.read()


def test_a_program_that_was_killed_is_started_again_on_its_port():
    with running() as first:
        wanted = ask(first, model="tiny").choices
        first.process.kill()
        first.process.wait()
        with pytest.raises(openai.APIConnectionError):
            ask(first, model="tiny")
        with running(port=first.port) as second:
            assert second.port == first.port
            assert ask(second, model="tiny").choices == wanted
            code = subprocess.run([*COMMAND, "--port", str(second.port)], capture_output=True, text=True, timeout=60)
            assert code.returncode == 2
            assert f"127.0.0.1:{second.port} cannot be listened on" in code.stderr


def test_keys_are_read_from_a_file(tmp_path):
    (tmp_path / "keys").write_text("first\nsecond\n")
    with running("--api-key-file", str(tmp_path / "keys"), "--name", "tiny", "--max-answer-tokens", "5") as server:
        assert request(server, "GET", "/v1/models")[0] == 401
        assert request(server, "GET", "/v1/models", headers={"Authorization": "Bearer second"})[0] == 200
        told = request(server, "GET", "/api/model")[2]
        assert (told["needs_key"], told["limits"]["answer_tokens"]) == (True, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--api-key-file", "nowhere"], "nowhere cannot be read"),
        (["--api-key-file", os.devnull], "has no key"),
        (["--port", "99999"], "cannot be listened on"),
        (["--max-queued", "0"], "max_queued=0"),
        (["--cache-gib", "0.000001"], "cache_bytes="),
        (["--max-body-mib", "0"], "body_bytes=0"),
        (["--drain-seconds", "-1"], "drain_s=-1"),
        (["no/such/model"], "no/such/model"),
    ],
)
def test_what_cannot_be_served_is_a_named_error(options, message, capsys):
    assert main(["serve", *options]) in (1, 2)
    assert message in capsys.readouterr().err


def test_an_address_that_others_reach_without_a_key_is_warned_of(capsys):
    for host, has_keys, warns in (
        ("0.0.0.0", False, True),
        ("0.0.0.0", True, False),
        ("127.0.0.1", False, False),
        ("::", False, True),
    ):
        serve.warn_of_open_address(host, has_keys=has_keys)
        assert ("everybody who reaches" in capsys.readouterr().err) == warns


def test_a_missing_package_is_named_before_a_model_is_read(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    began = time.monotonic()
    assert main(["serve", str(find_tiny_model())]) == 1
    assert "pip install 'mmblocks[serve]'" in capsys.readouterr().err
    assert time.monotonic() - began < 20


def test_a_judge_asks_a_model_that_is_served(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    judge = Judge(model=NAME, cache=tmp_path / "cache", base_url=server.base_url, retries=0)
    asked = {
        "text": JudgeRequest(tuple(QUESTION), max_tokens=8),
        "image": JudgeRequest(tuple(user(picture(RED), "What?")), max_tokens=8),
    }
    replies = {reply.key: reply for reply in judge.ask_all(asked)}
    assert [reply.fault for reply in replies.values()] == [None, None]
    for key, request_ in asked.items():
        got = ask(server, list(request_.messages))
        assert replies[key].text == got.choices[0].message.content
        assert replies[key].prompt_tokens == got.usage.prompt_tokens
    assert all(reply.cached for reply in judge.ask_all(asked))
    refused = {"long": JudgeRequest(tuple(QUESTION), max_tokens=500)}
    (reply,) = judge.ask_all(refused)
    assert "max_tokens" in reply.fault


def test_answers_leave_at_once_on_connections_that_stay_open():
    with listen_on("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
