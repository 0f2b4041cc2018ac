"""Files and folders that are written whole or not at all, their checksums, and errors of the disk."""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from mmblocks.errors import CheckpointError, ConfigError, MMBlocksError, StorageError

CHECKSUMS_FILE = "SHA256SUMS"
"""The list of a folder's files with their SHA-256, as `sha256sum` writes and checks it (`sha256sum -c SHA256SUMS`)."""
UNFINISHED_PREFIX = ".part-"
"""Part of the names of files and folders that are being written; a name that keeps it is of an unfinished one."""
_DISK = re.compile(  # messages of safetensors, tokenizers and torch, which raise no OSError
    r"os error \d+|No space left|Disk quota|Read-only file system|File too large|Input/output error|"
    r"PytorchStreamWriter failed|unexpected pos \d+"
)
_ERRNO_NAMES = "EACCES EBUSY EDQUOT EFBIG EIO EISDIR ENAMETOOLONG ENODEV ENOENT ENOSPC ENOTDIR ENXIO EPERM EROFS ESTALE"
_ERRNOS = {getattr(errno, name) for name in _ERRNO_NAMES.split() if hasattr(errno, name)}


# One file -----------------------------------------------------------------------------------------------------------


def write_json(path: Path, value: object) -> None:
    """Write plain values. After a crash or a power cut the file is the old or the new one, never a part of one."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """As `write_json`, for text."""
    with replace_file(path) as file:
        file.write(text.encode())


@contextmanager
def replace_file(path: Path) -> Iterator[IO[bytes]]:
    """A new file that replaces `path`, flushed to disk, when the block ends without error, and is removed otherwise."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}{UNFINISHED_PREFIX}", dir=path.parent)
    fresh = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        fresh.chmod(0o644)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# A folder -----------------------------------------------------------------------------------------------------------


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """A new folder that replaces `folder` when the block ends without error, and is removed otherwise.

    It gets a list of checksums. Raises `ConfigError` if `folder` holds files that were not written in this way, before the
    block and again after it; `StorageError` for errors of the disk.
    """
    with explain_disk_errors(folder):
        require_replaceable(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}{UNFINISHED_PREFIX}", dir=folder.parent))
        try:
            yield fresh
            fresh.chmod(0o755)
            write_checksums(fresh)
            require_replaceable(folder)
            if not folder.exists():
                fresh.replace(folder)
            else:
                old = fresh.with_name(f"{fresh.name}-old")
                folder.replace(old)
                fresh.replace(folder)
                shutil.rmtree(old)
            flush_folder(folder.parent)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)  # it is gone where it has replaced the folder


def require_replaceable(folder: Path) -> None:
    """Raise `ConfigError` unless a folder is missing, empty, or holds only files that `replace_folder` wrote."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder.")
    ours = {CHECKSUMS_FILE, *read_checksums(folder)}
    foreign = next((name for name in map(str, _list_files(folder)) if name not in ours), None)
    if foreign is not None:
        raise ConfigError(
            f"{folder} holds {foreign}, which mmblocks has not written there, so it is not replaced; name another folder, "
            "or move the file away."
        )


def write_checksums(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Write the checksums of a folder's files, and flush everything to disk.

    known: checksums that need not be computed; those of an earlier list in the folder are kept, too.
    """
    known = {**read_checksums(folder), **(known or {})}
    files = [path for path in map(str, _list_files(folder)) if path != CHECKSUMS_FILE]
    fresh = compute_checksums(folder, [path for path in files if path not in known])
    lines = "".join(f"{({**known, **fresh})[path]}  {path}\n" for path in sorted(files))
    for path in files:
        flush_folder(folder / path)
    write_text(folder / CHECKSUMS_FILE, lines)
    for inner in {(folder / path).parent for path in files}:
        flush_folder(inner)


def list_damage(folder: Path) -> list[str]:
    """The files of a folder that are missing or differ from its list of checksums, one line each; none without a list."""
    wanted, listed = read_checksums(folder), folder / CHECKSUMS_FILE
    if listed.is_file() and not wanted:
        return [f"{listed} is empty"]
    missing = [path for path in wanted if not (folder / path).is_file()]
    actual = compute_checksums(folder, [path for path in wanted if path not in missing])
    changed = [path for path in actual if actual[path] != wanted[path]]
    return [f"{folder / path} is missing, though {listed} lists it" for path in missing] + [
        f"{folder / path} is not as it was written (its SHA-256 is not that in {listed})" for path in changed
    ]


def compute_checksums(folder: Path, files: list[str]) -> dict[str, str]:
    """The SHA-256 of files in a folder, several at a time: hashing leaves other threads alone."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(files, pool.map(_compute_sha256, (folder / path for path in files)), strict=True))


def read_checksums(folder: Path) -> dict[str, str]:
    """The checksums that a folder lists; empty without a list. Raises `CheckpointError` for a damaged list."""
    path = folder / CHECKSUMS_FILE
    if not path.is_file():
        return {}
    lines = [line for line in path.read_bytes().decode("utf-8", errors="replace").splitlines() if line.strip()]
    pairs = [line.partition("  ")[::2] for line in lines]
    if any(not re.fullmatch(r"[0-9a-f]{64}", digest) or not name for digest, name in pairs):
        raise CheckpointError(f"{path} is damaged: it is no list of SHA-256 checksums; fetch the folder again.")
    return {name: digest for digest, name in pairs}


def remove_unfinished(folder: Path) -> None:
    """Remove the unfinished files of killed processes from a folder. No process may be writing there."""
    for left in folder.glob(f".*{UNFINISHED_PREFIX}*") if folder.is_dir() else ():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()


def _list_files(folder: Path) -> Iterator[Path]:
    """Paths of everything in a folder that is no folder, relative to it."""
    for inner, _, names in os.walk(folder):
        yield from ((Path(inner) / name).relative_to(folder) for name in names)


def _compute_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Errors of the disk ------------------------------------------------------------------------------------------------


@contextmanager
def explain_disk_errors(folder: Path) -> Iterator[None]:
    """Turn errors of the disk into a `StorageError` with the path, the cause and the free space."""
    try:
        yield
    except MMBlocksError:
        raise
    except Exception as cause:
        if getattr(cause, "errno", None) not in _ERRNOS and not _DISK.search(str(cause)):
            raise
        path = Path(os.fsdecode(getattr(cause, "filename", None) or folder))
        why = getattr(cause, "strerror", None) or str(cause).strip().splitlines()[-1]
        raise StorageError(
            f"{path}: {why} ({describe_free_space(path)}). What was there before is as it was; make room or give access, and try "
            "again."
        ) from cause


def describe_free_space(path: Path) -> str:
    """The free space on the disk of a path, in words."""
    for place in (path, path.parent, *path.absolute().parents):
        with suppress(OSError):
            free = shutil.disk_usage(place).free
            break
    else:
        return "its disk does not say how much is free"
    return f"{free / 1e9:.1f} GB free on its disk" if free >= 1e9 else f"{free / 1e6:.1f} MB free on its disk"
