"""One process at a time in a folder."""

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
_HELD: set[str] = set()  # paths locked by this process: the system's locks are between processes
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def lock_folder(folder: Path, name: str = LOCK) -> Iterator[None]:
    """Lock a folder against other processes. Raises `BusyError` with host and process id of the one that has the lock.

    The operating system holds the lock and releases it when the process ends in any way. The file `name` says who has it.
    On a file system without locks, a running process of this machine that is named there has the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = str(folder.resolve() / name)
    if path in _HELD:  # opening and closing the file once more would end the lock
        raise BusyError(_format_refusal(folder, f"this process ({os.getpid()})"))
    with open(path, "a+", encoding="utf-8") as file:  # noqa: PTH123
        if not _try_lock(file):
            holder = _read_holder(file)
            is_known = {"pid", "host"} <= holder.keys()
            owner = f"process {holder['pid']} on {holder['host']}" if is_known else "another process"
            raise BusyError(_format_refusal(folder, owner))
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
            holder = _read_holder(file)
            pid, is_here = holder.get("pid"), holder.get("host") == socket.gethostname()
            runs = is_here and isinstance(pid, int) and pid != os.getpid() and Path(f"/proc/{pid}").exists()
            return not runs
        return False
    return True


def _read_holder(file: IO[str]) -> dict[str, object]:
    file.seek(0)
    try:
        holder = json.loads(file.read())
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _write_holder(file: IO[str], text: str) -> None:
    file.truncate(0)
    file.write(text)
    file.flush()
