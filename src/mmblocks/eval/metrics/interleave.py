"""LLaVA-Interleave Bench: the script of LLaVA-NeXT and lmms-eval's rules, which differ in text and in averaging."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from mmblocks.errors import DataError
from mmblocks.eval.metrics.letters import find_lone_letter
from mmblocks.eval.metrics.means import average_by
from mmblocks.eval.metrics.normalise import drop_punctuation, flatten_lines
from mmblocks.eval.metrics.rouge import score_union

LONGEST = 512
"""Characters of an open answer that count."""
OPEN, CHOICE = "open-ended", "multi-choice"

CATEGORIES = {
    "spot_the_diff": ("Spot-the-Diff", "Birds-to-Words", "CLEVR-Change"),
    "image_edit_instruct": ("IEdit", "HQ-Edit", "MagicBrush"),
    "visual_story_telling": ("AESOP", "FlintstonesSV", "PororoSV", "VIST"),
    "visual_cloze": ("COMICS_Dialogue", "RecipeQA_VisualCloze"),
    "text_rich_vqa": ("WebQA", "TQA", "OCR-VQA", "DocVQA"),
    "multi_image_vqa": (
        "MIT-States_StateCoherence",
        "MIT-States_PropertyCoherence",
        "VISION",
        "RecipeQA_ImageCoherence",
    ),
    "puzzle": ("RAVEN",),
    "nlrv2": ("NLVR2_Mantis",),  # spelled so in the published table
    "qbench": ("QBench",),
}
"""Data sets of each category, by LLaVA-NeXT's names."""
NEW_IN_LMMS = (
    "ScanQA",
    "ALFRED",
    "nuscenes",
    "ScanNet_chat",
    "ScanNet_task",
    "BLINK",
    "MathVerse",
    "SciVerse",
    "Mantis",
)
"""Data sets that lmms-eval adds, each a category of its own."""
CATEGORY_OF = {name: category for category, names in CATEGORIES.items() for name in names}
CATEGORY_OF_LMMS = CATEGORY_OF | {name: name for name in NEW_IN_LMMS}


@dataclass(frozen=True, slots=True)
class InterleaveAnswer:
    """One answer. kind: "open-ended" or "multi-choice"; dataset: the published sub_task."""

    dataset: str
    kind: str
    answer: str
    reference: str


def normalise(text: str) -> str:
    """VQA's punctuation rule, without outer quotes and brackets, in lower case."""
    text = drop_punctuation(flatten_lines(text))
    for mark in "'\")(":
        text = text.strip(mark)
    return text.strip().lower()


def score_open(answer: str, reference: str) -> float:
    """ROUGE-L as LLaVA-NeXT's script has it, both sides normalised."""
    return score_union(normalise(answer)[:LONGEST], normalise(reference))


def score_open_lmms(answer: str, reference: str) -> float:
    """ROUGE-L as lmms-eval has it, on the texts as they are."""
    return score_union(answer[:LONGEST], reference)


def score_choice(answer: str, reference: str) -> float:
    """As LLaVA-NeXT's script does: equal when normalised; of "x: y" the last part that is a letter from a to h counts."""
    answer = normalise(answer)
    letters = [part for part in map(str.strip, answer.split(":")) if len(part) == 1 and part in "abcdefgh"]
    if ":" in answer and letters:
        answer = letters[-1]
    return float(answer == normalise(reference))


def score_choice_lmms(answer: str, reference: str) -> float:
    """As lmms-eval does, for MVBench too: the first lone letter from a to e in either case, so "a dog" answers A."""
    return float(_read_choice(answer) == _read_choice(reference))


def score_row(row: InterleaveAnswer) -> float:
    """One answer by the script's rule of its kind."""
    return (score_open if row.kind == OPEN else score_choice)(row.answer, row.reference)


def score_row_lmms(row: InterleaveAnswer) -> float:
    """One answer by lmms-eval's rule of its kind."""
    return (score_open_lmms if row.kind == OPEN else score_choice_lmms)(row.answer, row.reference)


def score_datasets(rows: Iterable[InterleaveAnswer]) -> dict[str, float]:
    """The mean of each data set as the script has it: its first answer's kind is that of all.

    An open question whose reference is empty is left out.
    """
    groups: dict[str, list[InterleaveAnswer]] = {}
    for row in rows:
        groups.setdefault(row.dataset, []).append(row)
    scores = {}
    for name, group in groups.items():
        score = score_open if group[0].kind == OPEN else score_choice
        counted = [row for row in group if score is score_choice or normalise(row.reference)]
        if counted:
            scores[name] = fmean(score(row.answer, row.reference) for row in counted)
    return scores


def average_categories(datasets: dict[str, float]) -> dict[str, float]:
    """Of each category the mean over its data sets, as in the published table."""
    names = {name: place for place, name in enumerate(CATEGORIES)}
    scores = average_by((CATEGORY_OF[name], score) for name, score in datasets.items() if name in CATEGORY_OF)
    return dict(sorted(scores.items(), key=lambda pair: names[pair[0]]))


def summarise_lmms(rows: Iterable[InterleaveAnswer]) -> float:
    """The mean over categories of the mean over answers, as lmms-eval has it; other data sets are left out."""
    rows = list(rows)
    known = [(CATEGORY_OF_LMMS[row.dataset], score_row_lmms(row)) for row in rows if row.dataset in CATEGORY_OF_LMMS]
    if not known:
        raise DataError(
            f"Interleave: no answer is of a known data set; found {sorted({row.dataset for row in rows})}, "
            f"known are {', '.join(CATEGORY_OF_LMMS)}."
        )
    return fmean(average_by(known).values())


def _read_choice(text: str) -> str:
    stripped = text.strip()
    letter, rest = stripped[:1].upper(), stripped[2:].lstrip()
    if letter and letter in "ABCDE" and stripped[1:2] == "." and rest and "\n" not in rest:
        return letter
    cleaned = normalise(text)
    found = find_lone_letter(cleaned, "a-e")
    return found.upper() if found else cleaned
