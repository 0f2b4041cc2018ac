"""Turns of a conversation as people write them: who speaks, what, whether it is learned; visuals where markers stand.

A turn is LLaVA's {"from", "value"} or chat-completions' {"role", "content"}. The texts hold one marker per visual: <image>,
or <video> for videos; in a record that has only videos <image> means a video, as in LLaVA's own files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mmblocks.conversation import LEARN_KEYS, Conversation, Message, Part, Role, Text, Visual, read_learn_flag
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
_TOOLS = "calls of tools are neither shown nor learned; leave the record out, or tell them in words"
NOT_READ = {
    **dict.fromkeys(
        ("tool", "function", "observation", "tool_call", "tool_response", "function_call", "ipython"), _TOOLS
    ),
    "developer": "write 'system'",
}
"""Who else speaks in data of the field, and why it is not read."""
TURN_KEYS = ("from", "value", "role", "content", *LEARN_KEYS)


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn: its text with the markers in it, or the list of its parts; and whether it is learned."""

    role: Role
    content: str | Sequence[Any]
    learn: bool = True


def read_turns(turns: Any, origin: str, column: str = "conversations") -> list[Turn]:
    """Who says what, markers and all, of turns as LLaVA or as chat-completions write them."""
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{origin}: {column!r} is {turns!r:.80}; write a list with at least one turn.")
    return [read_turn(turn, f"{origin}, turn {i}") for i, turn in enumerate(turns)]


def read_turn(turn: Any, where: str) -> Turn:
    """One turn. Raises `DataError` that begins with `where`, also for a key that nothing reads."""
    if not isinstance(turn, Mapping):
        raise DataError(f"{where}: a turn is {{'from': ..., 'value': ...}}, not {turn!r:.80}.")
    refuse_duplicates(turn, where)
    role = _role(_read_either(turn, ("role", "from"), where), where)
    refuse_unread_keys(turn, TURN_KEYS, where, "turn")
    content = _read_either(turn, ("content", "value"), where)
    if not isinstance(content, str | list):
        raise DataError(f"{where}: its text is {content!r:.80}; write a string.")
    if role == "assistant" and isinstance(content, str) and not content.strip():
        raise DataError(f"{where}: the answer is empty, so only silence would be learned; write it or remove the turn.")
    return Turn(role, content, read_learn_flag(turn, role, where))


def _read_either(turn: Mapping[str, Any], keys: tuple[str, str], where: str) -> Any:
    """What stands under either of two keys that mean the same."""
    given = [turn[key] for key in keys if turn.get(key) is not None]
    if len(given) > 1 and given[0] != given[1]:
        raise DataError(f"{where}: {keys[0]!r} and {keys[1]!r} differ; keep one.")
    return given[0] if given else None


def _role(speaker: Any, where: str) -> Role:
    if isinstance(speaker, str) and speaker in NOT_READ:
        raise DataError(f"{where}: a turn of the role {speaker!r} is not read: {NOT_READ[speaker]}.")
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise DataError(f"{where}: spoken by {speaker!r}; write one of {', '.join(SPEAKERS)}.")
    return SPEAKERS[speaker]


# Markers --------------------------------------------------------------------------------------------------------------

Piece = Text | VisualKind
"""Text, or the kind of the visual that stands there."""


def replace_markers(turns: Sequence[Turn], media: Media, *, origin: str, placement: Placement) -> Conversation:
    """Turns of text whose markers are replaced by the visuals, in their order.

    Where no marker stands at all, the visuals are shown before the first question. Raises `DataError` where the counts
    differ.
    """
    marked = turns if any(has_marker(turn) for turn in turns) else prepend_markers(turns, media)
    only_videos = bool(media["video"]) and not media["image"]
    pieces = [split_at_markers(str(turn.content), only_videos) for turn in marked]
    _check_counts(pieces, media, origin)
    waiting: dict[VisualKind, Iterator[Visual]] = {kind: iter(found) for kind, found in media.items()}
    return Conversation(
        tuple(
            Message(turn.role, tuple(_filled(_order_pieces(found, placement), waiting)), turn.learn)
            for turn, found in zip(marked, pieces, strict=True)
        ),
        origin,
    )


def has_marker(turn: Turn) -> bool:
    """Whether a text holds a marker."""
    return isinstance(turn.content, str) and MARKER.search(turn.content) is not None


def prepend_markers(turns: Sequence[Turn], media: Media) -> list[Turn]:
    """Turns with a marker for every visual before the first question, where there is one."""
    markers = "".join(f"<{kind}>" * len(media[kind]) for kind in KINDS)
    first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None or not markers:
        return list(turns)
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


def _order_pieces(pieces: list[Piece], placement: Placement) -> list[Piece]:
    kinds: list[Piece] = [piece for piece in pieces if not isinstance(piece, Text)]
    stay = placement == "as_written" or (placement == "lone_first" and len(kinds) > 1)
    if stay or pieces[: len(kinds)] == kinds:
        return pieces
    words = "".join(piece.text for piece in pieces if isinstance(piece, Text)).strip()
    return [*kinds, Text(f"\n{words}")] if words else kinds


def _filled(pieces: list[Piece], waiting: Mapping[VisualKind, Iterator[Visual]]) -> Iterator[Part]:
    for piece in pieces:
        yield piece if isinstance(piece, Text) else next(waiting[piece])


def _check_counts(pieces: list[list[Piece]], media: Media, origin: str) -> None:
    flat = [piece for found in pieces for piece in found]
    for kind in KINDS:
        wanted, given = flat.count(kind), len(media[kind])
        cure = f"add the {kind} or remove a marker" if wanted > given else f"write <{kind}> where it is shown"
        if wanted != given:
            raise DataError(
                f"{origin}: {_format_count(wanted, f'<{kind}> marker')} but {_format_count(given, kind)}; {cure}."
            )


def _format_count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"
