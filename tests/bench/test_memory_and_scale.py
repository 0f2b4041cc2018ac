"""Bytes and FLOPs without data: what is counted on the meta device is what real tensors take."""

import importlib.util
import sys
from itertools import islice

import pytest
import torch
from torch import nn

from mmblocks.backbones.fused_layers import use_own_layers
from mmblocks.errors import ConfigError
from tests.bench.suites import memory, scale
from tests.bench.suites.live import count_peak_bytes
from tests.bench.suites.run import Run

LEAST = Run(tiny=True)
FLOAT = 4


@pytest.fixture(scope="module")
def model():
    return memory.make_training_model(LEAST.scale)


# The fullest moment -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_the_peak_of_two_layers_is_what_can_be_counted_by_hand(device):
    rows, dim = 1000, 100
    net = nn.Sequential(nn.Linear(dim, dim, bias=False), nn.ReLU(), nn.Linear(dim, dim, bias=False)).to(device)
    x = torch.zeros(rows, dim, device=device)
    weights, activation = 2 * dim * dim, rows * dim
    # The first backward of ReLU: what it kept, the gradient that came and the one that goes; the sum and its gradient.
    assert count_peak_bytes(net, lambda: net(x).sum()) == FLOAT * (weights + 3 * activation + weights // 2 + 2)
    assert all(p.grad is None for p in net.parameters())


def test_what_is_freed_in_between_does_not_count_twice():
    x = torch.zeros(100, device="meta", requires_grad=True)

    def step():
        for _ in range(5):
            _ = x.detach() + 1
        return x.sum()

    once = count_peak_bytes(nn.Module(), lambda: (x.detach() + 1).sum() * 0 + x.sum())
    assert count_peak_bytes(nn.Module(), step) <= once


# A training step ----------------------------------------------------------------------------------------------------


def test_a_step_of_ours_takes_less_than_the_peers_as_shipped_and_recomputing_takes_less_than_keeping():
    rows = list(islice(memory.measure(LEAST), 6))
    assert {row.device for row in rows} == {"meta"}
    shipped = {row.quantity: row for row in rows if row.peer_setting == "as shipped"}
    assert all(row.ratio > 1.5 for row in shipped.values())
    keeping, recomputing = shipped[memory.PEAK], shipped[f"{memory.PEAK}, blocks recomputed"]
    assert recomputing.ours < keeping.ours
    assert recomputing.peer < keeping.peer
    assert shipped[memory.KEPT].ours < keeping.ours


def test_what_is_counted_without_data_is_what_a_real_step_takes(model):
    run = Run(tiny=True, dtype=torch.bfloat16)
    _, counted, _ = next(iter(memory._list_meta_sides(run, memory.TINY_TOKENS)))
    _, real, _ = next(iter(memory._list_sides_on_device(run, memory.TINY_TOKENS)))
    # the real text is a sentence shorter at most, and its labels are not exactly a tenth
    with use_own_layers():  # as they run on a CPU
        found = memory.count_fullest_bytes(counted, "all", False)
    assert found == pytest.approx(memory.count_fullest_bytes(real, "all", False), rel=0.05)


def test_conversations_that_do_not_fit_are_refused(model):
    shown = memory.list_scenarios(model, LEAST.scale)["image in tiles"]
    with pytest.raises(ConfigError, match=r"100 tokens for 2 conversations of \d+ visual tokens each; give more than"):
        memory.make_packed_row_of(model, shown, 100)


# Growth -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def costs(model):
    shown = {
        axis: scale.list_visuals(axis, value) for axis, value in (("images", 2), ("frames", 2), ("resolution", 112))
    }
    batches = {
        axis: scale.meta_stage.make_meta_batch(model, scale.meta_stage.PackedRow((visuals,), (64,), scale.LABELS))
        for axis, visuals in shown.items()
    }
    return {
        axis: (batch, scale.count_costs(model, batch, core=True), scale.count_costs(model, batch, core=False))
        for axis, batch in batches.items()
    }


@pytest.mark.parametrize("axis", ["images", "frames", "resolution"])
def test_ours_never_costs_more_than_the_naive_path(costs, axis):
    _, ours, naive = costs[axis]
    assert all(ours.flops[part] <= naive.flops[part] for part in scale.FLOPS_PARTS)
    assert ours.kept_bytes < naive.kept_bytes


def test_the_last_layer_computes_one_row_without_data_too(costs):
    assert all(ours.flops["backbone"] < naive.flops["backbone"] for _, ours, naive in costs.values())


def test_a_backbone_that_is_first_met_on_the_meta_device_may_leave_rows_out(model, monkeypatch):
    found = importlib.util.find_spec("mmblocks.backbones.last_layer")
    fresh = importlib.util.module_from_spec(found)
    monkeypatch.setitem(sys.modules, found.name, fresh)
    with torch.device("meta"):
        found.loader.exec_module(fresh)
    assert fresh.find_reason_against(model.backbone.lm) is None


def test_one_row_meets_the_vocabulary_where_the_naive_path_sends_all(costs):
    batch, ours, naive = costs["frames"]
    assert naive.flops["head"] == batch.num_tokens * ours.flops["head"]


def test_flops_are_two_for_a_multiplication_and_an_addition():
    x, w = torch.empty(3, 5, device="meta"), torch.empty(5, 7, device="meta")
    assert scale.count_flops(lambda: x @ w) == 2 * 3 * 5 * 7
