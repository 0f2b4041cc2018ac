"""JSON files that may be foreign or damaged: an object, or an error that names the file."""

import json
from pathlib import Path
from typing import Any

from mmblocks.errors import CheckpointError

MAX_DEPTH = 100
"""Levels of nesting; recursive readers of settings would overflow beyond a thousand."""


def read_object(path: Path, cure: str | None = None) -> dict[str, Any]:
    """A JSON object from a file of a checkpoint or of another folder. cure: what the error says to do.

    Raises `CheckpointError` if the file is missing, a folder, cut, not UTF-8, nested too deeply, or no JSON object.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is missing"
        raise CheckpointError(f"{path} {what}; {cure or 'the folder is not a whole checkpoint.'}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as cause:
        raise CheckpointError(
            f"{path} cannot be read: it is nested too deeply to be a file of settings; {cure or 'fetch it again.'}"
        ) from cause
    except (OSError, ValueError) as cause:  # JSONDecodeError, UnicodeDecodeError, whole numbers of thousands of digits
        raise CheckpointError(
            f"{path} cannot be read ({cause}); {cure or 'the file is truncated or damaged.'}"
        ) from cause
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds {type(content).__name__}, not an object of settings; {cure or 'fetch it again.'}"
        )
    level: list[object] = [content]
    for _ in range(MAX_DEPTH):
        nested = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [value for values in nested for value in values]
    if level:
        raise CheckpointError(
            f"{path} is nested more than {MAX_DEPTH} levels deep, which no file of settings is; {cure or 'fetch it again.'}"
        )
    return content
