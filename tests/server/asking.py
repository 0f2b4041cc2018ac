"""What the tests of the server send: messages with media, over the client of OpenAI and over bare sockets."""

import base64
import http.client
import inspect
import io
import json
import socket
import time

import numpy as np
import openai
from PIL import Image

from mmblocks.assets import find_media

NAME = "tiny-model"
RED, BLUE = Image.new("RGB", (60, 40), "red"), Image.new("RGB", (20, 40), "blue")
CLIP = find_media("video.mp4").read_bytes()
QUESTION = [{"role": "user", "content": "What colour is the circle?"}]

KNOWN = inspect.signature(openai.resources.chat.completions.Completions.create).parameters
"""The fields that the client knows of."""


def make_client(server, **given):
    """A client without retries."""
    return openai.OpenAI(base_url=server.base_url, api_key="EMPTY", max_retries=0, timeout=60, **given)


def encode_png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def make_uri(content, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def text(words):
    return {"type": "text", "text": words}


def picture(image):
    return {"type": "image_url", "image_url": {"url": make_uri(encode_png(image))}}


def clip(content=CLIP):
    return {"type": "video_url", "video_url": {"url": make_uri(content, "video/mp4")}}


def frames(count, size=(30, 20)):
    shades = np.linspace(0, 255, count).astype(np.uint8)
    return [make_uri(encode_png(Image.new("RGB", size, (int(s), 0, 0)))) for s in shades]


def user(*parts):
    return [{"role": "user", "content": [text(part) if isinstance(part, str) else part for part in parts]}]


def ask(server, messages=QUESTION, **fields):
    """The answer of the client of OpenAI; what the client does not know of goes into the body as it is."""
    extra = {name: fields.pop(name) for name in list(fields) if name not in KNOWN}
    if "max_completion_tokens" not in fields:
        fields.setdefault("max_tokens", 8)
    given = {"model": NAME, **fields}
    return make_client(server).chat.completions.create(messages=messages, extra_body=extra or None, **given)


def post(server, path, body, headers=()):
    """Status, headers and JSON of the answer to any bytes or JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return request(server, "POST", path, content, {"Content-Type": "application/json", **dict(headers)})


def request(server, method, path, body=None, headers=()):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request(method, path, body, dict(headers))
        response = connection.getresponse()
        content = response.read()
        is_json = "json" in (response.getheader("Content-Type") or "")
        return response.status, dict(response.headers), json.loads(content) if is_json else content.decode()
    finally:
        connection.close()


def open_socket(server, content=b""):
    opened = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    opened.sendall(content)
    return opened


def make_raw_request(body, path="/v1/chat/completions", length=None):
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {length or len(content)}\r\n\r\n".encode() + content


def wait_until(condition, seconds=20):
    ends = time.monotonic() + seconds
    while not condition() and time.monotonic() < ends:
        time.sleep(0.01)
    assert condition()
