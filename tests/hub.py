"""A small hub on 127.0.0.1: the requests that huggingface_hub makes for a model, and the answers of a hub in trouble."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

MAIN = "main"


class LocalHub:
    """Folders of this machine as repositories.

    gated: repositories whose files need a token that is not given. cut: files, by name, of which only the first half is sent
    the first time. requests: what was asked for, "METHOD path".
    """

    def __init__(self) -> None:
        self.folders: dict[tuple[str, str], Path] = {}
        self.gated: set[str] = set()
        self.cut: set[str] = set()
        self.requests: list[str] = []
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def add(self, repository: str, folder: Path, revision: str = MAIN) -> str:
        """Publish a folder; returns its commit."""
        self.folders[repository, revision] = folder
        commit = hashlib.sha1(f"{repository}@{revision}".encode()).hexdigest()
        self.folders[repository, commit] = folder
        return commit

    def find(self, repository: str, revision: str) -> tuple[Path | None, str]:
        """The folder and the commit of a revision."""
        commit = revision if len(revision) == 40 else hashlib.sha1(f"{repository}@{revision}".encode()).hexdigest()
        return self.folders.get((repository, revision)), commit

    def serve_this_process(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        """Let huggingface_hub ask this hub, with a cache of its own: it reads its variables when it is imported."""
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setenv("HF_ENDPOINT", self.endpoint)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self._answer_api("/".join(parts[2:4]), parts[4], "/".join(parts[5:]), with_body)
        if len(parts) < 5:
            return self._send(404, b"", {}, with_body)
        return self._answer_file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), with_body)

    def _answer_api(self, repository: str, kind: str, revision: str, with_body: bool) -> None:
        folder, commit = self.hub.find(repository, revision)
        if folder is None:
            return self._refuse_unknown(repository)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        names = [(str(file.relative_to(folder)), file.stat().st_size) for file in files]
        if kind == "tree":
            answer = [{"type": "file", "path": name, "size": size, "oid": commit} for name, size in names]
            return self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, with_body)
        siblings = [{"rfilename": name} for name, _ in names]
        info = {"_id": commit, "id": repository, "modelId": repository, "sha": commit, "siblings": siblings, "tags": []}
        return self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, with_body)

    def _answer_file(self, repository: str, revision: str, name: str, with_body: bool) -> None:
        folder, commit = self.hub.find(repository, revision)
        if repository in self.hub.gated:
            return self._send(403, b"gated", {"X-Error-Code": "GatedRepo"}, with_body)
        if folder is None:
            return self._refuse_unknown(repository)
        if not (folder / name).is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body)
        content = (folder / name).read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        first = 0
        if (asked := self.headers.get("Range")) is not None:
            first = int(asked.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        if with_body and name in self.hub.cut:
            self.hub.cut.remove(name)
            return self._send_half(content, headers)
        return self._send(206 if first else 200, content[first:], headers, with_body)

    def _refuse_unknown(self, repository: str) -> None:
        known = any(name == repository for name, _ in self.hub.folders)
        self._send(404, b"", {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"}, True)

    def _send(self, status: int, content: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def _send_half(self, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.close_connection = True
