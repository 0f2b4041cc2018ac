"""JSON files that somebody else may have written or cut: an object, or an error that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmblocks.errors import CheckpointError

MAX_DEPTH = 100
"""Levels of a nest; what walks through settings would overflow beyond a thousand."""


def read_object(path: Path, cure: str | None = None) -> dict[str, Any]:
    """A json object from a file of a checkpoint, or of another folder of ours; `cure` says what to do without it.

    Raises `CheckpointError` when it is missing, a folder, cut, not UTF-8, nested too deeply, or holds anything else.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is missing"
        raise CheckpointError(f"{path} {what}; {cure or 'the folder is not a whole checkpoint.'}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as cause:
        raise CheckpointError(
            f"{path} cannot be read: it is nested too deeply to be a file of settings; {cure or 'fetch it again.'}"
        ) from cause
    except (OSError, ValueError) as cause:  # JSONDecodeError, UnicodeDecodeError, whole numbers of thousands of digits
        raise CheckpointError(f"{path} cannot be read ({cause}); {cure or 'the file is cut or damaged.'}") from cause
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{path} holds {type(found).__name__}, not an object of settings; {cure or 'fetch it again.'}"
        )
    if _is_too_deep(found):
        raise CheckpointError(
            f"{path} is nested more than {MAX_DEPTH} levels deep, which no file of settings is; {cure or 'fetch it again.'}"
        )
    return found


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        if not (level := [each for values in inner for each in values]):
            return False
    return True
