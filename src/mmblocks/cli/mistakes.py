"""What a command says of an error that nobody foresaw: one line, with the file that holds the traceback."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from mmblocks.cli.user_folders import state_folder

EXIT_CODE = 70
"""A mistake of the program itself (EX_SOFTWARE of sysexits.h)."""
TRACKERS = ("issues", "issue tracker", "bug tracker", "bugs")


def format_mistake(error: Exception, arguments: Sequence[str]) -> str:
    """A line for the user: what happened, where the traceback is and whom to tell. Never raises."""
    rank = os.environ.get("RANK")
    whose = f"mmblocks (rank {rank})" if rank else "mmblocks"
    what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".removesuffix(": ")
    file = _write_traceback(error, arguments)
    where = f"the traceback is in {file}" if file else "MMBLOCKS_DEBUG=1 shows the traceback"
    return f"{whose}: a mistake of mmblocks ended this command ({what}); {where}. {_whom_to_tell()}"


def _whom_to_tell() -> str:
    page = _find_issue_page()
    return f"Please report it with that at {page}" if page else "Please send it to those from whom you have mmblocks."


def _find_issue_page() -> str | None:
    """The address that the package gives for issues; None where it gives none."""
    with suppress(metadata.PackageNotFoundError):
        for entry in metadata.metadata("mmblocks").get_all("Project-URL") or []:
            label, _, address = entry.partition(",")
            if label.strip().lower() in TRACKERS:
                return address.strip()
    return None


def _write_traceback(error: Exception, arguments: Sequence[str]) -> Path | None:
    """The file that the traceback was written to, readable by its owner alone; None where no folder can be written."""
    text = _report(error, arguments)
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-rank{os.environ.get('RANK', '0')}-{os.getpid()}.log"
    for folder in _list_log_folders():
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / name
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                file.write(text)
            return path
    return None


def _list_log_folders() -> Iterator[Path]:
    with suppress(RuntimeError):  # there is no home
        yield state_folder()
    with suppress(OSError):  # there is no folder for temporary files either
        yield Path(tempfile.gettempdir()) / f"mmblocks-{os.getuid() if hasattr(os, 'getuid') else 'logs'}"


def _report(error: Exception, arguments: Sequence[str]) -> str:
    from mmblocks import __version__
    from mmblocks.versions import VERSION_SENSITIVE, find_installed_version

    versions = ", ".join(f"{name} {find_installed_version(name)}" for name in VERSION_SENSITIVE)
    trace = "".join(traceback.format_exception(error))
    head = f"mmblocks {__version__}, Python {sys.version.partition(' ')[0]}, {versions}\nmmblocks {' '.join(arguments)}\n\n"
    return (head + trace).encode("utf-8", "backslashreplace").decode()
