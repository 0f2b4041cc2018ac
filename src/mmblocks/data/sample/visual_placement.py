"""Where visuals stand in a message: where they were written, or in front of its text, as LLaVA-NeXT-Interleave mixes them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Literal

from mmblocks.conversation import Conversation, Part, Text, Visual

VisualOrder = Literal["as_written", "front", "mixed"]


def place_visuals(conversation: Conversation, visuals: VisualOrder, seed: int = 0) -> Conversation:
    """A conversation with its visuals where a run wants them.

    "front" moves the visuals of each message of the user before its text; "mixed" does so for half of the
    conversations, chosen by `seed` and what the conversation holds. A visual in the middle of a line leaves its name
    there ("image 2", or "the image" when it is the only one), so that the text can still be read.
    """
    if visuals == "as_written":
        return conversation
    if visuals == "mixed":  # a fair coin for this conversation
        content = "\n".join([str(seed), conversation.origin, *(m.text for m in conversation.messages)])
        if blake2b(content.encode(), digest_size=1).digest()[0] % 2:
            return conversation
    totals, counts = Counter(v.kind for v in conversation.visuals), Counter[str]()
    messages = []
    for message in conversation.messages:
        shown = [part for part in message.parts if isinstance(part, Visual)]
        names = []
        for kind in (visual.kind for visual in shown):
            counts[kind] += 1
            names.append(f"the {kind}" if totals[kind] == 1 else f"{kind} {counts[kind]}")
        if message.role == "user" and list(message.parts[: len(shown)]) != shown:
            message = replace(message, parts=_move_to_front(message.parts, iter(names)))
        messages.append(message)
    return replace(conversation, messages=tuple(messages))


def _move_to_front(parts: Sequence[Part], names: Iterator[str]) -> tuple[Part, ...]:
    """Visuals first, then the text on a line of its own, with the name of each visual that stood in the middle of a line."""
    text = ""
    for part in parts:
        if isinstance(part, Text):
            text += part.text
        else:
            name, line = next(names), text.rpartition("\n")[2]
            text += name if line.strip() else ""
    visuals = tuple(part for part in parts if isinstance(part, Visual))
    return (*visuals, Text(f"\n{text.strip()}")) if text.strip() else visuals
