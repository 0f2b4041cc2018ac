"""Where media bytes come from: local files and data: URIs, never the network; one error message for each fault."""

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

MediaKind = Literal["image", "video"]
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif")
"""Suffixes of image files, where a video is given as images. A GIF is a video itself."""
_LONGEST_NAME = 200
_URL = re.compile(r"[a-z][a-z0-9+.-]+:/|(file|https?|ftp|blob):|//", re.IGNORECASE)  # Path leaves one slash of two


@dataclass(frozen=True, slots=True)
class FileSlice:
    """A run of bytes within a file, such as a member of a tar, not opened yet."""

    path: Path
    offset: int
    size: int
    name: str

    def open(self, mode: str = "rb") -> IO[bytes]:
        """A file of these bytes alone; of a header only the header is read."""
        assert mode == "rb", mode
        return io.BufferedReader(_SliceFile(self))

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


class _SliceFile(io.RawIOBase):
    """The bytes of a slice as a file."""

    def __init__(self, part: FileSlice) -> None:
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


def describe_source(source: object, kind: MediaKind) -> str:
    """What error messages call a source: its path, or what kind of thing it is when it has none."""
    if isinstance(source, FileSlice):
        return str(source)
    if isinstance(source, tuple) and source:
        return f"{describe_source(source[0], kind)} and {len(source) - 1} more frames"
    if isinstance(source, str | os.PathLike):
        name = str(os.fspath(source))
        if name.startswith("data:"):
            return f"{kind} data: URI"
        return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."
    if isinstance(source, bytes):
        return f"{kind} bytes"
    if isinstance(source, Image.Image):
        return "PIL image"
    return f"{kind} array" if isinstance(source, np.ndarray) else f"{kind} of type {type(source).__name__}"


def resolve_source(source: str | os.PathLike[str] | bytes, kind: MediaKind) -> bytes | Path:
    """The content of bytes and data: URIs, the absolute path of an existing, regular, non-empty file."""
    name = describe_source(source, kind)
    if isinstance(source, str) and source.startswith("data:"):
        source = _decode_data_uri(source, name)
    if isinstance(source, bytes):
        if not source:
            raise DataError(
                f"{describe_source(source, kind)}: there are zero bytes; pass the whole content of the file."
            )
        return source
    if (refusal := explain_url_refusal(source, kind)) is not None:
        raise DataError(f"{name}: {refusal}")
    path = Path(source)
    try:
        exists, regular = path.exists(), path.is_file()
        empty = regular and path.stat().st_size == 0
    except (OSError, ValueError) as cause:
        why = getattr(cause, "strerror", None) or cause
        raise DataError(f"{name}: not a usable path ({why}); pass the path of the {kind} file.") from cause
    if not exists:
        raise DataError(f"{name}: there is no such file; check the path and the folder it is relative to.")
    if not regular:
        raise DataError(f"{name}: not a regular file; pass the path of one {kind} file.")
    if empty:
        raise DataError(f"{name}: the file is empty (zero bytes); fetch it again or drop the record.")
    return path.absolute()


def _decode_data_uri(uri: str, name: str) -> bytes:
    head, comma, payload = uri.partition(",")
    if not comma:
        raise DataError(f"{name}: no comma between its head and its data; write data:<type>;base64,<data>.")
    try:
        data = unquote_to_bytes(payload)
    except UnicodeEncodeError as cause:  # half of a character
        raise DataError(f"{name}: it is no text ({cause.reason}); encode the file's bytes again.") from cause
    if not head.endswith(";base64"):
        return data
    try:
        return base64.b64decode(b"".join(data.split()), validate=True)
    except binascii.Error as cause:
        raise DataError(f"{name}: its base64 is broken ({cause}); encode the file's bytes again.") from cause


def explain_url_refusal(source: str | os.PathLike[str], kind: MediaKind) -> str | None:
    """What to write instead of a URL; None for a path, and for a file that exists under such a name."""
    name = str(os.fspath(source))
    if not _URL.match(name) or is_existing_path(name):
        return None
    if name.lower().startswith("file:"):
        return f"mmblocks opens no URLs; write the path alone: {unquote(urlsplit(name).path)}"
    missing = "there is no such file, and " if name.startswith("//") else ""
    allowed = (
        f" In a chat, --allow-urls or {kind}(url, allow_urls=True) fetches it."
        if name.lower().startswith("http")
        else ""
    )
    return f"{missing}mmblocks opens no URLs; download the {kind} and pass its path, or pass its bytes.{allowed}"


def is_existing_path(path: str | os.PathLike[str]) -> bool:
    """Whether a file or folder exists; what cannot be a path does not."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long, or with a null byte
        return False


_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*")
_IMAGE_HEADS = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n|GIF8|BM|II\*\0|MM\0\*|RIFF....WEBP|....ftypavi", re.DOTALL)
"""How files of the formats of `images.FORMATS` begin."""


def decode_base64_image(name: str) -> bytes | None:
    """The file of an image that is written as base64 alone; None for any other text."""
    if _BASE64.fullmatch(name) is None:
        return None
    try:
        content = base64.b64decode("".join(name.split()), validate=True)
    except binascii.Error:
        return None
    return content if _IMAGE_HEADS.match(content) else None


def is_image_name(name: str) -> bool:
    """Whether a file's name is that of an image."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def make_natural_key(name: str) -> list[tuple[int, str]]:
    """A key to sort names by, in which frame 2 comes before frame 10."""
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d+)", name)]
