"""LLaVA's JSON and JSONL files: one record to one conversation, or a DataError that names the record.

A record: {"id", "image": path or [paths], "video": path or [paths], "conversations": [{"from", "value"}, ...]}; turns
with {"role", "content"} are read too. The texts hold one marker per visual: <image>, or <video> for clips; in a record
that has only videos <image> means a video, as in LLaVA's own files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmblocks.conversation import Conversation, Message, Part, Role, Text, Visual
from mmblocks.data.named_media import KINDS, Media, MediaRoots
from mmblocks.data.records import Lines, called, open_records, refuse_twins
from mmblocks.errors import DataError
from mmblocks.shapes import VisualKind

Placement = Literal["lone_first", "as_written", "all_first"]

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
    frames_fps: float = 2.0,
) -> LlavaJson:
    """Open a .json or .jsonl file of LLaVA records.

    Media paths are relative to `media_root` (the file's own folder when not given), those of videos to `video_root`
    when given. A .jsonl file is read record by record and so suits big collections; a .json file is held in memory.

    placement: where visuals stand in a turn. "lone_first" moves the only visual of a turn to its front and keeps
    several where they are, as LLaVA-NeXT does in training (preprocess_multimodal); "as_written" moves none;
    "all_first" puts all of a turn in front of its text.

    frames_fps: frames per second of clips that are folders of pictures, or lists of them; LLaVA-NeXT takes them for 2.
    """
    path = Path(path)
    images = path.parent if media_root is None else Path(media_root)
    videos = images if video_root is None else Path(video_root)
    return LlavaJson(path, open_records(path), MediaRoots(images, videos, frames_fps), placement)


@dataclass(frozen=True, slots=True)
class LlavaJson:
    """Conversations of one file, by record number from 0; `read_llava` opens it."""

    path: Path
    records: Sequence[Any] | Lines
    media_roots: MediaRoots
    placement: Placement = "lone_first"

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Conversation:
        number = range(len(self))[index]
        record = self.records[number]
        return conversation_of(
            record, self.media_roots, origin=f"{self.path}:record {number}{called(record)}", placement=self.placement
        )

    def __iter__(self) -> Iterator[Conversation]:
        return (self[i] for i in range(len(self)))


def conversation_of(
    record: Any,
    media_roots: Mapping[VisualKind, Path] | MediaRoots,
    *,
    origin: str,
    placement: Placement = "lone_first",
) -> Conversation:
    """One LLaVA record as a conversation. `media_roots` holds a folder for "image" and one for "video"."""
    if not isinstance(record, Mapping):
        raise DataError(f"{origin}: a record is an object with 'conversations', not {record!r:.80}.")
    refuse_twins(record, origin)
    roots = media_roots if isinstance(media_roots, MediaRoots) else MediaRoots(**media_roots)
    turns = record.get("conversations")
    spoken = spoken_turns(turns, origin)
    media: Media = {kind: roots.visuals(kind, record.get(kind), origin) for kind in KINDS}
    return illustrated(spoken, media, origin=origin, placement=placement)


def spoken_turns(turns: Any, origin: str, column: str = "conversations") -> list[tuple[Role, str]]:
    """Who says what, markers and all, of turns as LLaVA or as chat-completions write them."""
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{origin}: {column!r} is {turns!r:.80}; write a list with at least one turn.")
    return [_spoken(turn, f"{origin}, turn {i}") for i, turn in enumerate(turns)]


def illustrated(
    spoken: Sequence[tuple[Role, str]],
    media: Media,
    *,
    origin: str,
    placement: Placement,
) -> Conversation:
    """Turns whose markers are replaced by the visuals, in their order. Raises `DataError` where the counts differ."""
    only_videos = bool(media["video"]) and not media["image"]
    markers = [_pieces(text, only_videos) for _, text in spoken]
    _check_counts(markers, media, origin)
    waiting: dict[VisualKind, Iterator[Visual]] = {kind: iter(found) for kind, found in media.items()}
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
    refuse_twins(turn, where)
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


def _filled(pieces: list[Piece], waiting: Mapping[VisualKind, Iterator[Visual]]) -> Iterator[Part]:
    for piece in pieces:
        yield piece if isinstance(piece, Text) else next(waiting[piece])


def _check_counts(markers: list[list[Piece]], media: Media, origin: str) -> None:
    flat = [piece for pieces in markers for piece in pieces]
    for kind in KINDS:
        wanted, given = flat.count(kind), len(media[kind])
        cure = f"add the {kind} or remove a marker" if wanted > given else f"write <{kind}> where it is shown"
        if wanted != given:
            raise DataError(f"{origin}: {_several(wanted, f'<{kind}> marker')} but {_several(given, kind)}; {cure}.")


def _several(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"
