"""An OpenAI-compatible endpoint on this machine that misbehaves where it is told to."""

import json
import threading
import time
from collections import defaultdict
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-secret-of-the-tests-0123456789"
CUT, HALF = "cut", "half"
"""The connection ends before a reply, or in its middle."""


class LoopbackEndpoint(ThreadingHTTPServer):
    """misdeeds: by a request's last message, what happens at its first, second, ... arrival instead of a reply.

    A misdeed is a status, (status, content), (status, content, headers), seconds of sleep before a right reply, CUT or HALF.
    reply: from the body of a request to the text of the reply.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.misdeeds = defaultdict(list)
        self.always = None
        self.reply = lambda body: f"reply to {body['messages'][-1]['content']}"
        self.bodies, self.keys, self.most_at_once = [], [], 0
        self.at_once, self.guard = 0, threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def list_asked(self):
        """The last message of every request, in the order of arrival."""
        return [body["messages"][-1]["content"] for body in self.bodies]


class _Handler(BaseHTTPRequestHandler):
    server: LoopbackEndpoint

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.guard:
            server.bodies.append(body)
            server.keys.append(self.headers["Authorization"])
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            planned = server.misdeeds[body["messages"][-1]["content"]]
            misdeed = planned.pop(0) if planned else server.always
        try:
            self.misbehave(misdeed, body)
        finally:
            with server.guard:
                server.at_once -= 1

    def misbehave(self, misdeed, body):
        if misdeed == CUT:
            self.close_connection = True
        elif misdeed == HALF:
            self.send(200, '{"choices": [', {"Content-Length": "1000"})
            self.close_connection = True
        elif isinstance(misdeed, int):
            self.send(misdeed, json.dumps({"error": {"message": f"no, {misdeed}", "code": None}}))
        elif isinstance(misdeed, tuple):
            self.send(*misdeed)
        else:
            time.sleep(misdeed or 0)
            self.send(200, json.dumps(make_completion(self.server.reply(body))))

    def send(self, status, content, headers=None):
        payload = content.encode()
        self.send_response(status)
        known = {"Content-Type": "application/json", "Content-Length": str(len(payload))}
        for name, value in {**known, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):  # the client may have given up
            self.wfile.write(payload)

    def log_message(self, *_):
        pass


def make_completion(text, prompt_tokens=100, reply_tokens=10):
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "judge-of-the-tests",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", "logprobs": None}
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": reply_tokens,
            "total_tokens": prompt_tokens + reply_tokens,
        },
    }


@contextmanager
def serve_endpoint():
    server = LoopbackEndpoint()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
