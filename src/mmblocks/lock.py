"""One process at a time in a folder."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from mmblocks.errors import BusyError

log = logging.getLogger(__name__)

LOCK = "lock.json"
_HELD: set[str] = set()  # the system's locks are between processes
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def lock_folder(folder: Path, name: str = LOCK) -> Iterator[None]:
    """Keep other processes out of a folder. Raises `BusyError` with host and process id of the one that is inside.

    The lock is the system's and ends with the process, however that ends; the file `name` holds who has it, for others
    to read. Where the file system has no locks, a process of this machine that still runs keeps others out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = str(folder.resolve() / name)
    if path in _HELD:  # opening and closing the file once more would end the lock
        raise BusyError(_format_refusal(folder, f"this process ({os.getpid()})"))
    with open(path, "a+", encoding="utf-8") as file:  # noqa: PTH123
        if not _try_lock(file):
            raise BusyError(_format_refusal(folder, _holder(file)))
        _HELD.add(path)
        try:
            _write_holder(file, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}) + "\n")
            yield
        finally:
            _HELD.discard(path)
            with suppress(OSError):  # its folder may be gone
                _write_holder(file, "")


def _format_refusal(folder: Path, holder: str) -> str:
    return f"{folder} is in use by {holder}; wait until it has ended, or name another folder."


def _try_lock(file: IO[str]) -> bool:
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, whose locks forked data workers would keep
    except OSError as cause:
        if cause.errno in _NO_LOCKS:
            log.warning("%s: this file system has no locks; start no second run there.", file.name)
            return not _runs_here(file)
        return False
    return True


def _runs_here(file: IO[str]) -> bool:
    """Whether the process that the file names is on this machine and alive."""
    holder = _read_holder(file)
    if holder.get("host") != socket.gethostname() or not isinstance(pid := holder.get("pid"), int):
        return False
    return pid != os.getpid() and Path(f"/proc/{pid}").exists()


def _holder(file: IO[str]) -> str:
    holder = _read_holder(file)
    return f"process {holder['pid']} on {holder['host']}" if {"pid", "host"} <= holder.keys() else "another process"


def _read_holder(file: IO[str]) -> dict[str, object]:
    file.seek(0)
    try:
        found = json.loads(file.read())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _write_holder(file: IO[str], text: str) -> None:
    file.truncate(0)
    file.write(text)
    file.flush()
