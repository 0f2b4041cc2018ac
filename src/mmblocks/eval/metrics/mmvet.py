"""MM-Vet: the judge's score and its means by capability."""

from collections.abc import Iterable
from dataclasses import dataclass

from mmblocks.eval.metrics.means import average_by

CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
COMBINATIONS = (
    "rec_gen_know rec spat_ocr spat_math_ocr rec_spat ocr math_ocr rec_know rec_spat_gen_ocr rec_gen_ocr_know "
    "rec_spat_ocr rec_ocr know_spat_ocr rec_spat_know spat_gen_ocr rec_spat_math_ocr"
)
"""Sets of capabilities that the benchmark has."""


@dataclass(frozen=True, slots=True)
class CapabilityMeans:
    """Means in percent: of all, of the records that need a capability, of those that need exactly a combination."""

    overall: float
    capabilities: dict[str, float]
    combinations: dict[str, float]


def read_score(reply: str) -> float | None:
    """The first word, a number from 0 to 1."""
    try:
        score = float(reply.split()[0])
    except (ValueError, IndexError):
        return None
    return score if 0 <= score <= 1 else None


def summarise(rows: Iterable[tuple[str, float]]) -> CapabilityMeans:
    """From (capabilities parted by commas, score), as lmms-eval does. A mean without a record is left out."""
    rows = [(capabilities, 100 * score) for capabilities, score in rows]
    by_set = {frozenset(combination.split("_")): combination for combination in COMBINATIONS.split()}
    names = [(by_set.get(frozenset(capabilities.split(","))), score) for capabilities, score in rows]
    return CapabilityMeans(
        sum(score for _, score in rows) / len(rows) if rows else 0.0,
        average_by((name, score) for name in CAPABILITIES for capabilities, score in rows if name in capabilities),
        average_by((name, score) for name, score in names if name),
    )
