from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmblocks.components import projectors
from mmblocks.errors import ConfigError
from mmblocks.projectors._base import BodyAndHead, require_counts
from mmblocks.projectors._queries import find_grid_side, require_heads
from mmblocks.shapes import Size


class WindowAttention(nn.Module):
    """One query attends to the cells of its window in all sources at once; a LayerNorm before every projection."""

    def __init__(self, dim: int, heads: int, sources: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = _make_normed_linear(dim)
        self.k_proj = nn.ModuleList(_make_normed_linear(dim) for _ in range(sources))
        self.v_proj = nn.ModuleList(_make_normed_linear(dim) for _ in range(sources))
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, query: Tensor, windows: Sequence[Tensor]) -> Tensor:
        """(n, 1, dim) and one (n, cells, dim) per source to (n, 1, dim)."""
        k, v = (
            torch.cat([project(cells) for project, cells in zip(projections, windows, strict=True)], dim=1)
            for projections in (self.k_proj, self.v_proj)
        )
        q, k, v = (rearrange(t, "n c (heads d) -> n heads c d", heads=self.heads) for t in (self.q_proj(query), k, v))
        return self.o_proj(rearrange(F.scaled_dot_product_attention(q, k, v), "n heads c d -> n c (heads d)"))


class AggregationLayer(nn.Module):
    """A query with the mean of the whole image reads its windows; the result is added to the query."""

    def __init__(self, dim: int, heads: int, windows: Sequence[int]) -> None:
        super().__init__()
        self.proj_context = nn.Linear(dim, dim, bias=False)
        self.proj_in = nn.Linear(2 * dim, dim, bias=False)
        self.cross_attn = WindowAttention(dim, heads, len(windows))
        self.pos_embed = nn.ParameterDict(
            {str(i): nn.Parameter(torch.randn(side * side, dim)) for i, side in enumerate(windows) if side > 1}
        )
        self.norm = nn.LayerNorm(dim)
        self.proj_out = nn.Sequential(nn.Linear(dim, dim, bias=False), nn.GELU(), nn.Linear(dim, dim, bias=False))

    def forward(self, queries: Tensor, context: Tensor, windows: Sequence[Tensor]) -> Tensor:
        """(n, 1, dim), (n, 1, dim) and one (n, cells, dim) per source to (n, 1, dim)."""
        informed = self.proj_in(torch.cat([queries, self.proj_context(context)], dim=-1))
        placed = [
            cells + self.pos_embed[str(i)] if str(i) in self.pos_embed else cells for i, cells in enumerate(windows)
        ]
        return queries + self.proj_out(self.norm(informed + self.cross_attn(informed, placed)))


class AggregatorBody(nn.Module):
    """Fused features of several encoders to one square grid, up to the last linear map of the readout.

    maps: cells a side to which each source is resized. groups: cells a side of each group of queries.
    """

    def __init__(
        self,
        splits: Sequence[int],
        maps: Sequence[int],
        groups: Sequence[int],
        side: int,
        dim: int,
        out_dim: int,
        depth: int,
        heads: int,
    ) -> None:
        super().__init__()
        self.splits, self.maps, self.groups, self.side = tuple(splits), tuple(maps), tuple(groups), side
        self.mm_projector_aux = nn.ModuleList(
            nn.Sequential(nn.Linear(width, dim), nn.GELU(), nn.Linear(dim, dim), nn.LayerNorm(dim)) for width in splits
        )
        self.vision_query = nn.Parameter(torch.randn(len(groups), dim) * out_dim**-0.5)
        self.vision_sampler = nn.ModuleList(
            nn.ModuleList(AggregationLayer(dim, heads, [cells // group for cells in maps]) for _ in range(depth))
            for group in groups
        )
        self.mm_projector = nn.Sequential(nn.Linear(dim * len(groups), out_dim), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        sources = [
            project(_resize_map(source, cells))
            for source, cells, project in zip(
                x.split(self.splits, dim=-1), self.maps, self.mm_projector_aux, strict=True
            )
        ]
        context = sources[0].mean((1, 2))
        grids = [self._sample_group(group, sources, context) for group in range(len(self.groups))]
        return self.mm_projector(torch.cat(grids, dim=-1))

    def _sample_group(self, group: int, sources: Sequence[Tensor], context: Tensor) -> Tensor:
        """The features of one group of queries, (views, side, side, dim)."""
        side = self.groups[group]
        windows = [rearrange(s, "v (h a) (w b) d -> (v h w) (a b) d", h=side, w=side) for s in sources]
        contexts = context.repeat_interleave(side * side, dim=0).unsqueeze(1)
        queries = self.vision_query[group].expand(len(contexts), 1, -1)
        for layer in self.vision_sampler[group]:  # type: ignore[union-attr]
            queries = layer(queries, contexts, windows)
        return _resize_map(rearrange(queries, "(v h w) 1 d -> v h w d", h=side, w=side), self.side)


def _make_normed_linear(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim, bias=False))


def _resize_map(x: Tensor, side: int) -> Tensor:
    """(views, h, w, dim) to (views, side, side, dim), bilinear, in float32 as in the original."""
    if x.shape[1:3] == (side, side):
        return x
    image = rearrange(x, "v h w d -> v d h w")
    wide = image if image.dtype == torch.float64 else image.float()
    resized = F.interpolate(wide, size=(side, side), mode="bilinear", align_corners=False)
    return rearrange(resized, "v d h w -> v h w d").to(x.dtype)


@projectors.register(
    "sva",
    source="https://arxiv.org/abs/2406.16860",
    tiny={"queries": 4, "dim": 16, "depth": 2, "heads": 2, "windows": [2]},
    verified_against="none at hand: a plain loop over queries and windows, parameter counts of the paper",
)
class SpatialVisionAggregator(BodyAndHead):
    """Cambrian-1's SVA in front of the LLM: every query of a square grid reads its own window of every source.

    splits: channel widths of the encoders whose features arrive side by side, in order; empty for one encoder.
    windows: cells a side of a query's window in each source, which is resized to fit; empty takes what comes closest
    to the grid's own number of cells. A lone source with windows of 1 gives attention nothing to choose from.
    groups: queries of each group, empty for one group of `queries`; groups are resized to the query grid and joined.
    All queries of a group start alike; each is joined with the first source's mean.

    Not here: SVA layers inside the LLM (Cambrian's connector_only=False) and the mask of padded borders. Names differ
    from the original's in dots for underscores (`vision_sampler.0.0` for `vision_sampler_0.layers.0`). It was not
    compared with outputs of the original.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        grid: Size,
        queries: int = 576,
        splits: tuple[int, ...] = (),
        windows: tuple[int, ...] = (),
        groups: tuple[int, ...] = (),
        dim: int = 1024,
        depth: int = 3,
        heads: int = 16,
    ) -> None:
        require_counts("sva", depth=depth)
        require_heads("sva", dim, heads)
        super().__init__()
        side = find_grid_side("sva", "queries", queries)
        widths = splits or (in_dim,)
        if min(widths) < 1 or sum(widths) != in_dim:
            raise ConfigError(
                f"projector 'sva': splits={list(splits)} make {sum(widths)} channels and the encoder gives {in_dim}; "
                "write the widths of its sources in their order.",
                settings=["splits"],
            )
        windows = windows or (max(1, round(grid.area**0.5 / side)),) * len(widths)
        if len(windows) != len(widths) or min(windows) < 1:
            raise ConfigError(
                f"projector 'sva': windows={list(windows)} for {len(widths)} sources; write cells a side, 1 or more, "
                "for each.",
                settings=["windows"],
            )
        maps = [window * side for window in windows]
        sides = [find_grid_side("sva", "groups", group) for group in groups or (queries,)]
        _require_whole_windows(maps, sides)
        self.side = side
        self.body = AggregatorBody(widths, maps, sides, side, dim, out_dim, depth, heads)
        self.head = nn.Linear(out_dim, out_dim)

    def out_grid(self, grid: Size) -> Size:
        return Size(self.side, self.side)


def _require_whole_windows(maps: Sequence[int], sides: Sequence[int]) -> None:
    for cells in maps:
        for side in sides:
            if cells % side:
                raise ConfigError(
                    f"projector 'sva': groups of {side}x{side} queries cannot share out a source of {cells}x{cells} "
                    "cells; choose groups and windows so that they divide."
                )
