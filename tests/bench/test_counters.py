"""What is counted, held to what the core was built for. No clock is asked."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmblocks.model.costs.activations import count_activations
from tests.bench.suites import counters, counting, train_loop
from tests.bench.suites.rows import Row
from tests.bench.suites.run import Run

RUN = Run(tiny=True, input_sets=1)
MOST_CALLS_OF_A_STEP = 300
"""Of Python and C functions, beside those of a bare loop. `torch.manual_seed` alone would be 600."""


@pytest.fixture(scope="module")
def found() -> list[Row]:
    return list(counters.measure(RUN))


def select_rows(found: list[Row], **wanted: Any) -> list[Row]:
    rows = [row for row in found if all(getattr(row, name) == value for name, value in wanted.items())]
    assert rows, f"nothing was counted for {wanted}"
    return rows


@pytest.mark.parametrize(("width", "ratio"), [(896, 1.47), (3584, 2.24)])
def test_the_projector_multiplies_pooled_cells_only_by_its_last_layer(
    found: list[Row], width: int, ratio: float
) -> None:
    (row,) = select_rows(found, quantity="projector", scenario=f"clip at width {width}")
    assert row.ratio is not None
    assert round(row.ratio, 2) == ratio


def test_nothing_is_copied_between_the_tower_and_the_language_model(found: list[Row]) -> None:
    (row,) = select_rows(found, quantity="copies in the pooling path")
    assert row.ours == 0
    assert row.peer is not None
    assert row.peer > 0


def test_the_unused_block_and_repeated_views_are_not_run(found: list[Row]) -> None:
    rows = {row.scenario: row.ratio for row in select_rows(found, quantity="encoder blocks run")}
    assert rows == {"base": 3.0, "anyres": 1.5, "images": 1.5, "video": 1.5}  # 2 of 3 blocks; base is its own only tile


def test_only_labelled_rows_meet_the_vocabulary(found: list[Row]) -> None:
    shipped, best = select_rows(found, quantity="rows that meet the vocabulary")
    assert best.ratio == 1.0
    assert shipped.ratio is not None
    assert shipped.ratio > 10


def test_prefill_takes_fewer_flops_than_the_peer_at_its_best(found: list[Row]) -> None:
    rows = select_rows(found, quantity="to last logits")
    assert all(row.ratio and row.ratio > 1 for row in rows), [(row.scenario, row.settings, row.ratio) for row in rows]


@pytest.mark.parametrize(("setting", "least"), [("as shipped", 2.6), ("best", 1.65)])
def test_a_training_step_takes_fewer_flops(found: list[Row], setting: str, least: float) -> None:
    (row,) = select_rows(found, quantity="forward and backward", peer_setting=setting)
    assert row.ratio is not None
    assert row.ratio > least


@pytest.mark.parametrize(("setting", "least"), [("as shipped", 2.5), ("best", 1.4)])
def test_a_training_step_keeps_fewer_bytes(found: list[Row], setting: str, least: float) -> None:
    (row,) = select_rows(found, quantity="kept for backward", peer_setting=setting)
    assert row.ratio is not None
    assert row.ratio > least


# The counters themselves --------------------------------------------------------------------------------------------


def test_flops_inside_modules_are_theirs_only() -> None:
    first, second = nn.Linear(4, 8), nn.Linear(8, 16)
    run = lambda: second(first(torch.zeros(2, 4)))  # noqa: E731
    assert counting.count_flops_in_modules(run, [first]) == 2 * 2 * 4 * 8
    assert (
        counting.count_flops_in_modules(run, [first, second])
        == counting.count_flops(run)
        == 2 * 2 * 4 * 8 + 2 * 2 * 8 * 16
    )


def test_bytes_kept_for_backward_leave_weights_out_and_count_each_storage_once() -> None:
    layer, x = nn.Linear(4, 4, bias=False), torch.zeros(8, 4, requires_grad=True)

    def run() -> None:
        kept = layer(x).exp()  # of float32 (8, 4): x for the layer, and the result, read twice
        kept * kept

    assert count_activations(layer, (), run).saved == 2 * 8 * 4 * 4


def test_copies_are_counted_between_two_modules_only() -> None:
    first, last = nn.Linear(4, 4), nn.Linear(4, 4)
    between = counting.Between(first, last)
    with torch.no_grad(), between:
        x = torch.zeros(3, 2, 4).permute(1, 0, 2).contiguous()
        x = first(x).permute(1, 0, 2).contiguous()
        torch.arange(3).repeat(2)
        last(x).clone()
    assert between.copies == 1
    assert between.elements["clone"] == 24


def test_rows_that_meet_a_module_are_counted() -> None:
    layer = nn.Linear(4, 4)
    with counting.count_rows(layer) as met:
        layer(torch.zeros(2, 3, 4))
    layer(torch.zeros(9, 4))
    assert met["rows"] == 6


def test_a_run_makes_few_calls_beside_those_of_a_bare_loop(tmp_path: Path) -> None:
    """Calls of Python and from it to C, which are what such a loop costs beside the model."""
    loops = train_loop.Loops.make(RUN, tmp_path, steps=10)
    loops.require_same_weights()
    made = []
    for way in (loops.way_of_run(), loops.way_of_bare_loop()):
        ready, calls = way.ready(0), Counter()
        sys.setprofile(lambda frame, event, arg, calls=calls: calls.update([event]))
        try:
            way.run(ready)
        finally:
            sys.setprofile(None)
        made.append(calls["call"] + calls["c_call"])
    assert 0 < (made[0] - made[1]) / 10 < MOST_CALLS_OF_A_STEP
