"""Messages whose content is a list of parts: each names its image or video, or uses the record's next one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mmblocks.conversation import Conversation, Visual
from mmblocks.data.records.json_records import refuse_duplicates
from mmblocks.data.records.named_media import KINDS, Media, MediaRoots
from mmblocks.data.records.turns import MARKER, Turn, split_at_markers
from mmblocks.errors import DataError
from mmblocks.shapes import VisualKind

LINKS: Mapping[str, VisualKind] = {"image_url": "image", "video_url": "video"}


def convert_parts(turns: Sequence[Turn], media: Media, roots: MediaRoots, origin: str) -> Conversation:
    """Turns of which some are lists of parts, as a conversation.

    Parts stay where they are written. In texts beside them, markers stand for the media of the record, where it has
    some. Media without a marker or part are shown before the first question; a rest of them is a `DataError`.
    """
    contents = [
        [{"type": "text", "text": turn.content}] if isinstance(turn.content, str) else list(turn.content)
        for turn in turns
    ]
    if any(media.values()):
        only_videos = bool(media["video"]) and not media["image"]
        contents = [[piece for part in parts for piece in _split_markers(part, only_videos)] for parts in contents]
        types = {part.get("type") for parts in contents for part in parts if isinstance(part, Mapping)}
        if types.isdisjoint((*KINDS, *LINKS)):
            first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
            visuals = [{"type": kind} for kind in KINDS for _ in media[kind]]
            contents = [[*visuals, *parts] if i == first else parts for i, parts in enumerate(contents)]
    resolver = _PartResolver(media, roots)
    messages = [
        {
            "role": turn.role,
            "content": [resolver.resolve_part(p, f"{origin}: message {i}, part {j}") for j, p in enumerate(parts)],
        }
        for i, (turn, parts) in enumerate(zip(turns, contents, strict=True))
    ]
    resolver.require_all_used(origin)
    conversation = Conversation.from_messages(messages, origin)
    finished = []
    for message, turn in zip(conversation.messages, turns, strict=True):
        if message.role == "assistant" and not message.text.strip():
            raise DataError(f"{origin}: an answer is empty, so there is nothing to learn; write it or remove it.")
        # The source of a part's visual is itself a `Visual`: the opened one, without the note and pace of the part.
        parts = [
            replace(part.source, note=part.note, fps=part.fps) if isinstance(part, Visual) else part
            for part in message.parts
        ]
        finished.append(replace(message, parts=tuple(parts), learn=turn.learn))
    return replace(conversation, messages=tuple(finished))


def _split_markers(part: object, only_videos: bool) -> list[object]:
    """A part; a text part with markers as several, each marker a part of its own."""
    if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        return [part]
    if not MARKER.search(part["text"]):
        return [part]
    pieces = split_at_markers(part["text"], only_videos)
    return [{"type": p} if isinstance(p, str) else {**part, "text": p.text} for p in pieces]


class _PartResolver:
    """Replaces what a part names by a `Visual`; parts that name nothing use the media of the record in their order."""

    def __init__(self, media: Media, roots: MediaRoots) -> None:
        self.media, self.roots = media, roots
        self.num_used: dict[VisualKind, int] = dict.fromkeys(KINDS, 0)

    def resolve_part(self, part: object, where: str) -> object:
        """A part without the nulls of a table's other columns, its image or video as a `Visual`."""
        if not isinstance(part, Mapping):
            return part
        refuse_duplicates(part, where)
        entries = {key: value for key, value in part.items() if value is not None}
        kind = entries.get("type")
        if isinstance(kind, str) and kind in LINKS:
            link = entries.get(kind)
            if isinstance(link, Mapping) and link.get("url") is not None:
                return {**entries, kind: {**link, "url": self._make_visual(link["url"], LINKS[kind], where)}}
            return {**entries, kind: self._make_visual(link, LINKS[kind], where)} if isinstance(link, str) else entries
        if kind not in KINDS:
            return entries
        if kind in entries:
            return {**entries, kind: self._make_visual(entries[kind], kind, where)}
        number = self.num_used[kind]
        if number == len(self.media[kind]):
            raise DataError(
                f"{where}: no {kind} is left for it; give the part a {kind!r} entry, or the record one more."
            )
        if (index := entries.pop("index", number)) != number:
            raise DataError(
                f"{where}: its index is {index!r}, but it is the {kind} of number {number}; write them in order."
            )
        self.num_used[kind] += 1
        return {**entries, kind: self.media[kind][number]}

    def _make_visual(self, named: object, kind: VisualKind, where: str) -> Visual:
        visuals = self.roots.make_visuals(kind, named, where)
        if len(visuals) != 1:
            raise DataError(f"{where}: a part of type {kind!r} names {len(visuals)}; write a part for each.")
        return visuals[0]

    def require_all_used(self, origin: str) -> None:
        """Raise `DataError` for media that no part shows."""
        for kind in KINDS:
            if left := len(self.media[kind]) - self.num_used[kind]:
                raise DataError(f"{origin}: {len(self.media[kind])} {kind}s, but {left} of them stand in no message.")
