"""What single projectors promise beyond the laws of all: counts, drops, merges, and grids that they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmblocks.components import projectors
from mmblocks.errors import ConfigError
from mmblocks.projectors.token_merging import merge_alike
from mmblocks.shapes import Size

GRIDS = {"siglip_384": Size(27, 27), "clip_336": Size(24, 24), "wide": Size(16, 25)}


def meta(spec: Any, in_dim: int = 16, out_dim: int = 32) -> Any:
    with torch.device("meta"):
        return projectors.build(spec, in_dim=in_dim, out_dim=out_dim)


def parameters(spec: Any, in_dim: int, out_dim: int) -> int:
    return sum(p.numel() for p in meta(spec, in_dim, out_dim).parameters())


# Sizes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "sizes"),
    [
        ("mlp_residual", [(27, 27), (24, 24), (16, 25)]),
        ("gated", [(27, 27), (24, 24), (16, 25)]),
        ("masked_drop", [(27, 27), (24, 24), (16, 25)]),
        ("conv_pooler", [(13, 13), (12, 12), (8, 12)]),
        ({"name": "strided_conv", "stride": 3}, [(9, 9), (8, 8), (5, 8)]),
        ({"name": "pixel_shuffle_mlp", "factor": 1}, [(27, 27), (24, 24), (16, 25)]),
        ("ldp", [(14, 14), (12, 12), (8, 13)]),
        ("ldpv2", [(12, 12), (12, 12), (12, 12)]),
        ("token_merging", [(1, 144), (1, 144), (1, 144)]),
    ],
    ids=str,
)
def test_grids_of_the_family_become(spec: Any, sizes: list[tuple[int, int]]) -> None:
    assert [meta(spec).out_grid(grid) for grid in GRIDS.values()] == sizes


def test_mobilevlm_projectors_have_the_parameters_of_the_published_structure() -> None:
    assert parameters("ldp", 1024, 2048) == 18_936_832
    assert parameters("ldpv2", 1024, 2048) == 6_316_032


def test_internvl_2_8b_has_a_connector_of_33_million_parameters() -> None:
    assert parameters("pixel_shuffle_mlp", 1024, 4096) == 2 * 4096 + 2 * (4096 * 4096 + 4096)


def test_the_gated_projector_is_as_wide_as_its_expansion_says() -> None:
    assert parameters({"name": "gated", "expansion": 2.5}, 16, 32) == 2 * (16 * 40 + 40) + 40 * 32 + 32


# Refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "grid", "words"),
    [
        ("pixel_shuffle_mlp", Size(27, 27), "factor=2 does not divide a grid of 27x27; choose factor=3, an encoder"),
        ("pixel_shuffle_mlp", Size(24, 23), "a projector that takes any grid"),
        ("conv_pooler", Size(1, 9), "a window of stride=2 cells a side does not fit in a grid of 1x9"),
        ({"name": "strided_conv", "stride": 4}, Size(3, 8), "a stride of at most 3"),
        ("ldpv2", Size(8, 24), "write at most rows=8 and columns=24"),
        ("token_merging", Size(8, 8), "has 64 cells, fewer than tokens=144; write at most tokens=64"),
    ],
    ids=str,
)
def test_a_grid_it_cannot_take_is_refused_with_a_cure(spec: Any, grid: Size, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        meta(spec).out_grid(grid)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"name": "mlp_residual", "blocks": 0}, "blocks=0"),
        ({"name": "mlp_residual", "depth": 0}, "'mlp_residual': depth=0"),
        ({"name": "gated", "expansion": 0.01}, "expansion=0.01 leaves none of 16 channels"),
        ({"name": "pixel_shuffle_mlp", "factor": 0}, "factor >= 1"),
        ({"name": "conv_pooler", "stride": 0}, "'conv_pooler': stride=0"),
        ({"name": "strided_conv", "stride": 0}, "'strided_conv': stride=0"),
        ({"name": "strided_conv", "channels": 0}, "channels >= 1"),
        ({"name": "ldpv2", "columns": 0}, "columns >= 1"),
        ({"name": "token_merging", "tokens": 0}, "tokens >= 1"),
        ({"name": "masked_drop", "skip": 1.5}, "skip=1.5 is no probability"),
        ({"name": "masked_drop", "ratio": 0.0}, "ratio=0.0; a share of rows is above 0"),
        ({"name": "masked_drop", "mode": "range", "ratio_lower": 0.2}, "ratio_upper=None; write both"),
        ({"name": "masked_drop", "mode": "range", "ratio_lower": 0.5, "ratio_upper": 0.2}, "lower first"),
    ],
    ids=str,
)
def test_a_setting_that_cannot_work_is_refused(spec: Any, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        meta(spec)
    assert words in str(error.value)


# Pixel shuffle ------------------------------------------------------------------------------------------------------


def test_pixel_shuffle_puts_a_square_of_cells_row_by_row_into_one() -> None:
    shuffle = projectors.build("pixel_shuffle_mlp", in_dim=1, out_dim=2).body[0]
    numbered = torch.arange(8.0).view(1, 2, 4, 1)
    assert shuffle(numbered).tolist() == [[[[0, 1, 4, 5], [2, 3, 6, 7]]]]


# Masked drop --------------------------------------------------------------------------------------------------------


def seen_rows(views: int = 200, rows: int = 16, **settings: Any) -> Tensor:
    """Which rows a training projector sees, (views, rows): features and MLP are such that a dropped row gives 0."""
    projector = projectors.build({"name": "masked_drop", "depth": 1, **settings}, in_dim=1, out_dim=1).train()
    torch.nn.init.ones_(projector.head.weight)
    torch.nn.init.zeros_(projector.head.bias)
    return projector(torch.ones(views, 1, rows, 1)).flatten(1) > 0


def test_masked_drop_keeps_the_share_it_is_told() -> None:
    seen = seen_rows(ratio=0.25)
    assert seen.sum(dim=1).tolist() == [4] * 200
    assert len({tuple(row.tolist()) for row in seen}) > 100
    assert (seen.sum(dim=0) > 20).all()


def test_masked_drop_keeps_a_share_from_a_range_for_each_view() -> None:
    counts = seen_rows(mode="range", ratio_lower=0.25, ratio_upper=0.75).sum(dim=1)
    assert set(counts.tolist()) == set(range(4, 12))


def test_masked_drop_may_keep_the_first_row_alone() -> None:
    assert seen_rows(mode="cls_only").sum(dim=0).tolist() == [200] + [0] * 15


def test_masked_drop_keeps_at_least_one_row() -> None:
    assert seen_rows(ratio=0.01).sum(dim=1).tolist() == [1] * 200


def test_masked_drop_leaves_some_views_whole() -> None:
    whole = (seen_rows(skip=0.5).sum(dim=1) == 16).sum().item()
    assert 60 < whole < 140
    assert seen_rows(skip=1.0).all()


def test_masked_drop_gives_as_many_tokens_in_training_as_it_planned() -> None:
    projector, grid = projectors.build("masked_drop", in_dim=8, out_dim=5), Size(3, 7)
    for mode in (projector.train(), projector.eval()):
        assert mode(torch.randn(2, *grid, 8)).shape == (2, *projector.out_grid(grid), 5)


# Token merging ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cells", "tokens"), [(9, 9), (9, 8), (9, 5), (9, 4), (9, 1), (10, 1), (33, 4)])
def test_merging_preserves_the_sum_of_all_tokens(cells: int, tokens: int) -> None:
    x = torch.randn(3, cells, 6, dtype=torch.float64)
    merged, sizes = merge_alike(x, tokens)
    assert merged.shape == (3, tokens, 6)
    assert sizes.sum(dim=1).tolist() == [cells] * 3
    torch.testing.assert_close((merged * sizes.unsqueeze(-1)).sum(dim=1), x.sum(dim=1))


def test_identical_tokens_are_merged_first() -> None:
    """Five kinds of token, each at an even and at an odd place: merging to five leaves one of each, unchanged."""
    kinds = torch.randn(5, 8, dtype=torch.float64)
    merged, sizes = merge_alike(kinds.repeat_interleave(2, dim=0).unsqueeze(0), 5)
    torch.testing.assert_close(merged, kinds.unsqueeze(0))
    assert sizes.tolist() == [[2.0] * 5]


def test_merged_tokens_keep_the_order_of_their_places() -> None:
    """Tokens 2 and 5 are alike: what is made of them stands where 5 stood."""
    x = torch.eye(8).unsqueeze(0)
    x[0, 2] = x[0, 5]
    merged, sizes = merge_alike(x, 7)
    assert merged.argmax(dim=-1).tolist() == [[0, 1, 3, 4, 5, 6, 7]]
    assert sizes.tolist() == [[1, 1, 1, 1, 2, 1, 1]]


def test_as_many_tokens_as_cells_are_left_as_they_are() -> None:
    x = torch.randn(2, 9, 4)
    assert torch.equal(merge_alike(x, 9)[0], x)


def test_gradients_reach_every_patch_through_a_merge() -> None:
    x = torch.randn(1, 12, 4, requires_grad=True)
    merge_alike(x, 3)[0].sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).all()
