"""MMBench: which option an answer names, and circular scoring over the rotations of a question."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mmblocks.eval.metrics.letters import list_letters, match_texts
from mmblocks.eval.metrics.means import average_by
from mmblocks.eval.metrics.multiple_choice import extract_letter

MOST_OPTIONS = 4
ROTATION_STEP = 1_000_000
"""Rows `index + k * ROTATION_STEP` are the rotations of one question."""

LETTERS_OF_LMMS = "ABCDE"
"""lmms-eval accepts these whatever the options are."""
DECORATIONS = ("{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")

FAILED_REQUEST = "Failed to obtain answer via API"
REFUSAL = "Z"
"""What VLMEvalKit gives for an answer that declines."""
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
SPLITTING_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
PLAIN_SENTENCE = re.compile(r"(?i)answer\s+is\s+\**([ABCD])")
LAST_WORDS = 5


@dataclass(frozen=True, slots=True)
class Rotation:
    """One row of a circular set. is_right: whether its option was read and is the right one."""

    index: int
    is_right: bool
    category: str
    l2_category: str


def read_lmms(answer: str, options: Sequence[str]) -> str | None:
    """As lmms-eval does: the one bare letter, else the one decorated letter, else the one option whose text is there.

    "A" among more than three words may be an article and is then not taken bare.
    """
    if FAILED_REQUEST not in answer:
        words = set(answer.split())
        found = [letter for letter in LETTERS_OF_LMMS if letter in words]
        if len(found) == 1 and not ("A" in words and len(answer.split()) > 3):
            return found[0]
        for form in DECORATIONS:
            found = [letter for letter in LETTERS_OF_LMMS if form.format(letter) in words]
            if len(found) == 1:
                return found[0]
    return _read_text(answer, options[:MOST_OPTIONS])


def read_vlmevalkit(answer: str, options: Sequence[str]) -> str | None:
    """As VLMEvalKit does: the one letter where it is among the last words, else "answer is X", else the one text.

    Texts are looked for in answers of at most twice the length of all options.
    """
    letters = list_letters(len(options))
    if FAILED_REQUEST not in answer:
        if any(refusal in answer for refusal in REFUSALS):
            return REFUSAL
        words = answer.translate(SPLITTING_MARKS).split()
        found = [letter for letter in letters if letter in words]
        if len(found) == 1 and words.index(found[0]) > len(words) - LAST_WORDS:
            return found[0]
        if not found and REFUSAL in words:
            return REFUSAL
        sentence = PLAIN_SENTENCE.search(answer)
        if sentence and sentence.group(1).upper() in letters:
            return sentence.group(1).upper()
    if len(answer.lower()) > 2 * sum(len(option) for option in options):
        return None
    return _read_text(answer, options)


def read_letter(answer: str, options: Sequence[str]) -> str | None:
    """As lmms-eval does without a judge: `read_lmms`, else its letter extractor."""
    return read_lmms(answer, options) or extract_letter(answer, list_letters(len(options[:MOST_OPTIONS])))


def summarise_circular(rows: Iterable[Rotation]) -> dict[str, float | dict[str, float]]:
    """Share of the questions of which every rotation is right: overall, by category and by "l2-category"."""
    rows = list(rows)
    wrong = {row.index % ROTATION_STEP for row in rows if not row.is_right}
    questions = [(row, float(row.index not in wrong)) for row in rows if row.index < ROTATION_STEP]
    return {
        "overall": sum(hit for _, hit in questions) / len(questions) if questions else 0.0,
        "category": average_by((row.category, hit) for row, hit in questions),
        "l2-category": average_by((row.l2_category, hit) for row, hit in questions),
    }


def _read_text(answer: str, options: Sequence[str]) -> str | None:
    found = match_texts(answer, dict(zip(list_letters(len(options)), options, strict=True)))
    return found[0] if len(found) == 1 else None
