"""What tells one visual from another."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
from PIL import Image

from mmblocks.conversation import Visual
from mmblocks.data.media.files import Slice, bytes_or_file
from mmblocks.data.media.images import content_of


def identity(visual: Visual) -> str:
    """What tells one visual from another: of files their path, size and time of change, of members of a tar
    the tar's and where they lie in it, of data in memory its content.
    """
    source = visual.source
    if isinstance(source, Image.Image):
        return digest("image", *content_of(source))
    if isinstance(source, np.ndarray):
        return digest("array", f"{source.dtype} {source.shape}", np.ascontiguousarray(source).tobytes())
    if isinstance(source, list | tuple):
        return digest("several", *(identity(Visual(visual.kind, one)) for one in source))
    if isinstance(source, str | os.PathLike) and Path(source).is_dir():
        return digest("folder", *(_stamp(path) for path in sorted(Path(source).iterdir())))
    if isinstance(source, Slice):
        return digest("slice", _stamp(source.path), f"{source.offset} {source.size}")
    found = bytes_or_file(source, visual.kind)
    return digest("bytes", found) if isinstance(found, bytes) else digest("file", _stamp(found))


def digest(*parts: str | bytes) -> str:
    """A short name of parts, another one for every other order or division of them."""
    name = hashlib.blake2b(digest_size=20)
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        name.update(len(raw).to_bytes(8, "little") + raw)
    return name.hexdigest()


def _stamp(path: Path) -> str:
    seen = path.stat()
    return f"{path.absolute()} {seen.st_size} {seen.st_mtime_ns}"
