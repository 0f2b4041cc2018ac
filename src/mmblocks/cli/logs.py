"""What the commands show of the log: mmblocks' own warnings, and of other packages errors only.

MMBLOCKS_LOG=info (or debug, warning) shows all records of that level on stderr, those of other packages and Python's
warnings included.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from mmblocks.errors import ConfigError

SETTING = "MMBLOCKS_LOG"
LEVELS = ("debug", "info", "warning", "error")


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """While a command runs, write the log to stderr; Python's warnings go to the log. All is as before afterwards."""
    root, own = logging.getLogger(), logging.getLogger("mmblocks")
    levels = root.level, own.level
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    if (level := _chosen_level()) is None:
        handler.addFilter(_is_shown)
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it has a handler of its own, set when it is imported
    else:
        root.setLevel(level)
    root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        root.setLevel(levels[0])
        own.setLevel(levels[1])


def show_progress() -> None:
    """Show what mmblocks logs as information too, as long as the command runs."""
    logging.getLogger("mmblocks").setLevel(logging.INFO)


def _is_shown(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] == "mmblocks" or record.levelno >= logging.ERROR


def _chosen_level() -> int | None:
    name = os.environ.get(SETTING, "")
    if not name:
        return None
    if name.lower() not in LEVELS:
        raise ConfigError(f"{SETTING}={name!r} is no level; write {', '.join(LEVELS)}.")
    return logging.getLevelNamesMapping()[name.upper()]
