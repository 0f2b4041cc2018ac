"""Options of multiple-choice questions, in the forms in which they are published."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mmblocks.errors import DataError
from mmblocks.eval.documents.layout import is_absent
from mmblocks.eval.metrics.letters import list_letters

MOST_OPTIONS = 26


@dataclass(frozen=True, slots=True)
class Choices:
    """The options of a question, and which is right."""

    options: tuple[str, ...]
    right: int

    @property
    def letter(self) -> str:
        return list_letters(len(self.options))[self.right]


def read_choices(fields: Mapping[str, Any], where: str, name: str = "options") -> Choices:
    """The options of a field or of the columns A, B, ..., and the answer: a letter, a number from 0, or the option's text.

    Raises `DataError` that begins with `where` for an answer that is none of the options.
    """
    options = read_options(fields, where, name)
    answer = fields["answer"]
    text = str(answer).strip()
    letters = list_letters(len(options))
    if text in options and len(text) > 1:
        return Choices(options, options.index(text))
    if len(text) == 1 and text.upper() in letters:
        return Choices(options, letters.index(text.upper()))
    if text.isdecimal() and int(text) < len(options):
        return Choices(options, int(text))
    if text in options:
        return Choices(options, options.index(text))
    raise DataError(
        f"{where}: the answer {answer!r:.80} is none of its {len(options)} options; write a letter, a number from 0, or a text."
    )


def read_letters(fields: Mapping[str, Any], where: str, name: str = "options") -> tuple[str, ...]:
    """The letters of the options that `read_options` finds."""
    return tuple(list_letters(len(read_options(fields, where, name))))


def read_options(fields: Mapping[str, Any], where: str, name: str = "options") -> tuple[str, ...]:
    """The options: a list, a list written as text, or the columns A, B, ... up to the first that holds nothing."""
    value = fields.get(name)
    if value is None:
        letters = list_letters(MOST_OPTIONS)
        count = next((i for i, letter in enumerate(letters) if is_absent(fields.get(letter))), MOST_OPTIONS)
        value = [fields[letter] for letter in letters[:count]]
    if isinstance(value, str):
        with suppress(ValueError, SyntaxError):
            value = ast.literal_eval(value)
    if not isinstance(value, list | tuple) or len(value) > MOST_OPTIONS:
        raise DataError(f"{where}: {name!r} is {value!r:.80}; write a list of up to {MOST_OPTIONS} options.")
    return tuple(str(option) for option in value)
