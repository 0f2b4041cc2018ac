"""Ways are timed in turns, on rotating inputs, without what prepares them."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from tests.bench.suites.comparing import Peer, compare_times
from tests.bench.suites.run import OutOfTime, Run, Unequal, compute_error, require_equal
from tests.bench.suites.timing import Timing, Way, time_in_turns

RUN = Run(tiny=True, repeats=3, warmups=1, input_sets=2)


def keep_busy(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_each_round_does_every_way_once_on_the_same_input_and_rounds_rotate_inputs() -> None:
    done: list[tuple[str, int]] = []
    time_in_turns({name: lambda i, name=name: done.append((name, i)) for name in "ab"}, RUN)
    assert done == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 0), ("b", 0), ("a", 1), ("b", 1)]


def test_warm_ups_are_not_kept() -> None:
    assert len(time_in_turns({"a": lambda i: None}, RUN)["a"].seconds) == 3


def test_preparation_is_not_timed() -> None:
    way = Way(lambda state: keep_busy(state), lambda i: keep_busy(0.05) or 0.001)
    assert time_in_turns({"a": way}, RUN)["a"].median < 0.02


def test_everything_is_timed_at_one_thread_and_threads_are_given_back() -> None:
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        time_in_turns({"a": lambda i: seen.append(torch.get_num_threads())}, RUN)
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_spread_is_half_the_quartiles_distance_over_the_median() -> None:
    assert Timing((1.0, 2.0, 3.0, 4.0, 5.0)).spread == pytest.approx(1 / 3)


def test_the_fastest_of_the_peers_settings_is_its_best() -> None:
    peers = [
        Peer("as shipped", "", lambda i: keep_busy(0.008)),
        Peer("best", "slow", lambda i: keep_busy(0.02)),
        Peer("best", "fast", lambda i: keep_busy(0.004)),
    ]
    rows = list(compare_times(RUN, "suite", "case", "time", lambda i: keep_busy(0.002), peers, error=0.0))
    assert [(row.peer_setting, row.settings) for row in rows] == [("as shipped", ""), ("best", "fast")]
    assert all(row.ratio == pytest.approx(row.peer / row.ours) for row in rows)


def test_a_setting_of_the_peer_that_fails_is_left_out_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    def fail(i: int) -> None:
        raise RuntimeError("no such kernel")

    peers = [Peer("as shipped", "", lambda i: None), Peer("best", "compiled", fail)]
    rows = list(compare_times(RUN, "suite", "case", "time", lambda i: keep_busy(0.001), peers, error=0.0))
    assert [row.peer_setting for row in rows] == ["as shipped"]
    assert "compiled" in caplog.text
    assert "no such kernel" in caplog.text


def test_a_rate_is_better_when_it_is_higher() -> None:
    row = RUN.row("decode", "case", "written", "tokens/s", 200.0, 100.0, less_is_better=False)
    assert row.ratio == 2.0


def test_outputs_that_differ_by_more_than_rounding_are_unequal() -> None:
    x = torch.ones(8)
    assert require_equal("case", x * (1 + 1e-6), x) < 1e-5
    with pytest.raises(Unequal, match=r"case: outputs differ by 0\.01 of their norm"):
        require_equal("case", x * 1.01, x)


def test_zeros_are_equal_to_nothing() -> None:
    assert compute_error(torch.zeros(4), torch.zeros(4)) == float("inf")


def test_in_a_narrower_type_ours_may_be_twice_as_far_from_float32_as_the_peer() -> None:
    exact = torch.ones(8)
    require_equal("case", exact * 0.985, exact * 1.01, exact)
    with pytest.raises(Unequal, match=r"at most 0\.02"):
        require_equal("case", exact * 0.97, exact * 1.01, exact)


def test_nothing_is_begun_that_would_end_after_the_deadline() -> None:
    run = replace(RUN, ends=time.monotonic() + 10)
    run.require_time(5, "a short case")
    with pytest.raises(OutOfTime, match="left before a long case, which may take 60 s"):
        run.require_time(60, "a long case")
