"""SEED-Bench."""


def score_letter(answer: str, letter: str) -> float | None:
    """As lmms-eval does: the first character, case aside, so "Answer: B" answers A."""
    first = answer.strip()[:1]
    return float(first.lower() == letter.lower().strip()) if first else None
