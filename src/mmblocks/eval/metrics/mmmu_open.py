"""Open questions of MMMU: numbers and the ends of key sentences, against numbers and substrings."""

import re
from collections.abc import Sequence

INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
TRIVIAL = frozenset(":,.!?;'")

# The published patterns read digits again from every digit on; these find the same numbers in linear time.
NUMBER_WITH_COMMAS = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
SCIENTIFIC = re.compile(r"-?(?<!\d)\d++(?:\.\d++)?[eE][+-]?\d+")
SIMPLE = re.compile(r"-?(?:(?<!\d)\d++(?:\.\d++|\b)|\.\d++)(?![eE][+-]?\d)(?![,\d])")


def extract_numbers(text: str) -> list[str]:
    """Numbers with commas, then scientific ones, then simple ones; one number may be found in parts."""
    return [number for pattern in (NUMBER_WITH_COMMAS, SCIENTIFIC, SIMPLE) for number in pattern.findall(text)]


def normalise_text(text: str) -> list[float | str]:
    """A number rounded to two places, or lower case. One letter gets a blank on either side in turn."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lowered = text.lower()
        return [" " + lowered, lowered + " "] if len(lowered) == 1 else [lowered]


def read_answers(answer: str) -> list[float | str]:
    """Everything that counts as the answer, each once."""
    texts = _find_key_texts(answer)
    found = texts + [number for text in texts for number in extract_numbers(text)]
    return list(dict.fromkeys(value for text in found for value in normalise_text(text)))


def score_answers(found: Sequence[float | str], references: str | Sequence[str]) -> bool:
    """Whether a number equals a reference, or a text holds one. found: from `read_answers`."""
    references = [references] if isinstance(references, str) else references
    wanted = [value for reference in references for value in normalise_text(reference)]
    texts = [value for value in wanted if isinstance(value, str)]
    return any(any(text in value for text in texts) if isinstance(value, str) else value in wanted for value in found)


def _find_key_texts(answer: str) -> list[str]:
    """The shortest end of each line after a word such as "is"; on the last line "=" counts too."""
    answer = answer.strip().strip(".").lower()
    lines = answer.split("\n")
    found = []
    for number, line in enumerate(lines, 1):
        shortest = ""
        for indicator in (*INDICATORS, "=") if number == len(lines) else INDICATORS:
            if indicator in line:
                end = line.rpartition(indicator)[2].strip()
                shortest = end if not shortest or len(end) < len(shortest) else shortest
        if shortest and shortest not in TRIVIAL:
            found.append(shortest)
    return found or [answer]
