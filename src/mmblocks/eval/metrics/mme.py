"""MME: two questions about each image; a category has at most 200 points."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from mmblocks.errors import DataError

PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork"),
    "OCR",
)
"""Cognition: commonsense_reasoning, numerical_calculation, text_translation, code_reasoning."""
QUESTIONS_OF_AN_IMAGE = 2


@dataclass(frozen=True, slots=True)
class ImageQuestion:
    """One question, and whether it was answered rightly. image: the published question_id."""

    category: str
    image: str
    is_right: bool


def read_answer(answer: str) -> str | None:
    """As lmms-eval does: "yes" or "no"; y or n alone; else yes, then no, within the first four characters."""
    answer = answer.lower().strip().replace(".", "")
    if len(answer) == 1:
        return {"y": "yes", "n": "no"}.get(answer)
    return next((word for word in ("yes", "no") if word in answer[:4]), None)


def score_answer(answer: str, reference: str) -> float | None:
    """Whether an answer is the right one of yes and no."""
    found = read_answer(answer)
    return None if found is None else float(found == reference.lower().strip().replace(".", ""))


def score_categories(questions: Iterable[ImageQuestion]) -> dict[str, float]:
    """Of each category the mean over its images of accuracy and "both right", each in percent."""
    images: dict[str, dict[str, list[bool]]] = {}
    for question in questions:
        images.setdefault(question.category, {}).setdefault(question.image, []).append(question.is_right)
    return {category: fmean(_score_image(*pair) for pair in found.items()) for category, found in images.items()}


def summarise(questions: Iterable[ImageQuestion]) -> dict[str, float]:
    """The two sums of the published table. As in lmms-eval, a category of another name counts as cognition."""
    scores = score_categories(questions)
    perception = sum(score for category, score in scores.items() if category in PERCEPTION)
    return {"perception": perception, "cognition": sum(scores.values()) - perception}


def _score_image(image: str, answers: list[bool]) -> float:
    if len(answers) != QUESTIONS_OF_AN_IMAGE:
        raise DataError(
            f"MME: image {image!r} has {len(answers)} questions; it needs {QUESTIONS_OF_AN_IMAGE}, "
            "so evaluate whole images (an even limit, without shuffling)."
        )
    return 100.0 * sum(answers) / QUESTIONS_OF_AN_IMAGE + 100.0 * all(answers)
