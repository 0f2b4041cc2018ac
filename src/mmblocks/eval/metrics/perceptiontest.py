"""PerceptionTest, multiple choice."""

from mmblocks.eval.metrics.letters import find_lone_letter

LETTERS = "ABCD"


def read_index(answer: str) -> int | None:
    """As lmms-eval does: the first lone capital, so "A dog" answers A."""
    letter = find_lone_letter(answer, LETTERS)
    return None if letter is None else LETTERS.index(letter)
