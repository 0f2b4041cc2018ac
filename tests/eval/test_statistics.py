"""Error bars: Student's t as scipy has it, clusters, and the bootstrap."""

import math
from statistics import NormalDist, fmean

import numpy as np
import pytest

from mmblocks.errors import DataError
from mmblocks.eval.statistics import (
    bootstrap_interval,
    compare_pairs,
    compute_clustered_error,
    compute_pooled_error,
    compute_t_tails,
    find_t_quantile,
    standard_error,
)

SCIPY = [  # degrees of freedom, stats.t.ppf(0.975), 2 * stats.t.sf(2.5); scipy 1.17.1
    (1, 12.706204736174694, 0.24223788318168682),
    (2, 4.302652729749462, 0.12961172022151082),
    (9, 2.262157162798205, 0.033861827682985735),
    (30, 2.0422724563012378, 0.01811564906806669),
    (999, 1.9623414611334493, 0.012578727584509217),
]


@pytest.mark.parametrize(("freedom", "quantile", "tails"), SCIPY)
def test_students_t_is_that_of_scipy(freedom, quantile, tails):
    assert find_t_quantile(0.975, freedom) == pytest.approx(quantile, rel=1e-12)
    assert compute_t_tails(2.5, freedom) == pytest.approx(tails, rel=1e-12)
    assert compute_t_tails(-2.5, freedom) == compute_t_tails(2.5, freedom)


def test_many_degrees_of_freedom_are_nearly_normal():
    assert find_t_quantile(0.975, 20_000) == pytest.approx(NormalDist().inv_cdf(0.975), rel=1e-4)


def test_fewer_than_two_scores_have_no_error_bar():
    assert standard_error([1.0]) is None
    assert compute_clustered_error([], []) is None
    assert compare_pairs([1.0], [0.0]) is None


def test_a_cluster_for_each_document_changes_nothing():
    scores = [0.0, 1.0, 1.0, 0.5, 0.25]
    assert compute_clustered_error(scores, range(5)) == pytest.approx(standard_error(scores))
    assert compute_clustered_error(scores, [""] * 5) == pytest.approx(standard_error(scores))
    assert compute_clustered_error(scores, [None] * 5) == pytest.approx(standard_error(scores))


def test_documents_that_repeat_each_other_widen_the_error_bar():
    scores, videos = [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0], list("aabbccdd")
    assert compute_clustered_error(scores, videos) > 1.3 * standard_error(scores)
    other = [0.0] * 8
    alone, together = compare_pairs(scores, other), compare_pairs(scores, other, videos)
    assert (alone.mean, alone.n) == (together.mean, together.n) == (0.5, 8)
    assert together.upper - together.lower > 1.5 * (alone.upper - alone.lower)
    assert together.p_value > alone.p_value


def test_a_difference_within_one_cluster_has_no_error_bar():
    assert compare_pairs([1.0, 0.0], [0.0, 0.0], ["video", "video"]) is None


def test_equal_runs_differ_by_nothing():
    difference = compare_pairs([1.0, 0.0, 1.0], [1.0, 0.0, 1.0])
    assert (difference.mean, difference.t, difference.p_value) == (0.0, 0.0, 1.0)


def test_a_constant_difference_is_certain():
    difference = compare_pairs([1.0, 1.0], [0.0, 0.0])
    assert (difference.lower, difference.upper, difference.t, difference.p_value) == (1.0, 1.0, math.inf, 0.0)


def test_the_bootstrap_agrees_with_the_central_limit_theorem():
    scores = np.random.default_rng(1).integers(0, 2, 400).astype(float).tolist()
    lower, upper = bootstrap_interval(scores)
    margin = 1.96 * standard_error(scores)
    assert lower == pytest.approx(fmean(scores) - margin, abs=0.005)
    assert upper == pytest.approx(fmean(scores) + margin, abs=0.005)


def test_the_bootstrap_takes_whole_clusters():
    generator = np.random.default_rng(2)
    videos = [video for video in range(100) for _ in range(4)]
    scores = [float(s) for s in generator.integers(0, 2, 100) for _ in range(4)]
    lower, upper = bootstrap_interval(scores, videos)
    assert (upper - lower) / 2 == pytest.approx(1.96 * compute_clustered_error(scores, videos), rel=0.1)


def test_the_same_seed_gives_the_same_interval():
    assert bootstrap_interval([0.0, 1.0, 1.0], seed=3) == bootstrap_interval([0.0, 1.0, 1.0], seed=3)


def test_numbers_that_do_not_fit_are_told():
    with pytest.raises(DataError, match="Two runs of 2 and 1 scores"):
        compare_pairs([1.0, 0.0], [1.0])
    with pytest.raises(DataError, match="2 scores and 1 clusters"):
        compute_clustered_error([1.0, 0.0], ["a"])
    with pytest.raises(DataError, match="bootstrap of no scores"):
        bootstrap_interval([])
    with pytest.raises(DataError, match="needs one of at least two"):
        compute_pooled_error([0.0, 0.0], [1, 1])
