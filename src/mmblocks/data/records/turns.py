"""Turns of a conversation as people write them: who speaks, what, whether it is learned; visuals where markers stand.

A turn is LLaVA's {"from", "value"} or chat-completions' {"role", "content"}. The texts hold one marker per visual: <image>,
or <video> for videos; in a record that has only videos <image> means a video, as in LLaVA's own files.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mmblocks.conversation import LEARN_KEYS, Conversation, Message, Part, Role, Text, read_learn_flag
from mmblocks.data.records.json_records import refuse_duplicates
from mmblocks.data.records.named_media import KINDS, Media
from mmblocks.errors import DataError
from mmblocks.keys import refuse_unread_keys
from mmblocks.shapes import VisualKind

Placement = Literal["lone_first", "as_written", "all_first"]

MARKER = re.compile("<(image|video)>")
SPEAKERS: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
_TOOLS = "calls of tools are neither shown nor learned; leave the record out, or write them as text"
NOT_READ = {
    **dict.fromkeys(
        ("tool", "function", "observation", "tool_call", "tool_response", "function_call", "ipython"), _TOOLS
    ),
    "developer": "write 'system'",
}
"""Other roles in published data, and why they are not read."""
TURN_KEYS = ("from", "value", "role", "content", *LEARN_KEYS)


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn: its text with the markers in it, or the list of its parts; and whether it is learned."""

    role: Role
    content: str | Sequence[Any]
    learn: bool = True


def read_turns(turns: object, origin: str, column: str = "conversations") -> list[Turn]:
    """Turns as LLaVA or as chat-completions write them; markers stay in the texts."""
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{origin}: {column!r} is {turns!r:.80}; write a list with at least one turn.")
    return [read_turn(turn, f"{origin}, turn {i}") for i, turn in enumerate(turns)]


def read_turn(turn: object, where: str) -> Turn:
    """One turn. Raises `DataError` that begins with `where`, also for a key that nothing reads."""
    if not isinstance(turn, Mapping):
        raise DataError(f"{where}: a turn is {{'from': ..., 'value': ...}}, not {turn!r:.80}.")
    refuse_duplicates(turn, where)
    speaker = _read_either(turn, ("role", "from"), where)
    if isinstance(speaker, str) and speaker in NOT_READ:
        raise DataError(f"{where}: a turn of the role {speaker!r} is not read: {NOT_READ[speaker]}.")
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise DataError(f"{where}: spoken by {speaker!r}; write one of {', '.join(SPEAKERS)}.")
    role = SPEAKERS[speaker]
    refuse_unread_keys(turn, TURN_KEYS, where, "turn")
    content = _read_either(turn, ("content", "value"), where)
    if not isinstance(content, str | list):
        raise DataError(f"{where}: its text is {content!r:.80}; write a string.")
    if role == "assistant" and isinstance(content, str) and not content.strip():
        raise DataError(f"{where}: the answer is empty, so there is nothing to learn; write it or remove the turn.")
    return Turn(role, content, read_learn_flag(turn, role, where))


def _read_either(turn: Mapping[str, Any], keys: tuple[str, str], where: str) -> object:
    """The value of one of two keys that mean the same."""
    values = [turn[key] for key in keys if turn.get(key) is not None]
    if len(values) > 1 and values[0] != values[1]:
        raise DataError(f"{where}: {keys[0]!r} and {keys[1]!r} differ; keep one.")
    return values[0] if values else None


# Markers --------------------------------------------------------------------------------------------------------------

Piece = Text | VisualKind
"""Text, or the kind of the visual that stands there."""


def replace_markers(turns: Sequence[Turn], media: Media, *, origin: str, placement: Placement) -> Conversation:
    """Turns of text whose markers are replaced by the visuals, in their order.

    Where no marker stands at all, the visuals are shown before the first question. Raises `DataError` where the counts
    differ.
    """
    if not any(isinstance(turn.content, str) and MARKER.search(turn.content) for turn in turns):
        turns = prepend_markers(turns, media)
    only_videos = bool(media["video"]) and not media["image"]
    pieces = [split_at_markers(str(turn.content), only_videos) for turn in turns]
    for kind, visuals in media.items():
        markers, given = sum(turn_pieces.count(kind) for turn_pieces in pieces), len(visuals)
        if markers != given:
            cure = f"add the {kind} or remove a marker" if markers > given else f"write <{kind}> where it is shown"
            counts = f"{markers} <{kind}> marker{'s' * (markers != 1)} but {given} {kind}{'s' * (given != 1)}"
            raise DataError(f"{origin}: {counts}; {cure}.")
    unplaced = {kind: iter(visuals) for kind, visuals in media.items()}
    messages = []
    for turn, turn_pieces in zip(turns, pieces, strict=True):
        parts: list[Part] = [piece if isinstance(piece, Text) else next(unplaced[piece]) for piece in turn_pieces]
        shown: list[Part] = [part for part in parts if not isinstance(part, Text)]
        stay = placement == "as_written" or (placement == "lone_first" and len(shown) > 1)
        if not stay and any(isinstance(part, Text) for part in parts[: len(shown)]):
            words = "".join(part.text for part in parts if isinstance(part, Text)).strip()
            parts = [*shown, Text(f"\n{words}")] if words else shown
        messages.append(Message(turn.role, tuple(parts), turn.learn))
    return Conversation(tuple(messages), origin)


def prepend_markers(turns: Sequence[Turn], media: Media) -> Sequence[Turn]:
    """Turns with a marker for every visual before the first question, where there is one."""
    markers = "".join(f"<{kind}>" * len(media[kind]) for kind in KINDS)
    first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None or not markers:
        return turns
    text = turns[first].content
    shown = replace(turns[first], content=f"{markers}\n{text}" if text else markers)
    return [*turns[:first], shown, *turns[first + 1 :]]


def split_at_markers(text: str, only_videos: bool) -> list[Piece]:
    """A text cut at its markers."""
    pieces: list[Piece] = []
    for i, piece in enumerate(MARKER.split(text)):
        if i % 2:
            pieces.append("video" if only_videos or piece == "video" else "image")
        elif piece:
            pieces.append(Text(piece))
    return pieces
