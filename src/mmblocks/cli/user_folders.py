"""Folders of the user that commands write to."""

import os
from pathlib import Path


def state_folder() -> Path:
    """`$XDG_STATE_HOME/mmblocks` or `~/.local/state/mmblocks`; it may not exist. Raises `RuntimeError` without a home."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "mmblocks"
