"""What the readers of option letters have in common."""

import re
from string import ascii_uppercase

MARKS = ",.!?;:'"
"""Marks that MMMU's parsers take off both ends of an answer, one kind after the other."""


def list_letters(count: int) -> str:
    """The letters of `count` options, from A on."""
    return ascii_uppercase[:count]


def strip_marks(text: str, marks: str = MARKS) -> str:
    """Take marks off both ends, one kind after the other: of ".,x" the comma stays, as in the originals."""
    for mark in marks:
        text = text.strip(mark)
    return text


def find_lone_letter(text: str, letters: str) -> str | None:
    """The first of `letters` that is a word of its own."""
    found = re.search(rf"\b[{letters}]\b", text)
    return found.group() if found else None


def match_texts(answer: str, options: dict[str, str]) -> list[str]:
    """Letters of the options whose text is in an answer, case aside."""
    lowered = answer.lower()
    return [letter for letter, text in options.items() if text.lower() in lowered]
