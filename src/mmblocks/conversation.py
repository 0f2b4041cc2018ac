"""What people say and show: messages with text, pictures and clips in their order. No torch, no decoding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mmblocks.errors import DataError
from mmblocks.shapes import VisualKind

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of text."""

    text: str


@dataclass(frozen=True, slots=True)
class Visual:
    """A picture or clip, not yet opened.

    `source` is a path, bytes, a PIL image (pictures), or a uint8 array (frames, height, width, 3) (clips);
    `fps` belongs to clips given as arrays. `note` says what is known of it beside its pixels ("camera at (1.2, 0.4)"), for
    tokenizers that tell it.
    """

    kind: VisualKind
    source: Any
    fps: float = 1.0
    note: str = ""


Part = Text | Visual


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: who speaks, and the parts in the order they are read.

    An answer (a turn of the assistant) is learned in training unless `learn` is false.
    """

    role: Role
    parts: tuple[Part, ...]
    learn: bool = True

    @property
    def is_learned(self) -> bool:
        return self.learn and self.role == "assistant"

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, Text))


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order. `origin` says where they come from ("file:record"), for error messages."""

    messages: tuple[Message, ...]
    origin: str = "conversation"

    @property
    def visuals(self) -> tuple[Visual, ...]:
        return tuple(p for m in self.messages for p in m.parts if isinstance(p, Visual))

    @classmethod
    def of(cls, messages: Sequence[Mapping[str, Any]], origin: str = "conversation") -> Conversation:
        """Read chat-completions messages: {"role", "content": text | [{"type": "text"|"image"|"video", ...}]}.

        A picture or clip may have a "note" (see `Visual`).
        """
        return cls(tuple(_message(m, f"{origin}: message {i}") for i, m in enumerate(messages)), origin)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two conversations that differ in the last answer: one that was preferred, and one that was not."""

    chosen: Conversation
    rejected: Conversation

    @property
    def origin(self) -> str:
        return self.chosen.origin


Item = Conversation | Pair
"""What a source of training data holds."""


def _message(raw: Mapping[str, Any], where: str) -> Message:
    role = raw.get("role")
    if role not in ROLES:
        raise DataError(f"{where}: role is {role!r}; write one of {', '.join(ROLES)}.")
    content = raw.get("content")
    if isinstance(content, str):
        return Message(role, (Text(content),))
    if not isinstance(content, Sequence):
        raise DataError(f"{where}: content is {content!r}; write a text or a list of parts.")
    return Message(role, tuple(_parts(content, where)))


def _parts(content: Sequence[Any], where: str) -> Iterator[Part]:
    for i, raw in enumerate(content):
        kind = raw.get("type") if isinstance(raw, Mapping) else None
        if kind == "text":
            yield Text(_field(raw, "text", f"{where}, part {i}"))
        elif kind in ("image", "video"):
            source = _field(raw, kind, f"{where}, part {i}")
            yield Visual(kind, source, float(raw.get("fps", 1.0)), _note(raw, f"{where}, part {i}"))
        elif kind in ("image_url", "video_url"):
            url = _field(raw, kind, f"{where}, part {i}")
            source = url.get("url") if isinstance(url, Mapping) else url
            yield Visual("image" if kind == "image_url" else "video", source, note=_note(raw, f"{where}, part {i}"))
        else:
            raise DataError(f"{where}, part {i}: {raw!r}; a part is {{'type': 'text'|'image'|'video', ...}}.")


def _field(raw: Mapping[str, Any], key: str, where: str) -> Any:
    if raw.get(key) is None:
        raise DataError(f"{where}: a part of type {raw['type']!r} has no {key!r} entry.")
    return raw[key]


def _note(raw: Mapping[str, Any], where: str) -> str:
    note = raw.get("note", "")
    if not isinstance(note, str):
        raise DataError(f"{where}: note is {note!r}; write a text, or leave it out.")
    return note
