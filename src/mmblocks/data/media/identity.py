"""A name for the content of a visual, by which it is recognised."""

import hashlib
import os
from pathlib import Path

import numpy as np
from PIL import Image

from mmblocks.conversation import Visual
from mmblocks.data.media.files import FileSlice, resolve_source
from mmblocks.data.media.images import read_image_content


def identify_visual(visual: Visual) -> str:
    """A name that two different visuals do not share: of files from their path, size and time of change, of members of a tar
    from the tar's and where they lie in it, of data in memory from its content.
    """
    source = visual.source
    if isinstance(source, Image.Image):
        return make_digest("image", *read_image_content(source))
    if isinstance(source, np.ndarray):
        content = np.ascontiguousarray(source).data.cast("B") if source.size else b""
        return make_digest("array", f"{source.dtype} {source.shape}", content)
    if isinstance(source, list | tuple):
        return make_digest("several", *(identify_visual(Visual(visual.kind, one)) for one in source))
    if isinstance(source, str | os.PathLike) and Path(source).is_dir():
        return make_digest("folder", *(_stamp_file(path) for path in sorted(Path(source).iterdir())))
    if isinstance(source, FileSlice):
        return make_digest("slice", _stamp_file(source.path), f"{source.offset} {source.size}")
    found = resolve_source(source, visual.kind)
    return make_digest("bytes", found) if isinstance(found, bytes) else make_digest("file", _stamp_file(found))


def is_in_memory(source: object) -> bool:
    """Whether a visual's source is its content, which no file changes."""
    if isinstance(source, list | tuple):
        return all(map(is_in_memory, source))
    return isinstance(source, Image.Image | np.ndarray | bytes)


def make_digest(*parts: str | bytes | memoryview) -> str:
    """A short name of parts, another one for every other order or division of them."""
    name = hashlib.blake2b(digest_size=20)
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        name.update(len(raw).to_bytes(8, "little"))
        name.update(raw)
    return name.hexdigest()


def _stamp_file(path: Path) -> str:
    stat = path.stat()
    return f"{path.absolute()} {stat.st_size} {stat.st_mtime_ns}"
