from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmblocks.components import encoders
from mmblocks.encoders.sub_encoders import build_sub_encoders, load_sub_encoders
from mmblocks.encoders.vit import require_view
from mmblocks.errors import ConfigError
from mmblocks.registry import Spec, split_spec
from mmblocks.shapes import Size


@encoders.register(
    "s2",
    source="https://arxiv.org/abs/2403.13043",
    tiny={
        "member": {"name": "siglip", "image_px": 30, "patch_px": 14, "dim": 16, "depth": 3, "heads": 2, "mlp_dim": 24},
        "scales": [1, 2],
    },
    verified_against="s2wrapper (golden numbers), and its member run tile by tile",
)
class S2(nn.Module):
    """Scaling on scales: one encoder looks at the image whole and, larger, in tiles; channels of all scales are joined.

    At scale s the image is s times the member's view, cut into s x s tiles that the member sees one by one. Their
    grids are laid side by side and averaged back to the member's own grid, so tokens stay as many as without S2 and
    only their channels grow: len(scales) * dim.

    As in the published s2wrapper: pixels arrive normalised at the largest scale and are resized to the smaller ones by
    torch's bicubic interpolation without antialiasing; the average is torch's "area" interpolation. Both in fp32.
    """

    spatial = True

    def __init__(self, member: Spec, scales: tuple[int, ...] = (1, 2)) -> None:
        super().__init__()
        if scales[:1] != (1,) or any(smaller >= larger for smaller, larger in pairwise(scales)):
            raise ConfigError(
                f"encoder 's2': scales={scales}; they start at 1, the member's own view, and grow: (1, 2) or (1, 2, 3).",
                settings=["scales"],
            )
        (built,) = build_sub_encoders("s2", {"member": member})
        if not built.spatial:
            raise ConfigError(
                f"encoder 's2': member ({split_spec(member)[0]!r}) has no image order (its grid is {built.grid}), "
                "so its tiles cannot be laid side by side; choose features that keep the grid."
            )
        self.member = built
        self.scales = scales
        self.dim: int = built.dim * len(scales)
        self.view_px = Size(*(side * scales[-1] for side in built.view_px))
        self.grid: Size = built.grid
        self.pixel_mean: tuple[float, float, float] = built.pixel_mean
        self.pixel_std: tuple[float, float, float] = built.pixel_std
        self.squash: bool = built.squash

    def forward(self, pixels: Tensor) -> Tensor:
        """(views, 3, *view_px) to (views, rows, columns, scales * the member's dim)."""
        require_view("s2", pixels, self.view_px)
        return torch.cat([self._encode_at_scale(pixels, scale) for scale in self.scales], dim=-1)

    def _encode_at_scale(self, pixels: Tensor, scale: int) -> Tensor:
        height, width = (side * scale for side in self.member.view_px)
        image = F.interpolate(pixels.float(), size=(height, width), mode="bicubic").to(pixels.dtype)
        tiles = rearrange(image, "v c (down h) (right w) -> (v down right) c h w", down=scale, right=scale)
        features = self.member(tiles)
        whole = rearrange(features.float(), "(v down right) h w d -> v d (down h) (right w)", down=scale, right=scale)
        pooled = F.interpolate(whole, size=tuple(self.grid), mode="area")
        return rearrange(pooled, "v d h w -> v h w d").to(features.dtype)

    def load_pretrained(self) -> None:
        """Let the member read its own `checkpoint`."""
        load_sub_encoders("s2", {"member": self.member})


encoders.preset("clip_vit_l_336_s2", of="s2", member="clip_vit_l_336", scales=(1, 2, 3))
encoders.preset("siglip_so400m_384_s2", of="s2", member="siglip_so400m_384", scales=(1, 2))
