"""Where media bytes come from: local files and data: URIs, never the network. One wording for what is wrong."""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal
from urllib.parse import unquote, unquote_to_bytes, urlsplit

import numpy as np
from PIL import Image

from mmblocks.errors import DataError

What = Literal["image", "video"]
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif")
"""What names of pictures end in, where a clip is given as pictures. A GIF is a clip itself."""
_LONGEST_NAME = 200
_URL = re.compile(r"[a-z][a-z0-9+.-]+:/|(file|https?|ftp|blob):|//", re.IGNORECASE)  # Path leaves one slash of two


@dataclass(frozen=True, slots=True)
class Slice:
    """A run of bytes within a file, such as a member of a tar, not opened yet."""

    path: Path
    offset: int
    size: int
    name: str

    def open(self, mode: str = "rb") -> IO[bytes]:
        """A file of these bytes alone; of a header only the header is read."""
        assert mode == "rb", mode
        return io.BufferedReader(_Window(self))

    def read(self) -> bytes:
        """All of its bytes. Raises `DataError` where the file is gone or ends before them."""
        try:
            with self.open() as file:
                content = file.read()
        except OSError as cause:
            raise DataError(f"{self}: cannot be opened ({cause}); check the path and its permissions.") from cause
        if len(content) != self.size:
            raise DataError(f"{self}: {len(content)} of {self.size} bytes are there; fetch {self.path.name} again.")
        return content

    def __str__(self) -> str:
        return f"{self.path}:{self.name}"


class _Window(io.RawIOBase):
    """The bytes of a slice as a file."""

    def __init__(self, part: Slice) -> None:
        self._part, self._at = part, 0
        self._file = part.path.open("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, (0, self._at, self._part.size)[whence] + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = memoryview(buffer)[: max(0, self._part.size - self._at)]
        self._file.seek(self._part.offset + self._at)
        done = self._file.readinto(wanted) or 0
        self._at += done
        return done

    def close(self) -> None:
        self._file.close()
        super().close()


def name_of(source: Any, what: What) -> str:
    """What error messages call a source: its path, or what kind of thing it is when it has none."""
    if isinstance(source, Slice):
        return str(source)
    if isinstance(source, tuple) and source:
        return f"{name_of(source[0], what)} and {len(source) - 1} more frames"
    if isinstance(source, str | os.PathLike):
        name = str(os.fspath(source))
        if name.startswith("data:"):
            return f"{what} data: URI"
        return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."
    if isinstance(source, bytes):
        return f"{what} bytes"
    if isinstance(source, Image.Image):
        return "PIL image"
    return f"{what} array" if isinstance(source, np.ndarray) else f"{what} of type {type(source).__name__}"


def bytes_or_file(source: str | os.PathLike[str] | bytes, what: What) -> bytes | Path:
    """The content of bytes and data: URIs, the absolute path of an existing, regular, non-empty file."""
    if isinstance(source, str) and source.startswith("data:"):
        source = _data_uri(source, what)
    if not isinstance(source, bytes):
        return _local_file(source, what)
    if not source:
        raise DataError(f"{name_of(source, what)}: there are zero bytes; pass the whole content of the file.")
    return source


def _local_file(source: str | os.PathLike[str], what: What) -> Path:
    name = name_of(source, what)
    path = Path(source)
    if (refusal := refusal_of_url(source, what)) is not None:
        raise DataError(f"{name}: {refusal}")
    try:
        exists, regular = path.exists(), path.is_file()
        empty = regular and path.stat().st_size == 0
    except (OSError, ValueError) as cause:
        why = getattr(cause, "strerror", None) or cause
        raise DataError(f"{name}: not a usable path ({why}); pass the path of the {what} file.") from cause
    if not exists:
        raise DataError(f"{name}: there is no such file; check the path and the folder it is relative to.")
    if not regular:
        raise DataError(f"{name}: not a regular file; pass the path of one {what} file.")
    if empty:
        raise DataError(f"{name}: the file is empty (zero bytes); fetch it again or drop the record.")
    return path.absolute()


def refusal_of_url(source: str | os.PathLike[str], what: What) -> str | None:
    """What to do instead of naming a URL; None for a path, and for a file that exists under such a name."""
    name = str(os.fspath(source))
    if not _URL.match(name) or is_there(name):
        return None
    if name.lower().startswith("file:"):
        return f"mmblocks opens no URLs; write the path alone: {unquote(urlsplit(name).path)}"
    missing = "there is no such file, and " if name.startswith("//") else ""
    return f"{missing}mmblocks opens no URLs; download the {what} and pass its path, or pass its bytes."


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether a file or folder exists; what cannot be a path does not."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long, or with a null byte
        return False


def _data_uri(uri: str, what: What) -> bytes:
    head, comma, payload = uri.partition(",")
    if not comma:
        raise DataError(f"{what} data: URI: no comma between its head and its data; write data:<type>;base64,<data>.")
    try:
        data = unquote_to_bytes(payload)
    except UnicodeEncodeError as cause:  # half of a character
        raise DataError(f"{what} data: URI: it is no text ({cause.reason}); encode the file's bytes again.") from cause
    if not head.endswith(";base64"):
        return data
    try:
        return base64.b64decode(b"".join(data.split()), validate=True)
    except binascii.Error as cause:
        raise DataError(f"{what} data: URI: its base64 is broken ({cause}); encode the file's bytes again.") from cause


_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*")
_PICTURE_HEADS = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n|GIF8|BM|II\*\0|MM\0\*|RIFF....WEBP|....ftypavi", re.DOTALL)
"""How files of the formats of `images.FORMATS` begin."""


def picture_in_base64(name: str) -> bytes | None:
    """The file of a picture that is written as base64 alone; None for any other text."""
    if _BASE64.fullmatch(name) is None:
        return None
    try:
        content = base64.b64decode("".join(name.split()), validate=True)
    except binascii.Error:
        return None
    return content if _PICTURE_HEADS.match(content) else None


def is_picture(name: str) -> bool:
    """Whether a file's name is that of a picture."""
    return name.lower().endswith(PICTURES)


def natural(name: str) -> list[tuple[int, str]]:
    """A key to sort names by, in which frame 2 comes before frame 10."""
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d+)", name)]
