"""What commands show of the log: warnings of mmblocks, and errors of other packages.

MMBLOCKS_LOG=info (or debug, warning) shows all records of that level on stderr, those of other packages and Python's
warnings included.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from mmblocks.errors import ConfigError

SETTING = "MMBLOCKS_LOG"
LEVELS = ("debug", "info", "warning", "error")


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """Write the log and Python's warnings to stderr while a command runs, and restore the logging settings afterwards."""
    root, own = logging.getLogger(), logging.getLogger("mmblocks")
    levels = root.level, own.level
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    if name := os.environ.get(SETTING):
        if name.lower() not in LEVELS:
            raise ConfigError(f"{SETTING}={name!r} is no level; write {', '.join(LEVELS)}.")
        root.setLevel(name.upper())
    else:
        handler.addFilter(lambda r: r.name.partition(".")[0] == "mmblocks" or r.levelno >= logging.ERROR)
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it has a handler of its own, set when it is imported
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
    """Show mmblocks' messages of level info, too, until the command ends."""
    logging.getLogger("mmblocks").setLevel(logging.INFO)
