"""FLOPs of repeated operators are added up without running them: the sums are torch's own."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmblocks.components import encoders
from mmblocks.model.costs.counter import count_flops


def counted_by_torch(run):
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return {str(operator): n for operator, n in counter.get_flop_counts()["Global"].items()}


@pytest.fixture
def blocks():
    """Five equal blocks, and one of another width after them."""
    with torch.device("meta"):
        equal = [nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU()) for _ in range(5)]
        return nn.Sequential(*equal, nn.Linear(8, 3))


def test_a_block_that_is_repeated_counts_as_often_as_it_is_run(blocks):
    def run():
        assert blocks(torch.empty(2, 7, 8)).shape == (2, 7, 3)

    assert count_flops(run) == counted_by_torch(run)
    assert count_flops(run).total() == 2 * 14 * (5 * 8 * 8 + 8 * 3)


@pytest.mark.parametrize("name", ["clip", "dinov2", "siglip", "tiny_conv"])
def test_an_encoder_has_the_flops_that_torch_counts(name):
    with torch.device("meta"):
        encoder = encoders.build({"name": name, **encoders[name].tiny})

    def run():
        assert encoder(torch.empty(1, 3, *encoder.view_px)).shape == (1, *encoder.grid, encoder.dim)

    assert count_flops(run) == counted_by_torch(run)


def test_operators_run_once_for_equal_inputs_and_again_for_others(monkeypatch):
    run_by_torch = []
    own = FlopCounterMode._count_flops

    def counting(self, packet, *others):
        run_by_torch.append(str(packet))
        return own(self, packet, *others)

    monkeypatch.setattr(FlopCounterMode, "_count_flops", counting)

    def products(*rows):
        return lambda: [torch.empty(n, 4) @ torch.empty(4, 4) for n in rows]

    assert count_flops(products(3, 3, 3)).total() == 3 * 2 * 3 * 16
    assert run_by_torch.count("aten.mm") == 1
    run_by_torch.clear()
    assert count_flops(products(3, 5, 3)).total() == (3 + 5 + 3) * 2 * 16
    assert run_by_torch.count("aten.mm") == 2


def test_what_is_written_in_place_or_seen_otherwise_keeps_its_shape():
    def run():
        x = torch.empty(2, 6)
        for _ in range(2):
            seen = x.view(3, 4)
            assert seen.add_(1) is seen
            assert seen.t().shape == (4, 3)
            assert [part.shape for part in torch.empty(4, 2).topk(1)] == [(4, 1), (4, 1)]
            assert (x == 1).dtype == torch.bool
            assert (x * 1).dtype == torch.float32
            assert (torch.empty(2, dtype=torch.int64) * 1.0).dtype == torch.float32
            assert (torch.empty(2, dtype=torch.int64) * 1).dtype == torch.int64

    assert count_flops(run).total() == 0
