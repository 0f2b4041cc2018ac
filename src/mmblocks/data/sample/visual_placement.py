"""Where visuals stand in a message: where they were written, or in front of its text, as LLaVA-NeXT-Interleave mixes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Literal

from mmblocks.conversation import Conversation, Message, Part, Text, Visual

VisualOrder = Literal["as_written", "front", "mixed"]


def place_visuals(conversation: Conversation, visuals: VisualOrder, seed: int = 0) -> Conversation:
    """A conversation with its visuals where a run wants them.

    "front" moves the visuals of each message of the user before its text; "mixed" does so for half of the
    conversations, chosen by `seed` and what the conversation holds. A visual in the middle of a line leaves its name
    there ("image 2", or "the image" when it is the only one), so that the text can still be read.
    """
    if visuals == "as_written" or (visuals == "mixed" and not _drawn(conversation, seed)):
        return conversation
    names = _name_visuals(conversation.visuals)
    messages = tuple(
        replace(m, parts=_move_to_front(m.parts, names)) if m.role == "user" else _counted_off(m, names)
        for m in conversation.messages
    )
    return replace(conversation, messages=messages)


def _drawn(conversation: Conversation, seed: int) -> bool:
    """A fair coin for this conversation."""
    said = "\n".join([str(seed), conversation.origin, *(m.text for m in conversation.messages)])
    return blake2b(said.encode(), digest_size=1).digest()[0] % 2 == 0


def _name_visuals(visuals: Sequence[Visual]) -> Iterator[str]:
    """What the visuals of a conversation are called in its text, in order."""
    totals, seen = Counter(v.kind for v in visuals), Counter[str]()
    for visual in visuals:
        seen[visual.kind] += 1
        yield f"the {visual.kind}" if totals[visual.kind] == 1 else f"{visual.kind} {seen[visual.kind]}"


def _counted_off(message: Message, names: Iterator[str]) -> Message:
    for part in message.parts:
        if isinstance(part, Visual):
            next(names)
    return message


def _move_to_front(parts: Sequence[Part], names: Iterator[str]) -> tuple[Part, ...]:
    """Visuals first, then the text on a line of its own."""
    visuals = [part for part in parts if isinstance(part, Visual)]
    if not visuals or list(parts[: len(visuals)]) == visuals:
        for _ in visuals:
            next(names)
        return tuple(parts)
    text = ""
    for part in parts:
        text += part.text if isinstance(part, Text) else _left_behind(text, next(names))
    return (*visuals, Text(f"\n{text.strip()}")) if text.strip() else tuple(visuals)


def _left_behind(before: str, name: str) -> str:
    """The name where words stand before it in its line; nothing where a line begins."""
    return name if before.rpartition("\n")[2].strip() else ""
