"""Steps that chat templates share: the system text, parts of messages as spans, white space."""

from collections.abc import Sequence
from dataclasses import replace

from mmblocks.components import Span
from mmblocks.conversation import Message, Part, Text
from mmblocks.errors import DataError


def split_system(messages: Sequence[Message], default: str | None) -> tuple[tuple[Part, ...], tuple[Message, ...]]:
    """The parts of the system text, and the turns after it.

    A system message in the conversation replaces the template's; an empty one means no system text at all.
    """
    has_system = bool(messages) and messages[0].role == "system"
    turns = tuple(messages[1:] if has_system else messages)
    for i, message in enumerate(turns, start=len(messages) - len(turns)):
        if message.role == "system":
            raise DataError(f"message {i} is a system message; a system message can only be the first one.")
    if has_system:
        return tuple(part for part in messages[0].parts if part != Text("")), turns
    return (Text(default),) if default else (), turns


def make_spans(parts: Sequence[Part], *, learn: bool, around: tuple[str, str] = ("", "")) -> list[Span]:
    """Parts as spans. Images and videos are never learned, nor is the text that is written `around` each."""
    before, after = ([Span(text)] if text else [] for text in around)
    return [
        span
        for p in parts
        for span in ([Span(p.text, learn, literal=True)] if isinstance(p, Text) else [*before, Span(p), *after])
    ]


def strip_ends(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Parts without white space at the two ends of the message."""
    stripped = list(parts)
    if stripped and isinstance(stripped[0], Text):
        stripped[0] = replace(stripped[0], text=stripped[0].text.lstrip())
    if stripped and isinstance(stripped[-1], Text):
        stripped[-1] = replace(stripped[-1], text=stripped[-1].text.rstrip())
    return tuple(stripped)


def strip_each_text(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Parts without white space around each text."""
    return tuple(replace(part, text=part.text.strip()) if isinstance(part, Text) else part for part in parts)
