"""JSON-lines files that several processes append to and people edit."""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmblocks.errors import DataError

log = logging.getLogger(__name__)


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Add a line per record, all in one write at the end of the file, so that lines of other writers stay whole.

    That holds on local file systems; NFS has no appending, so there a line may be lost (and is skipped by readers).
    """
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    if not data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(file).st_size
        is_open_line = size > 0 and os.pread(file, 1, size - 1) != b"\n"  # some editors leave the last line open
        os.write(file, b"\n" + data if is_open_line else data)
    finally:
        os.close(file)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file, none if there is no file; a line that is no JSON object is left out with a warning."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as cause:
        raise DataError(f"{path}: cannot be read ({cause.strerror}); make it a file that may be read.") from cause
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:  # UnicodeDecodeError is one
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif line.strip():
            log.warning("%s:%d: not a JSON object, left out; repair or delete the line.", path, number)
    return records
