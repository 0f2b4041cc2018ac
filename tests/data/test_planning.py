"""Packs, steps and ranks: every sample is read once, whatever the number of processes, and nobody waits long."""

from itertools import pairwise

import numpy as np
import pytest

from mmblocks.data.planning.balance import compute_efficiency, deal_in_turn, deal_longest_first
from mmblocks.data.planning.cost import SampleCost
from mmblocks.data.planning.measure import SampleSizes
from mmblocks.data.planning.packing import pack_best_fit
from mmblocks.data.planning.report import choose_pack_tokens, report_batching
from mmblocks.data.planning.steps import choose_window, plan_by_count, plan_by_tokens
from mmblocks.errors import ConfigError

SEEDS = range(8)
WORLDS = (1, 2, 3, 8)
COST = SampleCost(view=4e-3, token=4e-6, pair=4e-10, label=2e-6)


def sizes_of(seed, samples=None):
    """Texts, images and videos in the proportions that hurt: short and long, with and without views."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 400)) if samples is None else samples
    views = rng.choice([0, 1, 5, 10, 32], size=n, p=[0.2, 0.2, 0.4, 0.15, 0.05])
    tokens = views * rng.integers(100, 240, n) + rng.integers(10, 400, n)
    return SampleSizes(tokens, views, 1 + tokens // 20, tokens**2)


def drawn_by(plan):
    return sorted(n for step in range(len(plan)) for pack in plan.list_packs(step) for n in pack)


# Packing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("max_tokens", "max_views"), [(8192, None), (8192, 40), (16384, 64), (None, 40)])
def test_packs_hold_every_sample_once_and_no_more_than_they_may(seed, max_tokens, max_views):
    sizes = sizes_of(seed)
    packs = pack_best_fit(sizes.tokens, sizes.views, max_tokens=max_tokens, max_views=max_views)
    assert sorted(n for pack in packs for n in pack) == list(range(len(sizes)))
    assert max(sizes.tokens[pack].sum() for pack in packs) <= (max_tokens or np.inf)
    assert max(sizes.views[pack].sum() for pack in packs) <= (max_views or np.inf)
    assert all(pack == sorted(pack) for pack in packs)
    assert [pack[0] for pack in packs] == sorted(pack[0] for pack in packs)


def test_a_sample_goes_where_it_leaves_the_least_room():
    assert pack_best_fit([6, 5, 4, 5, 9], max_tokens=10) == [[0, 2], [1, 3], [4]]


def test_of_more_open_packs_the_fullest_is_closed():
    assert pack_best_fit([6, 7, 8, 2, 3, 4], max_tokens=10, open_packs=3) == [[0, 5], [1, 4], [2, 3]]
    assert pack_best_fit([6, 7, 8, 2, 3, 4], max_tokens=10, open_packs=2) == [[0, 4], [1], [2, 3], [5]]
    assert pack_best_fit([6, 7, 8, 2, 3, 4], max_tokens=10, open_packs=1) == [[0], [1], [2, 3], [4, 5]]


def test_views_are_a_cap_of_their_own():
    assert pack_best_fit([1, 1, 1, 1], [2, 2, 0, 0], max_tokens=10, max_views=3) == [[0, 2, 3], [1]]


def test_without_caps_everything_is_one_pack():
    assert pack_best_fit([3, 4, 5]) == [[0, 1, 2]]


def test_best_fit_leaves_less_room_than_packs_filled_one_after_another():
    tokens = sizes_of(0, 3000).tokens
    packs, in_order = pack_best_fit(tokens, max_tokens=16384), pack_best_fit(tokens, max_tokens=16384, open_packs=1)
    wasted, wasted_in_order = (len(p) * 16384 / tokens.sum() for p in (packs, in_order))
    assert wasted < 1.02 < 1.07 < wasted_in_order


@pytest.mark.parametrize(
    ("caps", "message"),
    [
        ({"max_tokens": 10}, r"sample 1 has 30 tokens and a pack takes 10 \(2 of 3 .*write pack_tokens=31 or more"),
        ({"max_views": 2}, r"sample 2 has 9 views and a pack takes 2 \(1 of 3 .*write pack_views=9 or more"),
        ({"max_tokens": 10, "names": ["a", "b.json:7", "c"]}, "b.json:7 has 30 tokens"),
    ],
)
def test_a_sample_larger_than_a_pack_is_named(caps, message):
    with pytest.raises(ConfigError, match=message):
        pack_best_fit([5, 30, 31], [0, 2, 9], **caps)


# Balance ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("ranks", WORLDS)
def test_every_piece_of_work_is_dealt_once_and_evenly(seed, ranks):
    costs = np.random.default_rng(seed).exponential(size=seed * 5 + 1)
    dealt = deal_longest_first(costs, ranks)
    assert sorted(n for mine in dealt for n in mine) == list(range(len(costs)))
    assert max(map(len, dealt)) == -(-len(costs) // ranks)
    uneven = deal_longest_first(costs, ranks, even=False)
    loads = [costs[mine].sum() for mine in uneven]
    assert max(loads) <= 4 / 3 * max(costs.sum() / ranks, costs.max()) + costs.max() / 3  # Graham's bound, loosely


def test_the_most_expensive_comes_first_and_equals_are_dealt_in_turn():
    assert deal_longest_first([1, 9, 2, 8, 4, 4], 2) == [[0, 1, 5], [2, 3, 4]]
    assert deal_longest_first([1, 1, 1, 1, 1], 2) == [[0, 2, 4], [1, 3]] == deal_in_turn(5, 2)
    assert deal_longest_first([10, 1, 1, 1], 2, even=False) == [[0], [1, 2, 3]]
    assert deal_longest_first([10, 1, 1, 1], 2) == [[0, 3], [1, 2]]


def test_efficiency_is_the_share_of_time_in_which_ranks_work():
    assert compute_efficiency([4, 2, 2], [[0], [1, 2]]) == 1
    assert compute_efficiency([4, 2], [[0], [1]]) == 0.75
    assert compute_efficiency([4], [[0], []]) == 0.5


# Steps --------------------------------------------------------------------------------------------------------------


def plans(seed):
    sizes = sizes_of(seed)
    n, tokens = len(sizes), 16384
    yield plan_by_count(n, 7)
    yield plan_by_count(n, 7, sizes=sizes)
    yield plan_by_count(n, 32, sizes=sizes, max_tokens=tokens, max_views=40)
    yield plan_by_tokens(sizes, 4 * tokens, tokens, 40, seed=(seed,), cost=COST)
    yield plan_by_tokens(sizes, 4 * tokens, tokens, seed=(seed,), window=1)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_draw_is_in_one_pack_of_one_step_of_one_rank(seed):
    for plan in plans(seed):
        total = int(plan.pack_ends[-1])
        assert drawn_by(plan) == list(range(total))
        for world in WORLDS:
            for step in range(len(plan)):
                shares = [plan.list_rank_packs(step, rank, world, COST) for rank in range(world)]
                assert len({len(packs) for packs in shares}) == 1
                dealt = sorted(n for packs in shares for pack in packs for n in pack)
                assert dealt == sorted(n for pack in plan.list_packs(step) for n in pack)


@pytest.mark.parametrize("seed", SEEDS)
def test_packs_stay_whole_and_as_many_as_needed(seed):
    for plan in [plan for plan in plans(seed) if not plan.divisible]:
        for step in range(len(plan)):
            packs = plan.list_packs(step)
            shares = plan.share_packs(step, 3, COST)
            assert sorted(pack for mine in shares for pack in mine if pack) == sorted(packs)
            assert len(shares[0]) == -(-len(packs) // 3)


def test_a_plan_is_the_same_every_time_and_another_with_another_seed():
    one, same, other = (plan_by_tokens(sizes_of(1, 400), 4 * 8192, 8192, seed=(seed,), cost=COST) for seed in (0, 0, 1))
    assert np.array_equal(one.numbers, same.numbers)
    assert not np.array_equal(one.numbers, other.numbers)


def test_a_step_by_count_holds_consecutive_draws_and_the_last_what_is_left():
    plan = plan_by_count(10, 4)
    assert [plan.list_packs(step) for step in range(len(plan))] == [[[0, 1, 2, 3]], [[4, 5, 6, 7]], [[8, 9]]]
    assert plan.list_rank_packs(0, 1, 2) == [[1, 3]]
    assert plan.list_rank_packs(2, 2, 3) == [[]]


def test_samples_of_a_step_are_shared_by_cost_where_it_is_known():
    tokens = np.array([900, 10, 10, 10])
    plan = plan_by_count(4, 4, sizes=SampleSizes(tokens, 0 * tokens, tokens, 0 * tokens))
    assert plan.share_packs(0, 2) == [[[0]], [[1, 2, 3]]]


def test_packs_by_count_need_sizes():
    with pytest.raises(ConfigError, match="packs of at most 4096 tokens need the sizes"):
        plan_by_count(10, 4, max_tokens=4096)


def test_a_step_is_at_least_a_pack():
    with pytest.raises(ConfigError, match="step_tokens=100 is less than pack_tokens=200"):
        plan_by_tokens(sizes_of(0), 100, 200)


def test_steps_by_tokens_have_equally_many_packs_and_the_last_what_is_left():
    plan = plan_by_tokens(sizes_of(2, 500), 3 * 8192, 8192)
    counts = np.diff(plan.step_ends).tolist()
    assert set(counts[:-1]) == {3}
    assert sum(counts) == plan.num_packs > 3 * len(plan) - 3


def test_steps_of_like_cost_are_alike_inside_and_in_no_order_among_themselves():
    sizes = sizes_of(3, 3000)
    plain, alike = (plan_by_tokens(sizes, 8 * 8192, 8192, cost=COST, window=w) for w in (1, 16))
    each = COST.estimate_seconds(sizes)

    def costs(plan):
        return [[each[pack].sum() for pack in plan.list_packs(step)] for step in range(len(plan) - 1)]

    assert np.mean([np.std(step) for step in costs(alike)]) < 0.5 * np.mean([np.std(step) for step in costs(plain)])
    totals = [sum(step) for step in costs(alike)]
    assert any(a > b for a, b in pairwise(totals))
    assert any(a < b for a, b in pairwise(totals))


def test_a_window_keeps_samples_near_their_place():
    """A pack moves within 16 steps of 4 packs, never further."""
    sizes = sizes_of(4, 4000)
    plain, alike = (plan_by_tokens(sizes, 4 * 8192, 8192, cost=COST, window=w) for w in (1, 16))
    place = {
        tuple(plain.list_packs(step)[i]): step for step in range(len(plain)) for i in range(len(plain.list_packs(step)))
    }
    moved = [abs(place[tuple(pack)] - step) for step in range(len(alike)) for pack in alike.list_packs(step)]
    assert 0 < max(moved) < 16


def test_like_cost_helps_where_ranks_have_few_packs():
    assert (choose_window(8, 8), choose_window(31, 8), choose_window(32, 8)) == (16, 16, 1)


def test_the_first_steps_of_a_plan_are_a_plan():
    plan = plan_by_tokens(sizes_of(5, 300), 2 * 8192, 8192)
    first = plan.keep_first_steps(3)
    assert len(first) == 3
    assert [first.list_packs(step) for step in range(3)] == [plan.list_packs(step) for step in range(3)]
    assert first.num_packs == 6


# Report -------------------------------------------------------------------------------------------------------------


def test_a_report_ranks_ways_of_batching_as_the_literature_does():
    figures = report_batching(sizes_of(0, 6000), COST, 8, pack_tokens=16384)
    waste, busy = figures.waste, figures.efficiency
    assert waste["padded, random, 4 samples"] > 1.5
    assert waste["padded, grouped by length, 4 samples"] < 1.1
    assert waste["packed, 16384 tokens"] < 1.05
    assert busy["one sample each, random"] < busy["a pack each"] < busy["4 packs each, longest first"]
    assert busy["4 packs each, longest first"] > 0.95
    assert busy["a pack each, views capped, steps of like cost"] > busy["a pack each, views capped"]
    assert figures.pairs["packs seen as one sequence"] > 2


def test_a_report_says_where_there_are_too_few_samples():
    figures = report_batching(sizes_of(0, 20), COST, 64)
    assert figures.efficiency["one sample each, random"] is None
    assert figures.efficiency["4 packs each, longest first"] is None


def test_packs_hold_the_longest_sample_and_four_of_middle_length():
    def pack(*tokens):
        t = np.array(tokens)
        return choose_pack_tokens(SampleSizes(t, t, t, t))

    assert (pack(100, 100), pack(10, 10, 5000), pack(1024)) == (512, 8192, 4096)
