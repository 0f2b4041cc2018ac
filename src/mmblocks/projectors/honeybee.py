from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmblocks.components import projectors
from mmblocks.projectors._base import BodyAndHead, require_counts
from mmblocks.projectors._queries import find_grid_side, require_grid, require_heads
from mmblocks.shapes import Size


class Abstractor(BodyAndHead):
    """A projector from an image's grid to a square one of `queries` cells, still in the order of an image."""

    def __init__(self, name: str, grid: Size, queries: int) -> None:
        super().__init__()
        self._name, self._grid = name, grid
        self.side = find_grid_side(name, "queries", queries)

    def out_grid(self, grid: Size) -> Size:
        require_grid(self._name, grid, self._grid)
        return Size(self.side, self.side)


class ConvolutionalBody(nn.Module):
    """Positions, convolutions, pooling to the query grid, convolutions, and the readout up to its last linear map."""

    def __init__(self, grid: Size, in_dim: int, dim: int, out_dim: int, side: int, depth: int, mlp_depth: int) -> None:
        super().__init__()
        self.pos_emb = nn.Parameter(0.02 * torch.randn(1, grid.area, in_dim))
        self.net = nn.Sequential(
            _build_stage(depth, in_dim, dim), nn.AdaptiveAvgPool2d((side, side)), _build_stage(depth, dim, dim)
        )
        layers: list[nn.Module] = []
        for width in [dim, *[out_dim] * (mlp_depth - 2)][: mlp_depth - 1]:
            layers += [nn.Linear(width, out_dim), nn.SiLU()]
        self.readout = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        positions = self.pos_emb.view(1, *x.shape[1:])
        convolved = self.net(rearrange(x + positions, "v h w d -> v d h w"))
        return self.readout(rearrange(convolved, "v d h w -> v h w d"))


def _build_stage(depth: int, in_dim: int, dim: int) -> nn.Module:
    """RegNet blocks (bottlenecks with squeeze and excitation) that keep the grid."""
    from timm.layers.norm import LayerNorm2d
    from timm.models.regnet import RegStage

    kind: Any = partial(RegStage, stride=1, dilation=1, act_layer=nn.SiLU, norm_layer=LayerNorm2d)
    return kind(depth, in_dim, dim)


@projectors.register(
    "c_abstractor",
    source="https://arxiv.org/abs/2312.06742",
    tiny={"queries": 4, "dim": 16, "depth": 1},
    verified_against="none at hand: shapes and parameter counts of the paper",
)
class CAbstractor(Abstractor):
    """Honeybee's C-Abstractor: RegNet blocks, average pooling to a square grid of queries, RegNet blocks, an MLP.

    `depth` blocks stand before the pooling and after it. The original also knows a position for CLS, which its
    convolutions drop; encoders here give patches only. It was not compared with outputs of the original.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        grid: Size,
        queries: int = 144,
        dim: int = 1024,
        depth: int = 3,
        mlp_depth: int = 2,
    ) -> None:
        require_counts("c_abstractor", queries=queries, dim=dim, depth=depth, mlp_depth=mlp_depth)
        super().__init__("c_abstractor", grid, queries)
        self.body = ConvolutionalBody(grid, in_dim, dim, out_dim, self.side, depth, mlp_depth)
        self.head = nn.Linear(dim if mlp_depth == 1 else out_dim, out_dim)


class DeformableBody(nn.Module):
    """Learned contents, placed by pooled features, sample the image around learned points."""

    def __init__(self, grid: Size, in_dim: int, dim: int, side: int, decoder: nn.Module) -> None:
        super().__init__()
        self.side = side
        self.input_proj = nn.Identity() if in_dim == dim else nn.Linear(in_dim, dim)
        self.v_pos_emb = nn.Parameter(0.02 * torch.randn(1, grid.area, dim))
        self.query_position_embeddings = nn.Embedding(side * side, dim)
        # (1, queries, 2): x and y from the first cell's centre to the last one's, as fractions of the image.
        y, x = (torch.linspace(0.5, cells - 0.5, side) / cells for cells in grid)
        points = torch.stack([x.expand(side, side), y[:, None].expand(side, side)], dim=-1)
        self.reference_points = nn.Parameter(points.view(1, side * side, 2))
        self.decoder = decoder

    def forward(self, x: Tensor) -> Tensor:
        views, rows, columns, _ = x.shape
        cells = self.input_proj(x).flatten(1, 2) + self.v_pos_emb
        image = rearrange(cells, "v (h w) d -> v d h w", h=rows)
        positions = F.adaptive_avg_pool2d(image, (self.side, self.side)).flatten(2).transpose(1, 2)
        decoded = self.decoder(
            inputs_embeds=self.query_position_embeddings.weight.expand(views, -1, -1),
            object_queries_position_embeddings=positions,
            encoder_hidden_states=cells,
            reference_points=self.reference_points.expand(views, -1, -1),
            spatial_shapes=torch.tensor([[rows, columns]], device=x.device),
            spatial_shapes_list=[(rows, columns)],
            valid_ratios=x.new_ones(views, 1, 2),
        )
        return rearrange(decoded.last_hidden_state, "v (h w) d -> v h w d", h=self.side)


@projectors.register(
    "d_abstractor",
    source="https://arxiv.org/abs/2312.06742",
    tiny={"queries": 4, "dim": 16, "depth": 1, "heads": 2, "mlp_dim": 24, "points": 2},
    verified_against="none at hand: deformable attention sampled by hand, shapes of the paper",
)
class DAbstractor(Abstractor):
    """Honeybee's D-Abstractor: a Deformable DETR decoder whose queries form a square grid over the image.

    Each query samples `points` places per head around a learned point that starts at its own place in the image.
    Pooled features say where a query is, learned vectors what it carries (the original's pooled_v_target "query").
    No dropout. The original runs it in float32 whatever the model's type; here it takes the model's. It was not compared
    with outputs of the original.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        grid: Size,
        queries: int = 144,
        dim: int = 1024,
        depth: int = 6,
        heads: int = 8,
        mlp_dim: int = 1024,
        points: int = 4,
    ) -> None:
        require_counts("d_abstractor", queries=queries, depth=depth, mlp_dim=mlp_dim, points=points)
        require_heads("d_abstractor", dim, heads)
        super().__init__("d_abstractor", grid, queries)
        from transformers.models.deformable_detr.configuration_deformable_detr import DeformableDetrConfig
        from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrDecoder

        config = DeformableDetrConfig(
            d_model=dim,
            decoder_layers=depth,
            decoder_attention_heads=heads,
            decoder_ffn_dim=mlp_dim,
            decoder_n_points=points,
            num_feature_levels=1,
            dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
        )
        self.body = DeformableBody(grid, in_dim, dim, self.side, DeformableDetrDecoder(config))
        self.head = nn.Identity() if dim == out_dim else nn.Linear(dim, out_dim)
