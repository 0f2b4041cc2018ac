"""Texts compared without white space, since chat templates strip it and text tokenizers add it."""

from collections.abc import Sequence


class LearnedText:
    """All trained text of a sample. `letters` is it without white space; `_at` says where each letter stood."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = [i for i, letter in enumerate(text) if not letter.isspace()]
        self.letters = "".join(text[i] for i in self._at)

    def find_answer(self, answer: str, stops: Sequence[str], begin: int) -> int | None:
        """Where an answer stands from `begin` on: best before an end of turn, so that a question is not taken for it."""
        closed = [self.letters.find(answer + remove_whitespace(stop), begin) for stop in stops]
        found = min([at for at in closed if at >= 0], default=self.letters.find(answer, begin))
        return found if found >= 0 else None

    def find_turn_end(self, at: int, stops: Sequence[str]) -> int | None:
        """The letter after an end of turn that stands at `at`, None where there is none."""
        for stop in stops:
            if letters := remove_whitespace(stop):
                if self.letters.startswith(letters, at):
                    return at + len(letters)
            else:
                begin = self._at[at - 1] + 1 if at else 0
                if stop in self._text[begin : self._at[at] if at < len(self._at) else len(self._text)]:
                    return at
        return None


def remove_whitespace(text: str) -> str:
    """A text without its white space."""
    return "".join(text.split())


def count_common_letters(one: str, other: str) -> int:
    """Letters that two texts have in common from their beginning."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
