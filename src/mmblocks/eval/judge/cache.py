"""Replies of judges on disk, one file each: several processes may share the folder, and a killed one leaves no part of a file."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmblocks.storage import explain_disk_errors, write_json

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Completion:
    """A reply's text and the tokens that it took; model and finish_reason as the endpoint names them."""

    text: str
    prompt_tokens: int = 0
    reply_tokens: int = 0
    model: str = ""
    finish_reason: str = ""


def compute_digest(body: Mapping[str, object], attempt: int = 0) -> str:
    """Equal for requests with the same body that are the same try."""
    content = json.dumps([body, attempt], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class ReplyCache:
    """What was asked and replied, by the digest of the request."""

    folder: Path

    def make_folder(self) -> None:
        """Raises `StorageError` where that cannot be, before anything is asked that could not be stored."""
        with explain_disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def find_reply(self, digest: str) -> Completion | None:
        """None where there is no reply; a damaged file counts as none and is replaced by the next reply.

        Raises `StorageError` for errors of the disk.
        """
        path = self._locate(digest)
        try:
            with explain_disk_errors(path):
                content = path.read_text(encoding="utf-8") if path.exists() else None
            if content is None:
                return None
            reply = json.loads(content)["reply"]
            completion = Completion(**reply)
            if not isinstance(completion.text, str):
                raise TypeError(f"its text is {completion.text!r:.40}")
        except (ValueError, TypeError, KeyError) as cause:
            log.warning("%s is no stored reply of a judge (%s); the judge is asked again.", path, cause)
            return None
        return completion

    def store_reply(self, digest: str, body: Mapping[str, Any], completion: Completion) -> None:
        """Raises `StorageError` for errors of the disk."""
        path = self._locate(digest)
        with explain_disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"request": body, "reply": asdict(completion)})

    def _locate(self, digest: str) -> Path:
        return self.folder / digest[:2] / f"{digest}.json"
