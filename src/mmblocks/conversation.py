"""What people say and show: messages with text, images and videos in their order. No torch, no decoding."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmblocks.errors import DataError
from mmblocks.keys import refuse_unread_keys
from mmblocks.shapes import VisualKind

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")
LEARN_KEYS = ("loss", "train", "weight")
"""What a turn may hold to say whether it is learned: true or false, or 1 or 0."""


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of text."""

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise DataError(f"Text: {self.text!r:.80} is no text; write a str.")


@dataclass(frozen=True, slots=True)
class Visual:
    """An image or video, not yet opened.

    `source` is a path, bytes, a PIL image (images), or a uint8 array (frames, height, width, 3) (videos);
    `fps` belongs to videos given as arrays. `note` says what is known of it beside its pixels ("camera at (1.2, 0.4)"), for
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

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise DataError(f"Message: role is {self.role!r:.80}; write one of {', '.join(ROLES)}.")
        wrong = (
            [part for part in self.parts if not isinstance(part, Text | Visual)] if self._has_parts else [self.parts]
        )
        if wrong:
            raise DataError(f"Message: {wrong[0]!r:.80} is no part; its parts are a tuple of Text and Visual.")

    @property
    def _has_parts(self) -> bool:
        return isinstance(self.parts, tuple | list)

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
    def from_messages(cls, messages: Sequence[Mapping[str, Any]], origin: str = "conversation") -> Conversation:
        """Read chat-completions messages: {"role", "content": text | [{"type": "text"|"image"|"video", ...}]}.

        An image or video may have a "note" (see `Visual`); an answer may have "loss", "train" (true or false) or "weight"
        (0 or 1), which say whether it is learned. Raises `DataError` for keys that nothing reads.
        """
        if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
            raise DataError(
                f"{origin}: {messages!r:.80} is no list of messages; write [{{'role': ..., 'content': ...}}, ...]."
            )
        return cls(tuple(_read_message(m, f"{origin}: message {i}") for i, m in enumerate(messages)), origin)


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two conversations that differ in the last answer: one that was preferred, and one that was not."""

    chosen: Conversation
    rejected: Conversation

    @property
    def origin(self) -> str:
        return self.chosen.origin


Item = Conversation | PreferencePair
"""What a source of training data holds."""


def read_learn_flag(turn: Mapping[str, Any], role: Role, where: str) -> bool:
    """Whether a turn is to be learned, as its `LEARN_KEYS` say; an answer is unless it is told otherwise."""
    said = {key: turn[key] for key in LEARN_KEYS if turn.get(key) is not None}
    if not said:
        return True
    for key, value in said.items():
        if not isinstance(value, int | float) or value not in (0, 1):
            raise DataError(
                f"{where}: {key!r} is {value!r}; an answer is learned or not, with no weight between: write true or false."
            )
    if len({bool(value) for value in said.values()}) > 1:
        raise DataError(f"{where}: {' and '.join(f'{k!r} is {v!r}' for k, v in said.items())}; keep one.")
    if role != "assistant" and any(said.values()):
        raise DataError(
            f"{where}: {' and '.join(map(repr, said))} would let a turn of the {role} be learned, but only answers can be; "
            "remove it."
        )
    return role != "assistant" or all(said.values())


def _read_message(raw: Mapping[str, Any], where: str) -> Message:
    if not isinstance(raw, Mapping):
        raise DataError(f"{where} is {raw!r:.80}; a message is {{'role': ..., 'content': ...}}.")
    role = raw.get("role")
    if role not in ROLES:
        raise DataError(f"{where}: role is {role!r}; write one of {', '.join(ROLES)}.")
    refuse_unread_keys(raw, ("role", "content", *LEARN_KEYS), where, "turn")
    content, learn = raw.get("content"), read_learn_flag(raw, role, where)
    if isinstance(content, str):
        return Message(role, (Text(content),), learn)
    if not isinstance(content, Sequence):
        raise DataError(f"{where}: content is {content!r}; write a text or a list of parts.")
    return Message(role, tuple(_parts(content, where)), learn)


PART_KEYS: Mapping[str, tuple[str, ...]] = {
    "text": ("type", "text"),
    "image": ("type", "image", "note"),
    "video": ("type", "video", "fps", "note"),
    "image_url": ("type", "image_url", "note"),
    "video_url": ("type", "video_url", "note"),
}
"""The keys of a part, by its type."""


def _parts(content: Sequence[Any], where: str) -> Iterator[Part]:
    for i, raw in enumerate(content):
        kind = raw.get("type") if isinstance(raw, Mapping) else None
        if not isinstance(kind, str) or kind not in PART_KEYS:
            raise DataError(f"{where}, part {i}: {raw!r:.200}; a part is {{'type': 'text'|'image'|'video', ...}}.")
        yield _read_part(raw, kind, f"{where}, part {i}")


def _read_part(raw: Mapping[str, Any], kind: str, where: str) -> Part:
    refuse_unread_keys(raw, PART_KEYS[kind], where, "part")
    found = _field(raw, kind, where)
    if kind == "text":
        return Text(_require_text(found, f"{where}: its text"))
    note = "" if raw.get("note") is None else _require_text(raw["note"], f"{where}: note")
    if kind == "image":
        return Visual("image", found, note=note)
    if kind == "video":
        return Visual("video", found, _read_fps(raw, found, where), note)
    if isinstance(found, Mapping):
        refuse_unread_keys({k: v for k, v in found.items() if (k, v) != ("detail", "auto")}, ("url",), where, "part")
        found = found.get("url")
    return Visual("image" if kind == "image_url" else "video", found, note=note)


def _read_fps(raw: Mapping[str, Any], found: Any, where: str) -> float:
    """Frames per second of a video that has no clock of its own; `found` may be a `Visual` that was opened before."""
    given, fps = (found.source, found.fps) if isinstance(found, Visual) else (found, 1.0)
    if raw.get("fps") is None:
        return fps
    if not isinstance(raw["fps"], int | float) or isinstance(raw["fps"], bool) or not 0 < raw["fps"] < math.inf:
        raise DataError(f"{where}: fps is {raw['fps']!r:.80}; write frames per second, a number above 0.")
    if isinstance(given, bytes) or (isinstance(given, str | Path) and not os.path.isdir(given)):  # noqa: PTH112 - a long URI is none
        raise DataError(
            f"{where}: fps is {raw['fps']!r}, but a video file has a clock of its own, so nothing reads it; remove it, or "
            "add it to the source's `ignore`. How many frames are shown is a setting of the visual tokenizer."
        )
    return float(raw["fps"])


def _field(raw: Mapping[str, Any], key: str, where: str) -> Any:
    if raw.get(key) is None:
        raise DataError(f"{where}: a part of type {raw['type']!r} has no {key!r} entry.")
    return raw[key]


def _require_text(given: Any, what: str) -> str:
    if not isinstance(given, str):
        raise DataError(f"{what} is {given!r:.80}; write a text, or leave it out.")
    return given
