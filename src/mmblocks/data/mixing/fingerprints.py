"""The texts and media of records as numbers: the same after a copy to another disk, others after an edit.

Text counts as it is read, so that a file may be written in another form. Media count by their content: of a file its size,
its first and its last 64 KiB. The stamp of a file (its times, its place on the disk) only saves reading it again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path
from stat import S_ISREG
from typing import IO, Any, NamedTuple, TypeGuard

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mmblocks.conversation import Item, PreferencePair, Text, Visual
from mmblocks.data.media.files import FileSlice
from mmblocks.data.media.identity import identify_visual
from mmblocks.data.mixing.mixture import Draw, Draws, Mixture, list_distinct_draws
from mmblocks.errors import DataError
from mmblocks.reprs import format_by_shape

END_BYTES = 1 << 16
MOST_FRAMES = 32
"""Images of a video whose content is read, evenly spread; of the others the name and the size count."""
CHUNK = 64
"""Records that a worker process reads at a time."""


class Fingerprint(NamedTuple):
    """A record's text, its media, and the stamps of its files: 64 bits each, 0 where unknown."""

    text: int
    media: int
    stamp: int

    def has_same_content(self, other: Fingerprint) -> bool:
        return self[:2] == other[:2]


UNREADABLE = Fingerprint(0, 0, 0)
SYNTHETIC = Fingerprint(1, 0, 0)
"""Of a record that is made as it is read: its source's settings decide it."""


def fingerprint_item(item: Item, before: Fingerprint | None = None) -> Fingerprint:
    """Of a conversation, or of both of a pair. before: an earlier one of the same record; files whose stamps are the same
    are not read again.
    """
    both = (item.chosen, item.rejected) if isinstance(item, PreferencePair) else (item,)
    sources: list[object] = []
    text: list[bytes] = []
    for conversation in both:
        own = [visual.source for visual in conversation.visuals]
        if not (sources and all(map(_is_path, sources)) and own == sources):  # both of a pair often show the same files
            sources += own
        for message in conversation.messages:
            text.append(f"{message.role} {message.learn}".encode())
            for part in message.parts:
                line = f"text {part.text}" if isinstance(part, Text) else f"{part.kind} {part.fps} {part.note}"
                text.append(line.encode("utf-8", "surrogatepass"))
    try:
        stamps = [stamp for source in sources for stamp in _read_stamps(source)]
    except (OSError, ValueError):
        stamps = []
    stamp = _hash_parts(stamps) if stamps else 0
    if before is not None and stamp and stamp == before.stamp:
        media = before.media
    else:
        media = _hash_parts(chain.from_iterable(map(_read_content, sources)))
    return Fingerprint(_hash_parts(text), media, stamp)


def _hash_parts(parts: Iterable[bytes]) -> int:
    """64 bits of parts, others for every other order or division of them; never 0."""
    digest = hashlib.sha1(usedforsecurity=False)  # the fastest of hashlib where the processor has it
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return int.from_bytes(digest.digest()[:8], "little", signed=True) or 1


# Media ----------------------------------------------------------------------------------------------------------------


def _read_content(source: object) -> Iterator[bytes]:
    """What decides what an image or video shows; nothing of its name."""
    try:
        if isinstance(source, FileSlice):
            with source.open() as file:
                yield from _read_ends(file, source.size)
        elif (frames := _find_frame_files(source)) is not None:
            read = {int(i) for i in np.linspace(0, len(frames) - 1, min(len(frames), MOST_FRAMES))}
            for number, path in enumerate(frames):
                yield from _read_file_ends(path, read_it=number in read)
        elif _is_path(source):
            yield from _read_file_ends(Path(source))
        elif isinstance(source, bytes):
            yield from _read_ends(BytesIO(source), len(source))
        else:
            yield (source if isinstance(source, str) else identify_visual(Visual("image", source))).encode()
    except (OSError, ValueError):  # a DataError too; it is raised when the visual is opened
        yield b"cannot be read"


def _read_ends(file: IO[bytes], size: int) -> Iterator[bytes]:
    yield size.to_bytes(8, "little")
    yield file.read(END_BYTES)
    if size > END_BYTES:
        file.seek(max(END_BYTES, size - END_BYTES))
        yield file.read(END_BYTES)


def _read_file_ends(path: Path, *, read_it: bool = True) -> Iterator[bytes]:
    stat = path.stat()
    if not S_ISREG(stat.st_mode):  # a pipe would be waited for
        raise OSError(f"{path} is no regular file")
    if not read_it:
        yield stat.st_size.to_bytes(8, "little")
        return
    with path.open("rb", buffering=0) as file:
        yield from _read_ends(file, stat.st_size)


def _find_frame_files(source: object) -> list[Path] | None:
    """The images of a video that is given so; None for every other source."""
    if not isinstance(source, tuple) and not (_is_path(source) and Path(source).is_dir()):
        return None
    from mmblocks.data.video.frames_folder import list_frame_files  # imports PyAV, which images do not need

    return list_frame_files(source)


def _read_stamps(source: object) -> Iterator[bytes]:
    if isinstance(source, FileSlice):
        yield from (_stamp_file(source.path), f"{source.offset} {source.size}".encode())
    elif (frames := _find_frame_files(source)) is not None:
        yield from map(_stamp_file, frames)
    elif _is_path(source):
        yield _stamp_file(source)
    else:
        raise ValueError("no file: its content is at hand")


def _stamp_file(path: str | os.PathLike[str]) -> bytes:
    """The time of the last change of a file's entry is among it, which no program can set back."""
    seen = Path(path).stat()
    return f"{path} {seen.st_size} {seen.st_mtime_ns} {seen.st_ctime_ns} {seen.st_ino}".encode(
        "utf-8", "surrogateescape"
    )


def _is_path(source: object) -> TypeGuard[str | os.PathLike[str]]:
    return isinstance(source, os.PathLike) or (isinstance(source, str) and not source.startswith("data:"))


# Records of a mixture -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Fingerprints:
    """Those of the records that are drawn from a mixture, each once: int64 arrays (n,), by source and number.

    sizes: how many records each source holds.
    """

    sizes: tuple[int, ...]
    source: np.ndarray
    record: np.ndarray
    text: np.ndarray
    media: np.ndarray
    stamp: np.ndarray
    __repr__ = format_by_shape

    @classmethod
    def from_draws(cls, mixture: Mixture, found: Mapping[Draw, Fingerprint]) -> Fingerprints:
        rows = [(*draw, *found[draw]) for draw in sorted(found)]
        columns = np.array(rows, dtype=np.int64).reshape(-1, 5).T
        return cls(tuple(map(len, mixture.sources)), *(np.ascontiguousarray(column) for column in columns))

    def __len__(self) -> int:
        return len(self.source)

    @property
    def digest(self) -> str:
        """The same where every record says and shows the same."""
        arrays = (self.source, self.record, self.text, self.media)
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16]

    def map_by_draw(self) -> dict[Draw, Fingerprint]:
        rows = zip(self.source, self.record, self.text, self.media, self.stamp, strict=True)
        return {Draw(int(s), int(r)): Fingerprint(int(t), int(m), int(p)) for s, r, t, m, p in rows}


def fingerprint_draws(
    mixture: Mixture, draws: Draws, *, before: Fingerprints | None = None, workers: int = 0, title: str = ""
) -> Fingerprints:
    """Of every record that is drawn, read in `workers` processes if there are any. before: what is known of them from an
    earlier start. title: what the progress bar says; none is shown without one.
    """
    drawn = list_distinct_draws(draws)
    found = {draw: SYNTHETIC for draw in drawn if mixture.is_synthetic(draw.source)}
    missing = [draw for draw in drawn if draw not in found]
    reader: Any = _FingerprintReader(mixture, missing, {} if before is None else before.map_by_draw())
    rows = chain.from_iterable(
        DataLoader(reader, batch_size=CHUNK, num_workers=workers if missing else 0, collate_fn=list)
    )
    shown = tqdm(
        rows, total=len(missing), desc=title, unit="record", disable=not (title and missing), dynamic_ncols=True
    )
    return Fingerprints.from_draws(mixture, found | dict(zip(missing, shown, strict=True)))


class _FingerprintReader(Dataset[Fingerprint]):
    """Fingerprints of records, read where they are needed: in a worker process if there are any."""

    def __init__(self, mixture: Mixture, draws: list[Draw], known: Mapping[Draw, Fingerprint]) -> None:
        self.mixture, self.draws, self.known = mixture, draws, known

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, number: int) -> Fingerprint:
        draw = self.draws[number]
        try:
            return fingerprint_item(self.mixture[draw], self.known.get(draw))
        except DataError:
            return UNREADABLE
