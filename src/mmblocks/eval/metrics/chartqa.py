"""Relaxed accuracy of ChartQA: numbers within five percent, other answers equal."""

TOLERANCE = 0.05


def score_relaxed(answer: str, reference: str) -> bool:
    """As lmms-eval does. A reference of 0 is compared as text, so is a number with a comma or a currency sign."""
    number, wanted = _to_number(answer), _to_number(reference)
    if number is not None and wanted:
        return abs(number - wanted) / abs(wanted) <= TOLERANCE
    return answer.lower() == reference.lower()


def _to_number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None
