"""Error bars: standard errors of a mean, the paired difference of two runs, and the bootstrap.

A cluster is the image or video that documents share; "" and None: not known, the document is a cluster of its own.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from mmblocks.errors import DataError

Clusters = Sequence[Hashable] | None


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """The mean of a - b over n documents that both runs answered, with its interval and the t-test against no difference."""

    mean: float
    standard_error: float
    lower: float
    upper: float
    t: float
    p_value: float
    n: int


def standard_error(scores: Sequence[float]) -> float | None:
    """Of the mean of independent scores, by the central limit theorem (n - 1); None of fewer than two."""
    if len(scores) < 2:
        return None
    mean = fmean(scores)
    return math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / (len(scores) - 1) / len(scores))


def compute_clustered_error(scores: Sequence[float], clusters: Sequence[Hashable]) -> float | None:
    """Of the mean of scores that are alike within a cluster (arXiv 2411.00640, equation 4); None of fewer than two."""
    independent = standard_error(scores)
    if independent is None:
        return None
    mean = fmean(scores)
    covariance = 0.0
    for members in group_by_cluster(clusters, len(scores)):
        deviations = [scores[i] - mean for i in members]
        covariance += math.fsum(deviations) ** 2 - math.fsum(d * d for d in deviations)
    return math.sqrt(max(0.0, independent**2 + covariance / len(scores) ** 2))


def compute_pooled_error(errors: Sequence[float], sizes: Sequence[int]) -> float:
    """Of the mean over all records of several tasks, from the standard error and the size of each."""
    if sum(sizes) <= len(sizes):
        raise DataError(f"Tasks of {list(sizes)} records: a pooled standard error needs one of at least two.")
    variances = (error**2 * size * (size - 1) for error, size in zip(errors, sizes, strict=True))
    return math.sqrt(math.fsum(variances) / (sum(sizes) - len(sizes)) / sum(sizes))


def compute_weighted_mean(means: Sequence[float], sizes: Sequence[int]) -> float:
    """The mean over all records of several tasks."""
    return math.fsum(mean * size for mean, size in zip(means, sizes, strict=True)) / sum(sizes)


def compare_pairs(
    a: Sequence[float], b: Sequence[float], clusters: Clusters = None, confidence: float = 0.95
) -> PairedDifference | None:
    """How much better a is than b on the same documents; None of fewer than two.

    Without clusters it is the paired t-test of lmms-eval. With clusters the standard error is the clustered one and the
    degrees of freedom are those of the clusters.
    """
    if len(a) != len(b):
        raise DataError(f"Two runs of {len(a)} and {len(b)} scores; pair the documents that both have first.")
    differences = [first - second for first, second in zip(a, b, strict=True)]
    n, groups = len(differences), len(group_by_cluster(clusters, len(differences)))
    error = standard_error(differences) if clusters is None else compute_clustered_error(differences, clusters)
    if error is None or groups < 2:
        return None
    mean, freedom = fmean(differences), groups - 1
    t = mean / error if error else math.copysign(math.inf, mean) if mean else 0.0
    margin = find_t_quantile((1 + confidence) / 2, freedom) * error
    return PairedDifference(mean, error, mean - margin, mean + margin, t, compute_t_tails(t, freedom), n)


def bootstrap_interval(
    scores: Sequence[float], clusters: Clusters = None, confidence: float = 0.95, samples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentiles of the mean over resampled documents, or over resampled clusters.

    Of a difference: give the differences of the pairs. The same seed gives the same interval.
    """
    if not scores:
        raise DataError("A bootstrap of no scores; it needs at least one.")
    groups = group_by_cluster(clusters, len(scores))
    sums = np.array([math.fsum(scores[i] for i in members) for members in groups])
    sizes = np.array([len(members) for members in groups])
    generator = np.random.default_rng(seed)
    means = np.empty(samples)
    for sample in range(samples):
        chosen = generator.integers(0, len(groups), len(groups))
        means[sample] = sums[chosen].sum() / sizes[chosen].sum()
    lower, upper = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(lower), float(upper)


def group_by_cluster(clusters: Clusters, total: int) -> list[list[int]]:
    """Positions of the scores of each cluster."""
    if clusters is None:
        return [[i] for i in range(total)]
    if len(clusters) != total:
        raise DataError(f"{total} scores and {len(clusters)} clusters; give each score its cluster.")
    groups: dict[Hashable, list[int]] = {}
    for i, cluster in enumerate(clusters):
        groups.setdefault(("alone", i) if cluster in ("", None) else ("shared", cluster), []).append(i)
    return list(groups.values())


def compute_t_tails(t: float, freedom: int) -> float:
    """Probability of a larger |t| under Student's t of whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 4)."""
    if math.isinf(t):
        return 0.0
    angle = math.atan2(abs(t), math.sqrt(freedom))
    cosine = math.cos(angle)
    is_odd = freedom % 2
    term = total = cosine if is_odd else 1.0
    for k in range(2 + is_odd, freedom, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    if not is_odd:
        return max(0.0, 1.0 - math.sin(angle) * total)
    inner = angle + math.sin(angle) * (total if freedom > 1 else 0.0)
    return max(0.0, 1.0 - inner * 2 / math.pi)


def find_t_quantile(probability: float, freedom: int) -> float:
    """The t above which 1 - probability of Student's t lies, for a probability of more than a half."""
    low, high = 0.0, 1.0
    while compute_t_tails(high, freedom) > 2 * (1 - probability):
        low, high = high, 2 * high
    while high - low > 1e-14 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if compute_t_tails(middle, freedom) > 2 * (1 - probability) else (low, middle)
    return (low + high) / 2
