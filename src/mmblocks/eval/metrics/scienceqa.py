"""ScienceQA: LLaVA's rule and lmms-eval's, and the ensembles with GPT-4 of the LLaVA paper."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LETTERS = "ABCDE"
SENTENCE = re.compile(r"The answer is ([A-Z]).")
"""LLaVA's pattern: its last character stands for any."""


@dataclass(frozen=True, slots=True)
class Ensemble:
    """One question, our answer and GPT-4's. judged: GPT-4's second answer, given both; None where it was not asked."""

    choices: int
    right: int
    ours: str
    gpt4: str
    judged: str | None = None


def read_llava(answer: str) -> str | None:
    """As LLaVA does: the letter alone, "X. " at the start, or the one "The answer is X." anywhere."""
    if len(answer) == 1 and answer in LETTERS:
        return answer
    if answer[:1] and answer[0] in LETTERS and answer[1:3] == ". ":
        return answer[0]
    return read_sentence(answer)


def read_sentence(answer: str) -> str | None:
    """The one "The answer is X." of an answer; None where there are several."""
    found = SENTENCE.findall(answer)
    return found[0] if len(found) == 1 else None


def to_index(letter: str | None, choices: int) -> int | None:
    """Which choice a letter names; None where it is beyond them."""
    return LETTERS.index(letter) if letter is not None and letter in LETTERS[:choices] else None


def score_lmms(answer: str, right: int) -> float:
    """As lmms-eval does: the letter in either case, or an upper-case letter and a period at the start."""
    answer, wanted = answer.strip(), LETTERS[right].lower()
    if answer.lower() == wanted:
        return 1.0
    return float(answer[:1].isupper() and answer[1:2] == "." and answer[0].lower() == wanted)


def summarise_llava(rows: Sequence[tuple[bool, bool]]) -> dict[str, float]:
    """Percent right from (is_right, has_image), of all and of those whose prompt has an image.

    LLaVA's script counts a missing answer as wrong and without an image, for it reads this from the answer's prompt.
    """
    with_image = [is_right for is_right, has_image in rows if has_image]
    return {
        "accuracy": _to_percent(sum(is_right for is_right, _ in rows), len(rows)),
        "img_accuracy": _to_percent(sum(with_image), len(with_image)),
    }


def choose_complement(question: Ensemble) -> int | None:
    """GPT-4's choice, ours where it gives no letter."""
    gpt4 = read_sentence(question.gpt4)
    return to_index(gpt4 or read_sentence(question.ours), question.choices)


def choose_judged(question: Ensemble) -> int | None:
    """The choice that GPT-4 makes with both answers before it, ours where it makes none."""
    judged = read_sentence(question.judged or "")
    return to_index(judged or read_sentence(question.ours), question.choices)


def summarise_ensembles(questions: Iterable[Ensemble]) -> dict[str, int]:
    """How many questions, and how many each way of choosing has right; gpt4_failed: without a letter from GPT-4.

    Where the scripts of LLaVA draw a choice at random, none is made here. upper_bound: either answer is right.
    """
    questions = list(questions)
    ours = [to_index(read_sentence(q.ours), q.choices) for q in questions]
    complement = [choose_complement(q) for q in questions]
    right = [q.right for q in questions]
    return {
        "total": len(questions),
        "gpt4_failed": sum(read_sentence(q.gpt4) is None for q in questions),
        "our_correct": _count_equal(ours, right),
        "complement_correct": _count_equal(complement, right),
        "judge_correct": _count_equal([choose_judged(q) for q in questions], right),
        "upper_bound_correct": sum(r in pair for *pair, r in zip(ours, complement, right, strict=True)),
    }


def _count_equal(chosen: Sequence[int | None], right: Sequence[int]) -> int:
    return sum(choice == wanted for choice, wanted in zip(chosen, right, strict=True))


def _to_percent(part: int, whole: int) -> float:
    return part / whole * 100 if whole else 0.0
