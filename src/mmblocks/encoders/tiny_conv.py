import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmblocks.components import encoders
from mmblocks.encoders.vit import raise_faults, require_view
from mmblocks.errors import ConfigError
from mmblocks.faults import Fault
from mmblocks.shapes import Size


@encoders.register(
    "tiny_conv",
    source="https://arxiv.org/abs/2106.14881",
    tiny={"view_px": 48, "dim": 16, "widths": [8, 8], "heads": 2},
    verified_against="none: an encoder of this project",
)
class TinyConv(nn.Module):
    """A convolutional stem and a few attention blocks: learns small images on a laptop, without pretraining.

    Stage i shrinks by strides[i]; widths are the channels of all stages but the last, which gives `dim`. The grid has
    view_px / product(strides) cells a side. GroupNorm normalises each view by itself, so results do not depend on the batch.
    """

    pixel_mean = (0.5, 0.5, 0.5)
    pixel_std = (0.5, 0.5, 0.5)
    spatial = True
    squash = True

    def __init__(
        self,
        view_px: int = 48,
        dim: int = 128,
        widths: tuple[int, ...] = (32, 64),
        strides: tuple[int, ...] = (3, 2, 2),
        groups: int = 4,
        blocks: int = 1,
        heads: int = 4,
        mlp_ratio: int = 2,
    ) -> None:
        super().__init__()
        _require_stem(view_px, dim, widths, strides, groups, heads)
        side = view_px // math.prod(strides)
        self.dim = dim
        self.view_px = Size(view_px, view_px)
        self.grid = Size(side, side)
        # A window is its cell and one more row and column on every side, so that cells stay centred on what they see
        # (3x3 windows at stride 2 drift by almost half a cell within three stages). The first norm is over all
        # channels, so that the contrast between colours remains until they are mixed.
        layers: list[nn.Module] = []
        for i, ((width, next_width), stride) in enumerate(zip(pairwise([3, *widths, dim]), strides, strict=True)):
            layers.append(nn.Conv2d(width, next_width, kernel_size=stride + 2, stride=stride, padding=1))
            layers.append(nn.GroupNorm(groups if i else 1, next_width))
            layers.append(nn.GELU())
        self.stem = nn.Sequential(*layers[:-1])
        # Half as large as the features: at ViT's usual 0.02 a small model learns what is in the image, but not where.
        self.positions = nn.Parameter(0.5 * torch.randn(side * side, dim))
        self.blocks = nn.Sequential(*[_AttentionBlock(dim, heads, mlp_ratio) for _ in range(blocks)])
        self.norm = nn.LayerNorm(dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """(views, 3, view_px, view_px) to (views, rows, columns, dim)."""
        require_view("tiny_conv", pixels, self.view_px)
        cells = rearrange(self.stem(pixels.to(self.positions.dtype)), "v d h w -> v (h w) d")
        features = self.norm(self.blocks(cells + self.positions))
        return rearrange(features, "v (h w) d -> v h w d", h=self.grid.height)

    def load_pretrained(self) -> None:
        """Refused: nobody publishes weights for it."""
        raise ConfigError(
            "encoder 'tiny_conv' has no published weights; train it, or load the folder of a model that was trained."
        )


class _AttentionBlock(nn.Module):
    """Attention among the cells of a view, then an MLP per cell; each after a LayerNorm, each added to its input."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(
            self.qkv(self.norm1(x)), "v n (three heads d) -> three v heads n d", three=3, heads=self.heads
        )
        attended = rearrange(F.scaled_dot_product_attention(q, k, v), "v heads n d -> v n (heads d)")
        x = x + self.out(attended)
        return x + self.mlp(self.norm2(x))


def _require_stem(
    view_px: int, dim: int, widths: tuple[int, ...], strides: tuple[int, ...], groups: int, heads: int
) -> None:
    faults = []
    if len(strides) != len(widths) + 1:
        message = (
            f"{len(strides)} strides and {len(widths)} widths; the last stage is dim wide, so give one more stride"
        )
        faults.append(Fault("", message))
    if min(strides, default=0) < 1 or view_px < 1 or view_px % math.prod(strides):
        faults.append(Fault("view_px", f"view_px={view_px} cannot be divided by strides={tuple(strides)}"))
    if groups < 1:
        faults.append(Fault("groups", f"groups={groups} is no number of groups"))
    elif uneven := [width for width in (*widths[1:], dim) if width % groups]:
        faults.append(Fault("", f"widths {uneven} are not multiples of groups={groups}"))
    if heads < 1 or dim % heads:
        faults.append(Fault("", f"dim={dim} is not a multiple of heads={heads}"))
    raise_faults("tiny_conv", faults)


encoders.preset("tiny_conv_48", of="tiny_conv", view_px=48, strides=(4, 2, 2))
