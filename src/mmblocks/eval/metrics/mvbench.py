"""MVBench: lmms-eval's rule and that of the original notebook."""

from collections.abc import Sequence

from mmblocks.errors import DataError
from mmblocks.eval.metrics.interleave import score_choice_lmms
from mmblocks.eval.metrics.letters import list_letters


def score_lmms(answer: str, candidates: Sequence[str], reference: str) -> float | None:
    """As lmms-eval does: the first lone letter of either case. None for an empty answer."""
    if reference not in candidates:
        raise DataError(f"MVBench: the answer {reference!r} is none of the candidates {list(candidates)}.")
    letter = list_letters(len(candidates))[candidates.index(reference)]
    return score_choice_lmms(answer, letter) if answer else None


def summarise_lmms(scores: Sequence[float | None]) -> float:
    """Percent right of the answers that are not empty, as lmms-eval has it."""
    answered = [score for score in scores if score is not None]
    return 100 * sum(answered) / len(answered) if answered else 0.0


def match_original(answer: str, reference: str) -> bool:
    """As the notebook does: the first word of one is in that of the other; an empty answer is in every one."""
    word, wanted = answer.lower().split(" ")[0], reference.lower().split(" ")[0]
    return word.replace(".", "") in wanted or wanted in word
