"""Line editing and a history for commands that ask line by line, with Python's own readline module."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mmblocks.cli.user_folders import state_folder

MAX_HISTORY_LINES = 1000


@contextmanager
def edit_lines(history_name: str) -> Iterator[None]:
    """Give `input()` line editing and a history, which is kept in the user's state folder under this name.

    Nothing changes where the standard input is no terminal, or where this Python has no readline module. A history
    that cannot be read or written is ignored.
    """
    if not sys.stdin.isatty() or importlib.util.find_spec("readline") is None:  # Windows has none
        yield
        return
    import readline

    with suppress(OSError, RuntimeError):  # the first time there is no file; there may be no home
        readline.read_history_file(state_folder() / history_name)
    readline.set_history_length(MAX_HISTORY_LINES)
    try:
        yield
    finally:
        with suppress(OSError, RuntimeError):
            path = state_folder() / history_name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)  # questions are private
            readline.write_history_file(path)
