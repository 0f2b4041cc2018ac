"""Messages whose content is a list of parts: each names its image or video, or takes the record's next one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmblocks.conversation import Conversation, Message, Visual
from mmblocks.data.records.json_records import refuse_duplicates
from mmblocks.data.records.named_media import KINDS, Media, MediaRoots
from mmblocks.data.records.turns import MARKER, Turn, split_at_markers
from mmblocks.errors import DataError
from mmblocks.shapes import VisualKind

LINKS: Mapping[str, VisualKind] = {"image_url": "image", "video_url": "video"}


def convert_parts(turns: Sequence[Turn], media: Media, roots: MediaRoots, origin: str) -> Conversation:
    """Turns of which some are lists of parts, as a conversation.

    Parts stay where they are written. In texts beside them, markers stand for the media of the record, where it has
    some. Media that nothing stands for are shown before the first question; some of them left over are a `DataError`.
    """
    has_media = any(media.values())
    only_videos = bool(media["video"]) and not media["image"]
    contents = [_parts(turn, only_videos) if has_media else _list_parts(turn) for turn in turns]
    if has_media and not any(_is_visual(part) for parts in contents for part in parts):
        contents = _shown_first(turns, contents, media)
    taking = _MediaTaker(media, roots)
    messages = [
        {
            "role": turn.role,
            "content": [taking.resolve_part(p, f"{origin}: message {i}, part {j}") for j, p in enumerate(parts)],
        }
        for i, (turn, parts) in enumerate(zip(turns, contents, strict=True))
    ]
    taking.require_all_taken(origin)
    talk = Conversation.from_messages(messages, origin)
    found = [_finish_message(message, turn, origin) for message, turn in zip(talk.messages, turns, strict=True)]
    return replace(talk, messages=tuple(found))


def _list_parts(turn: Turn) -> list[Any]:
    return [{"type": "text", "text": turn.content}] if isinstance(turn.content, str) else list(turn.content)


def _parts(turn: Turn, only_videos: bool) -> list[Any]:
    """The parts of a turn, the markers in its texts as parts of their own."""
    return [split for part in _list_parts(turn) for split in _split_markers(part, only_videos)]


def _split_markers(part: Any, only_videos: bool) -> list[Any]:
    text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
    if not isinstance(text, str) or not MARKER.search(text):
        return [part]
    pieces = split_at_markers(text, only_videos)
    return [{"type": p} if isinstance(p, str) else {**part, "text": p.text} for p in pieces]


def _is_visual(part: Any) -> bool:
    return isinstance(part, Mapping) and (part.get("type") in KINDS or part.get("type") in LINKS)


def _shown_first(turns: Sequence[Turn], contents: list[list[Any]], media: Media) -> list[list[Any]]:
    visuals = [{"type": kind} for kind in KINDS for _ in media[kind]]
    first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
    return [[*visuals, *parts] if i == first else parts for i, parts in enumerate(contents)]


class _MediaTaker:
    """The media of a record, taken by its parts one after another."""

    def __init__(self, media: Media, roots: MediaRoots) -> None:
        self.media, self.roots = media, roots
        self.taken: dict[VisualKind, int] = dict.fromkeys(KINDS, 0)

    def resolve_part(self, part: Any, where: str) -> Any:
        """A part without the nulls of a table's other columns, its image or video as a `Visual`."""
        if not isinstance(part, Mapping):
            return part
        refuse_duplicates(part, where)
        said = {key: value for key, value in part.items() if value is not None}
        kind = said.get("type")
        if isinstance(kind, str) and kind in LINKS:
            return self._linked(said, kind, where)
        if kind not in KINDS:
            return said
        return (
            {**said, kind: self._make_visual(said[kind], kind, where)}
            if kind in said
            else self._next(said, kind, where)
        )

    def _next(self, said: dict[str, Any], kind: VisualKind, where: str) -> dict[str, Any]:
        number = self.taken[kind]
        if number == len(self.media[kind]):
            raise DataError(
                f"{where}: no {kind} is left for it; give the part a {kind!r} entry, or the record one more."
            )
        if (index := said.pop("index", number)) != number:
            raise DataError(
                f"{where}: its index is {index!r}, but it is the {kind} of number {number}; write them in order."
            )
        self.taken[kind] += 1
        return {**said, kind: self.media[kind][number]}

    def _linked(self, said: dict[str, Any], key: str, where: str) -> dict[str, Any]:
        link = said.get(key)
        if isinstance(link, Mapping) and link.get("url") is not None:
            return {**said, key: {**link, "url": self._make_visual(link["url"], LINKS[key], where)}}
        return {**said, key: self._make_visual(link, LINKS[key], where)} if isinstance(link, str) else said

    def _make_visual(self, named: Any, kind: VisualKind, where: str) -> Visual:
        found = self.roots.make_visuals(kind, named, where)
        if len(found) != 1:
            raise DataError(f"{where}: a part of type {kind!r} names {len(found)}; write a part for each.")
        return found[0]

    def require_all_taken(self, origin: str) -> None:
        """Raise `DataError` for media that no part has taken."""
        for kind in KINDS:
            if left := len(self.media[kind]) - self.taken[kind]:
                raise DataError(f"{origin}: {len(self.media[kind])} {kind}s, but {left} of them stand in no message.")


def _finish_message(message: Message, turn: Turn, origin: str) -> Message:
    if message.role == "assistant" and not message.text.strip():
        raise DataError(f"{origin}: an answer is empty, so only silence would be learned; write it or remove it.")
    parts = tuple(_unwrapped(part) if isinstance(part, Visual) else part for part in message.parts)
    return replace(message, parts=parts, learn=turn.learn)


def _unwrapped(visual: Visual) -> Visual:
    """A visual of a part: what was opened for it, with the note and the pace that the part gives."""
    return replace(visual.source, note=visual.note, fps=visual.fps)
