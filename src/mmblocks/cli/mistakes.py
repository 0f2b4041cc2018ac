"""The message about a bug in mmblocks: one line with the file that has the traceback."""

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from mmblocks.cli.user_folders import state_folder

EXIT_CODE = 70
"""A mistake of the program itself (EX_SOFTWARE of sysexits.h)."""
TRACKERS = ("issues", "issue tracker", "bug tracker", "bugs")


def format_mistake(error: Exception, arguments: Sequence[str]) -> str:
    """A line for the user: what happened, where the traceback is and where to report it. Never raises."""
    rank = os.environ.get("RANK")
    program = f"mmblocks (rank {rank})" if rank else "mmblocks"
    what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".removesuffix(": ")
    file = _write_traceback(error, arguments)
    where = f"the traceback is in {file}" if file else "MMBLOCKS_DEBUG=1 shows the traceback"
    page = None
    with suppress(metadata.PackageNotFoundError):
        urls = [entry.partition(",") for entry in metadata.metadata("mmblocks").get_all("Project-URL") or []]
        page = next((url.strip() for label, _, url in urls if label.strip().lower() in TRACKERS), None)
    report = f"Please report it with that at {page}" if page else "Please send it to those from whom you have mmblocks."
    return f"{program}: a mistake of mmblocks ended this command ({what}); {where}. {report}"


def _write_traceback(error: Exception, arguments: Sequence[str]) -> Path | None:
    """The file that the traceback was written to, readable by its owner alone; None where no folder can be written."""
    from mmblocks import __version__
    from mmblocks.versions import VERSION_SENSITIVE, find_installed_version

    versions = ", ".join(f"{name} {find_installed_version(name)}" for name in VERSION_SENSITIVE)
    head = f"mmblocks {__version__}, Python {sys.version.partition(' ')[0]}, {versions}\nmmblocks {' '.join(arguments)}\n\n"
    content = (head + "".join(traceback.format_exception(error))).encode("utf-8", "backslashreplace")
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-rank{os.environ.get('RANK', '0')}-{os.getpid()}.log"
    folders: list[Path] = []
    with suppress(RuntimeError):  # there is no home
        folders.append(state_folder())
    with suppress(OSError):  # there is no folder for temporary files either
        folders.append(Path(tempfile.gettempdir()) / f"mmblocks-{os.getuid() if hasattr(os, 'getuid') else 'logs'}")
    for folder in folders:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / name
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content)
            return path
    return None
