"""What tasks with a judge share: the instruction, ours or a published one, and messages."""

from __future__ import annotations

from pathlib import Path

from mmblocks.errors import DataError


def read_instruction(path: str | None, default: str) -> str:
    """The text of a file that a user names, such as a published instruction; without one, `default`."""
    if path is None:
        return default
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise DataError(
            f"{path}: the judge's instruction cannot be read ({cause}); name a text file in UTF-8."
        ) from cause


def make_message(content: str, role: str = "user") -> dict[str, str]:
    """A message of chat-completions."""
    return {"role": role, "content": content}
