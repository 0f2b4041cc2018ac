"""LLaVA's JSON and JSONL files: one record to one conversation, or a DataError that names the record.

A record: {"id", "image": path or [paths], "video": path or [paths], "conversations": [{"from", "value"}, ...]}; turns
with {"role", "content"} are read too. The texts hold one marker per visual: <image>, or <video> for clips; in a record
that has only videos <image> means a video, as in LLaVA's own files.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmblocks.conversation import Conversation, Message, Part, Role, Text, Visual
from mmblocks.errors import DataError
from mmblocks.shapes import VisualKind

Placement = Literal["lone_first", "as_written", "all_first"]

KINDS: tuple[VisualKind, ...] = ("image", "video")
MARKER = re.compile("<(image|video)>")
SPEAKERS: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def read_llava(
    path: Path | str,
    media_root: Path | str | None = None,
    *,
    video_root: Path | str | None = None,
    placement: Placement = "lone_first",
) -> LlavaJson:
    """Open a .json or .jsonl file of LLaVA records.

    Media paths are relative to `media_root` (the file's own folder when not given), those of videos to `video_root`
    when given. A .jsonl file is read record by record and so suits big collections; a .json file is held in memory.

    placement: where visuals stand in a turn. "lone_first" moves the only visual of a turn to its front and keeps
    several where they are, as LLaVA-NeXT does in training (preprocess_multimodal); "as_written" moves none;
    "all_first" puts all of a turn in front of its text.
    """
    path = Path(path)
    images = path.parent if media_root is None else Path(media_root)
    videos = images if video_root is None else Path(video_root)
    return LlavaJson(path, _open(path), {"image": images, "video": videos}, placement)


@dataclass(frozen=True, slots=True)
class LlavaJson:
    """Conversations of one file, by record number from 0; `read_llava` opens it."""

    path: Path
    records: Sequence[Any] | _Lines
    media_roots: Mapping[VisualKind, Path]
    placement: Placement = "lone_first"

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Conversation:
        number = range(len(self))[index]
        record = self.records[number]
        return conversation_of(
            record, self.media_roots, origin=f"{self.path}:record {number}{_called(record)}", placement=self.placement
        )

    def __iter__(self) -> Iterator[Conversation]:
        return (self[i] for i in range(len(self)))


def conversation_of(
    record: Any, media_roots: Mapping[VisualKind, Path], *, origin: str, placement: Placement = "lone_first"
) -> Conversation:
    """One LLaVA record as a conversation. `media_roots` holds a folder for "image" and one for "video"."""
    if not isinstance(record, Mapping):
        raise DataError(f"{origin}: a record is an object with 'conversations', not {record!r:.80}.")
    if isinstance(record, _WithTwins):
        raise DataError(f"{origin}: the key {record.twin!r} stands twice in the record; keep one.")
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{origin}: 'conversations' is {turns!r:.80}; write a list with at least one turn.")
    spoken = [_spoken(turn, f"{origin}, turn {i}") for i, turn in enumerate(turns)]
    media: dict[VisualKind, list[Visual]] = {kind: _media(record, kind, media_roots[kind], origin) for kind in KINDS}
    only_videos = bool(media["video"]) and not media["image"]
    markers = [_pieces(text, only_videos) for _, text in spoken]
    _check_counts(markers, media, origin)
    waiting = {kind: iter(found) for kind, found in media.items()}
    return Conversation(
        tuple(
            Message(role, tuple(_filled(_placed(pieces, placement), waiting)))
            for (role, _), pieces in zip(spoken, markers, strict=True)
        ),
        origin,
    )


# Turns ----------------------------------------------------------------------------------------------------------------

Piece = Text | VisualKind
"""Text, or the kind of the visual that stands there."""


def _spoken(turn: Any, where: str) -> tuple[Role, str]:
    if not isinstance(turn, Mapping):
        raise DataError(f"{where}: a turn is {{'from': ..., 'value': ...}}, not {turn!r:.80}.")
    if isinstance(turn, _WithTwins):
        raise DataError(f"{where}: the key {turn.twin!r} stands twice; keep one.")
    speaker = turn.get("role", turn.get("from"))
    text = turn.get("content", turn.get("value"))
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise DataError(f"{where}: spoken by {speaker!r}; write one of {', '.join(SPEAKERS)}.")
    if not isinstance(text, str):
        raise DataError(f"{where}: its text is {text!r:.80}; write a string.")
    if SPEAKERS[speaker] == "assistant" and not text.strip():
        raise DataError(f"{where}: the answer is empty, so only silence would be learned; write it or remove the turn.")
    return SPEAKERS[speaker], text


def _pieces(text: str, only_videos: bool) -> list[Piece]:
    pieces: list[Piece] = []
    for i, piece in enumerate(MARKER.split(text)):
        if i % 2:
            pieces.append("video" if only_videos or piece == "video" else "image")
        elif piece:
            pieces.append(Text(piece))
    return pieces


def _placed(pieces: list[Piece], placement: Placement) -> list[Piece]:
    kinds: list[Piece] = [piece for piece in pieces if not isinstance(piece, Text)]
    stay = placement == "as_written" or (placement == "lone_first" and len(kinds) > 1)
    if stay or pieces[: len(kinds)] == kinds:
        return pieces
    words = "".join(piece.text for piece in pieces if isinstance(piece, Text)).strip()
    return [*kinds, Text(f"\n{words}")] if words else kinds


def _filled(pieces: list[Piece], waiting: Mapping[str, Iterator[Visual]]) -> Iterator[Part]:
    for piece in pieces:
        yield piece if isinstance(piece, Text) else next(waiting[piece])


def _check_counts(markers: list[list[Piece]], media: Mapping[VisualKind, list[Visual]], origin: str) -> None:
    flat = [piece for pieces in markers for piece in pieces]
    for kind in KINDS:
        wanted, given = flat.count(kind), len(media[kind])
        cure = f"add the {kind} or remove a marker" if wanted > given else f"write <{kind}> where it is shown"
        if wanted != given:
            raise DataError(f"{origin}: {_several(wanted, f'<{kind}> marker')} but {_several(given, kind)}; {cure}.")


def _several(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


# Media ----------------------------------------------------------------------------------------------------------------


def _media(record: Mapping[str, Any], kind: VisualKind, root: Path, origin: str) -> list[Visual]:
    named = record.get(kind)
    names = [] if named is None else [named] if isinstance(named, str) else named
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{origin}: {kind!r} is {named!r:.80}; write a path or a list of paths.")
    for name in names:
        if not (root / name).exists():
            raise DataError(f"{origin}: the {kind} {root / name} does not exist; check the path and the media root.")
    return [Visual(kind, root / name) for name in names]


# Files ----------------------------------------------------------------------------------------------------------------


class _WithTwins(dict[str, Any]):
    """A JSON object in which the key `twin` stood twice."""

    twin: str = ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) == len(pairs):
        return plain
    keys = [key for key, _ in pairs]
    twins = _WithTwins(plain)
    twins.twin = next(key for key in keys if keys.count(key) > 1)
    return twins


def _called(record: Any) -> str:
    name = record.get("id") if isinstance(record, Mapping) else None
    return "" if name is None else f" (id {name})"


def _open(path: Path) -> Sequence[Any] | _Lines:
    if path.suffix not in (".json", ".jsonl"):
        raise DataError(
            f"{path}: its name ends in {path.suffix!r}; LLaVA records are read from .json and .jsonl files."
        )
    if not path.is_file():
        raise DataError(f"{path}: there is no such file.")
    if path.suffix == ".jsonl":
        return _Lines(path)
    records = _parsed(path.read_bytes(), str(path))
    if not isinstance(records, list):
        raise DataError(f"{path}: it holds one {type(records).__name__}; a .json file of LLaVA records is a list.")
    return records


def _parsed(raw: bytes, where: str) -> Any:
    try:
        return json.loads(raw, object_pairs_hook=_object)
    except ValueError as fault:  # bad JSON, or bytes that are not UTF-8
        raise DataError(f"{where}: not JSON: {fault}.") from fault


class _Lines:
    """Records of a .jsonl file, read when asked for; blank lines are none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begins = array("q")
        at = 0
        with path.open("rb") as file:
            for line in file:
                if not line.isspace():
                    self._begins.append(at)
                at += len(line)

    def __len__(self) -> int:
        return len(self._begins)

    def __getitem__(self, number: int) -> Any:
        with self._path.open("rb") as file:
            file.seek(self._begins[number])
            return _parsed(file.readline(), f"{self._path}:record {number}")
