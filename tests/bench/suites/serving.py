"""Servers of OpenAI's chat completions: `mmblocks serve`, `transformers serve`, and a loop over `generate`.

Each side is a process of its own with one thread and the same weights. Times are of the clock on the wall.
"""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

import mmblocks
from mmblocks.assets import find_media
from mmblocks.cli import main
from mmblocks.conversation import Visual
from mmblocks.errors import MMBlocksError
from mmblocks.model.onevision import OneVision
from tests.bench.suites.rows import Row
from tests.bench.suites.run import Run, Unequal
from tests.bench.suites.sizes import Shown, make_model

NAME = "serving"
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
START_S = 180.0
CONCURRENCY = 16
ONE = mmblocks.Decoding(max_new_tokens=1)
LOOP = """\
import json, sys, time
import torch, transformers
from PIL import Image
import base64, io

torch.set_num_threads(1)
folder, new = sys.argv[1], int(sys.argv[2])
processor = transformers.AutoProcessor.from_pretrained(folder)
model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()

def to_part(part):
    if part["type"] == "text":
        return part
    content = base64.b64decode(part["image_url"]["url"].partition(",")[2])
    return {"type": "image", "image": Image.open(io.BytesIO(content)).convert("RGB")}

def answer(messages):
    messages = [{"role": m["role"], "content": [to_part(part) for part in m["content"]]} for m in messages]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    written = model.generate(**inputs, max_new_tokens=new, do_sample=False)
    return len(written[0]) - inputs["input_ids"].shape[1]

asked = json.load(sys.stdin)
answer(asked[0])
begins = time.perf_counter()
tokens = sum(map(answer, asked))
print(json.dumps({"tokens": tokens, "seconds": time.perf_counter() - begins}))
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered: its text, its tokens, and the seconds until its end."""

    text: str
    tokens: int
    seconds: float


def measure(run: Run) -> Iterator[Row]:
    """Throughput of mixed requests, how it grows with their number at a time, and times to the first token."""
    number, new = (8, 3) if run.tiny else (64, 32)
    model = make_model(run.scale, run.device, run.dtype)
    with TemporaryDirectory() as place:
        ours, exported = Path(place, "model"), Path(place, "exported")
        mmblocks.save(model, ours)
        if main(["convert", str(ours), str(exported)]):
            raise MMBlocksError("the model could not be exported for transformers.")
        asked = make_requests(run.scale.shown, number)
        with serve_ours(ours) as (url, name):
            yield from _measure_throughput(run, url, name, exported, asked, new)
            yield from _measure_growth(run, url, name, asked, new)
            yield from _measure_first_tokens(run, url, name, ours)


def make_requests(shown: Shown, number: int) -> list[Any]:
    """Messages of one image, two images or none, whose questions differ."""
    requests = []
    for i in range(number):
        rng = np.random.default_rng(i)
        images = [
            _make_part(rng.integers(0, 256, (*shown.view, 3), dtype=np.uint8)) for _ in range((1, 0, 1, 2)[i % 4])
        ]
        text = {"type": "text", "text": f"Number {i}: which colour has the circle?" + " Look at the square." * (i % 5)}
        requests.append([{"role": "user", "content": [*images, text]}])
    return requests


def _make_part(pixels: np.ndarray) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()},
    }


# Sides ------------------------------------------------------------------------------------------------------------------


@contextmanager
def serve_ours(folder: Path) -> Iterator[tuple[str, str]]:
    """The address of `mmblocks serve`, and what it calls the model."""
    port = _find_port()
    command = [sys.executable, "-m", "mmblocks", "serve", str(folder), "--port", str(port)]
    with _run_server(command, port):
        yield f"http://127.0.0.1:{port}", folder.name


@contextmanager
def serve_theirs(folder: Path) -> Iterator[tuple[str, str]]:
    """The address of `transformers serve`, and what it calls the model."""
    port = _find_port()
    program = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; main()"
    command = [sys.executable, "-c", program, "serve", str(folder), "--device", "cpu", "--port", str(port)]
    with _run_server(command, port):
        yield f"http://127.0.0.1:{port}", str(folder)


def _find_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def _run_server(command: Sequence[str], port: int) -> Iterator[None]:
    with TemporaryDirectory() as place, Path(place, "log").open("w+") as log:
        process = subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}, stdout=log, stderr=log)
        try:
            ends = time.monotonic() + START_S
            while not _is_healthy(port):
                if process.poll() is not None or time.monotonic() > ends:
                    log.seek(0)
                    raise MMBlocksError(f"{' '.join(command[1:4])} did not start: {log.read()[-2000:]}")
                time.sleep(0.2)
            yield
        finally:
            process.terminate()
            process.wait(60)


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as found:
            return found.status == 200
    except OSError:
        return False


# Clients ----------------------------------------------------------------------------------------------------------------


def ask(url: str, name: str, messages: Any, new: int) -> Answer:
    """One request, streamed."""
    body = {
        "model": name,
        "messages": messages,
        "max_tokens": new,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    begins, text, tokens = time.perf_counter(), "", 0
    try:
        with urllib.request.urlopen(request, timeout=600) as lines:
            for line in lines:
                chunk = _read_chunk(line)
                tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
                for choice in chunk.get("choices", ()):
                    text += choice["delta"].get("content") or ""
    except urllib.error.HTTPError as refused:
        raise MMBlocksError(f"{url} answered {refused.code}: {refused.read()[:500]!r}") from refused
    return Answer(text, tokens, time.perf_counter() - begins)


def _read_chunk(line: bytes) -> Mapping[str, Any]:
    data = line.strip().removeprefix(b"data: ")
    return json.loads(data) if data.startswith(b"{") else {}


def ask_all(url: str, name: str, asked: Sequence[Any], new: int, at_a_time: int) -> tuple[list[Answer], float]:
    """The answers to all requests, so many of them at a time, and the seconds that they took."""
    with ThreadPoolExecutor(at_a_time) as clients:
        begins = time.perf_counter()
        answers = list(clients.map(lambda messages: ask(url, name, messages, new), asked))
        return answers, time.perf_counter() - begins


# Rows -------------------------------------------------------------------------------------------------------------------


def _measure_throughput(run: Run, url: str, name: str, exported: Path, asked: Sequence[Any], new: int) -> Iterator[Row]:
    """Beside `transformers serve` and a loop; answers are compared first. Ours runs before and after each."""
    scenario = f"{len(asked)} requests of 0 to 2 images, {CONCURRENCY} at a time"
    ask_all(url, name, asked[:CONCURRENCY], new, CONCURRENCY)  # threads and caches of a server that has begun to work
    with serve_theirs(exported) as theirs:
        answers, seconds = ask_all(*theirs, asked, new, CONCURRENCY)
    same, ours = _repeat_ours(run, url, name, asked, new)
    agreeing = sum(a.text.strip() == b.text.strip() for a, b in zip(same, answers, strict=True))
    if agreeing < len(asked):
        raise Unequal(f"{NAME}: {len(asked) - agreeing} of {len(asked)} answers are not those of transformers serve.")
    speeds = {"transformers serve": sum(a.tokens for a in answers) / seconds}
    looped = subprocess.run(
        [sys.executable, "-c", LOOP, str(exported), str(new)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **ENVIRONMENT},
    )
    found = json.loads(looped.stdout.splitlines()[-1])
    speeds["a loop over generate"] = found["tokens"] / found["seconds"]
    for what, speed in speeds.items():
        setting = "as shipped" if what == "transformers serve" else "naive"
        yield run.row(
            NAME,
            scenario,
            f"{new} tokens each",
            "tokens/s",
            ours,
            speed,
            setting=setting,
            settings=what,
            less_is_better=False,
        )


def _repeat_ours(
    run: Run, url: str, name: str, asked: Sequence[Any], new: int, at_a_time: int = CONCURRENCY
) -> tuple[list[Answer], float]:
    """Answers, and the median of tokens a second. Images and prompts differ each time: nothing is in the server's caches."""
    speeds, answers = [], []
    for repeat in range(run.repeats):
        fresh = [_change_first_pixels(messages, repeat) for messages in asked] if repeat else asked
        found, seconds = ask_all(url, name, fresh, new, at_a_time)
        speeds.append(sum(a.tokens for a in found) / seconds)
        answers = answers or found
    return answers, median(speeds)


def _change_first_pixels(messages: Any, seed: int) -> Any:
    """The same message about other images, with another beginning."""
    parts = []
    for part in messages[0]["content"]:
        if part["type"] == "image_url":
            content = base64.b64decode(part["image_url"]["url"].partition(",")[2])
            pixels = np.array(Image.open(io.BytesIO(content)))
            pixels[:4] = np.random.default_rng(seed).integers(0, 256, pixels[:4].shape)
            part = _make_part(pixels)
        else:
            part = {**part, "text": f"({seed}) {part['text']}"}
        parts.append(part)
    return [{**messages[0], "content": parts}]


def _measure_growth(run: Run, url: str, name: str, asked: Sequence[Any], new: int) -> Iterator[Row]:
    """Ours with more and more requests at a time."""
    for position, at_a_time in enumerate((1, 2, 4, 8, 16, 32)):
        changed = [_change_first_pixels(messages, 100 + position) for messages in asked]
        _, speed = _repeat_ours(replace(run, repeats=1), url, name, changed, new, at_a_time)
        yield run.row(
            NAME,
            f"{len(asked)} requests of 0 to 2 images",
            f"{at_a_time} at a time",
            "tokens/s",
            speed,
            less_is_better=False,
        )


def _measure_first_tokens(run: Run, url: str, name: str, folder: Path) -> Iterator[Row]:
    """Beside `Chat` in this process: one request at a time about an image, and a second question about a video.

    A server gets the whole conversation again, with its video as bytes.
    """
    model, rounds = mmblocks.load(folder).eval(), 2 * max(run.repeats, 3)
    for what, seconds in (
        ("an image, one request at a time", [_time_image(run, url, name, model, i) for i in range(rounds)]),
        ("a second question about a video", [_time_second_question(url, name, model, i) for i in range(rounds)]),
    ):
        over_http, in_process = (median(own[1:]) for own in zip(*seconds, strict=True))
        settings = {"setting": "naive", "settings": "Chat in one process"}
        yield run.row(NAME, what, "time to first token", "s", over_http, in_process, **settings)


def _time_image(run: Run, url: str, name: str, model: OneVision, seed: int) -> tuple[float, float]:
    """Seconds over HTTP and in this process, of an image that nobody has seen."""
    pixels = np.random.default_rng(1000 + seed).integers(0, 256, (*run.scale.shown.view, 3), dtype=np.uint8)
    image, text = _make_part(pixels), "Which colour has the circle?"
    over_http = ask(url, name, [_make_user(image, text)], 1).seconds
    content = base64.b64decode(image["image_url"]["url"].partition(",")[2])
    chat = mmblocks.Chat(model, decoding=ONE)
    return over_http, _time_question(chat, mmblocks.image(content), text)


def _time_second_question(url: str, name: str, model: OneVision, seed: int) -> tuple[float, float]:
    content = find_media("video.mp4").read_bytes()
    uri = "data:video/mp4;base64," + base64.b64encode(content).decode()
    first, second = f"Number {seed}: which colour has the square?", "Which way does it move?"
    messages = [_make_user({"type": "video_url", "video_url": {"url": uri}}, first)]
    answer = ask(url, name, messages, 1).text
    messages += [{"role": "assistant", "content": answer}, _make_user(None, second)]
    over_http = ask(url, name, messages, 1).seconds
    chat = mmblocks.Chat(model, decoding=ONE)
    chat.ask(mmblocks.video(content), first)
    return over_http, _time_question(chat, second)


def _make_user(visual: Mapping[str, Any] | None, text: str) -> dict[str, Any]:
    return {"role": "user", "content": [*([visual] if visual else []), {"type": "text", "text": text}]}


def _time_question(chat: mmblocks.Chat, *parts: str | Visual) -> float:
    begins = time.perf_counter()
    chat.ask(*parts)
    return time.perf_counter() - begins
