"""Questions as LLaVA-OneVision's published runs ask them (lmms-eval, the default prompts of its tasks)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mmblocks.conversation import Conversation, Message, Part, Text, Visual
from mmblocks.data.records.turns import MARKER, split_at_markers
from mmblocks.errors import DataError
from mmblocks.eval.document import Document
from mmblocks.eval.metrics.letters import list_letters

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
ONE_WORD = "\nAnswer the question with a single word."
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


def list_options(options: Iterable[str], form: str = "{}. {}") -> str:
    """One line for each option behind its letter, a newline between two."""
    options = list(options)
    return "\n".join(form.format(*pair) for pair in zip(list_letters(len(options)), options, strict=True))
