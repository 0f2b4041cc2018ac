"""What people say and show: messages with text, images and videos in their order. No torch, no decoding."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmblocks.errors import DataError
from mmblocks.keys import refuse_unread_keys
from mmblocks.shapes import VisualKind

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")
LEARN_KEYS = ("loss", "train", "weight")
"""Keys that say whether a turn is learned: true or false, or 1 or 0."""


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
    `fps` belongs to videos given as arrays. `note` holds facts beside the pixels ("camera at (1.2, 0.4)"), for visual
    tokenizers that put them into the prompt.
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
        parts = self.parts if isinstance(self.parts, tuple | list) else [self.parts]
        for part in parts:
            if part is self.parts or not isinstance(part, Text | Visual):
                raise DataError(f"Message: {part!r:.80} is no part; its parts are a tuple of Text and Visual.")

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
    """Whether a turn is to be learned, as its `LEARN_KEYS` say; an answer is where they say nothing."""
    flags = {key: turn[key] for key in LEARN_KEYS if turn.get(key) is not None}
    for key, value in flags.items():
        if not isinstance(value, int | float) or value not in (0, 1):
            raise DataError(
                f"{where}: {key!r} is {value!r}; an answer is learned or not, with no weight between: write true or false."
            )
    if len({bool(value) for value in flags.values()}) > 1:
        raise DataError(f"{where}: {' and '.join(f'{k!r} is {v!r}' for k, v in flags.items())}; keep one.")
    if role != "assistant" and any(flags.values()):
        raise DataError(
            f"{where}: {' and '.join(map(repr, flags))} would let a turn of the {role} be learned, but only answers can be; "
            "remove it."
        )
    return not flags or role != "assistant" or all(flags.values())


PART_KEYS: Mapping[str, tuple[str, ...]] = {
    "text": ("type", "text"),
    "image": ("type", "image", "note"),
    "video": ("type", "video", "fps", "note"),
    "image_url": ("type", "image_url", "note"),
    "video_url": ("type", "video_url", "note"),
}
"""The keys of a part, by its type."""


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
    return Message(role, tuple(_read_part(part, f"{where}, part {i}") for i, part in enumerate(content)), learn)


def _read_part(raw: object, where: str) -> Part:
    kind = raw.get("type") if isinstance(raw, Mapping) else None
    if not isinstance(raw, Mapping) or not isinstance(kind, str) or kind not in PART_KEYS:
        raise DataError(f"{where}: {raw!r:.200}; a part is {{'type': 'text'|'image'|'video', ...}}.")
    refuse_unread_keys(raw, PART_KEYS[kind], where, "part")
    content, note = raw.get(kind), raw.get("note")
    if content is None:
        raise DataError(f"{where}: a part of type {kind!r} has no {kind!r} entry.")
    text, name = (content, "its text") if kind == "text" else (note, "note")
    if text is not None and not isinstance(text, str):
        raise DataError(f"{where}: {name} is {text!r:.80}; write a text, or leave it out.")
    if kind == "text":
        return Text(content)
    if kind == "video":
        return Visual("video", content, _read_fps(raw, content, where), note or "")
    if kind != "image" and isinstance(content, Mapping):  # {"url": ..., "detail": "auto"}
        refuse_unread_keys({k: v for k, v in content.items() if (k, v) != ("detail", "auto")}, ("url",), where, "part")
        content = content.get("url")
    return Visual("video" if kind == "video_url" else "image", content, note=note or "")


def _read_fps(raw: Mapping[str, Any], content: object, where: str) -> float:
    """Frames per second of a video that has no clock of its own; `content` may already be a `Visual`."""
    source, default = (content.source, content.fps) if isinstance(content, Visual) else (content, 1.0)
    fps = raw.get("fps")
    if fps is None:
        return default
    if not isinstance(fps, int | float) or isinstance(fps, bool) or not 0 < fps < math.inf:
        raise DataError(f"{where}: fps is {fps!r:.80}; write frames per second, a number above 0.")
    if isinstance(source, bytes) or (isinstance(source, str | Path) and not os.path.isdir(source)):  # noqa: PTH112 - a long URI is none
        raise DataError(
            f"{where}: fps is {fps!r}, but a video file has a clock of its own, so nothing reads it; remove it, or "
            "add it to the source's `ignore`. How many frames are shown is a setting of the visual tokenizer."
        )
    return float(fps)
