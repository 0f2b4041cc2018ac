"""Questions as LLaVA-OneVision's published runs ask them (lmms-eval, the default prompts of its tasks)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mmblocks.conversation import Conversation, Message, Part, Role, Text, Visual
from mmblocks.data.records.turns import MARKER, split_at_markers
from mmblocks.errors import DataError
from mmblocks.eval.document import Document
from mmblocks.eval.metrics.letters import list_letters

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
ONE_WORD = "\nAnswer the question with a single word."
ROLES: tuple[Role, Role] = ("user", "assistant")
LETTER = "\nAnswer with the option's letter from the given choices directly."


def make_question(document: Document, text: str) -> Conversation:
    """One message of the user about the document's images and videos."""
    parts = place_visuals(text, document.visuals, document.where)
    return Conversation((Message("user", parts),), document.where)


def place_visuals(text: str, visuals: Sequence[Visual], where: str) -> tuple[Part, ...]:
    """Visuals where markers stand in the text; without markers in front of it, with a blank between two and a newline behind.

    As in lmms-eval's class for LLaVA-OneVision. Raises `DataError` where the counts differ.
    """
    if not MARKER.search(text):
        between = [part for visual in visuals for part in (Text(" "), visual)][1:]
        return (*between, Text(f"\n{text}" if visuals else text))
    pieces = split_at_markers(text, all(visual.kind == "video" for visual in visuals))
    num_markers = sum(not isinstance(piece, Text) for piece in pieces)
    if num_markers != len(visuals):
        raise DataError(
            f"{where}: {num_markers} markers but {len(visuals)} images or videos; write a marker for each, or none."
        )
    unplaced = iter(visuals)
    return tuple(piece if isinstance(piece, Text) else next(unplaced) for piece in pieces)


def place_turns(turns: object, visuals: Sequence[Visual], where: str) -> Conversation:
    """Turns of {"value"}, the user's and the model's in turn; visuals where their markers stand."""
    texts = [turn.get("value") for turn in turns if isinstance(turn, Mapping)] if isinstance(turns, list) else []
    if len(texts) % 2 == 0 or not all(isinstance(text, str) for text in texts):
        raise DataError(
            f"{where}: the turns are {turns!r:.200}; write a list of {{'value': text}} that ends with the user's."
        )
    messages, shown = [], 0
    for number, text in enumerate(map(str, texts)):
        count = len(MARKER.findall(text)) if number or MARKER.search("".join(map(str, texts))) else len(visuals)
        messages.append(Message(ROLES[number % 2], place_visuals(text, visuals[shown : shown + count], where)))
        shown += count
    if shown != len(visuals):
        raise DataError(f"{where}: {shown} <image> markers but {len(visuals)} images; add or remove one.")
    return Conversation(tuple(messages), where)


def list_options(options: Iterable[str], form: str = "{}. {}") -> str:
    """One line for each option behind its letter, a newline between two."""
    options = list(options)
    return "\n".join(form.format(*pair) for pair in zip(list_letters(len(options)), options, strict=True))
