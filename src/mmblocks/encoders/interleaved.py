from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmblocks.components import encoders
from mmblocks.encoders import members as shared
from mmblocks.encoders import vit
from mmblocks.encoders.members import Align
from mmblocks.registry import Spec
from mmblocks.shapes import Size

_TINY_VIT = {"patch_px": 14, "depth": 3, "heads": 2, "mlp_dim": 24}


@encoders.register(
    "interleaved",
    source="https://arxiv.org/abs/2401.06209",
    tiny={
        "members": [
            {"name": "clip", "image_px": 30, "dim": 8, **_TINY_VIT},
            {"name": "siglip", "image_px": 30, "dim": 16, **_TINY_VIT},
        ],
        "squash": False,
    },
    verified_against="its members run by hand, and two separate linear adapters (transformers)",
)
class Interleaved(nn.Module):
    """Interleaved mixture of features (I-MoF): tokens of two or more encoders take turns, cell by cell.

    The first cell's token of every member, then the second cell's, row by row: members x cells tokens, as in MMVP,
    where CLIP's stand at 0, 2, 4 and DINOv2's at 1, 3, 5. They are a row without a picture's order.

    The paper gives every member an adapter of its own; a model has one projector here. So each member's channels have
    a block of `dim` to themselves and are zero in the others': whatever the projector's first linear map does to a
    block, it does to that member alone. With the projector `linear` that is one linear adapter per member (their
    biases are one); with `mlp` only the first map is a member's own, and later ones are shared.

    Views, `align` and `squash` are as in the encoder `fused`, and so is that every member gets its own normalisation
    (MMVP gives DINOv2 the pixels that were normalised for CLIP).
    """

    spatial = False

    def __init__(self, members: tuple[Spec, ...], align: Align = "first", squash: bool | None = None) -> None:
        super().__init__()
        built = shared.build_sub_encoders("interleaved", {f"members.{i}": spec for i, spec in enumerate(members)})
        shared.require_side_by_side("interleaved", members, built, squash)
        self.members = nn.ModuleList(built)
        self.dim: int = sum(member.dim for member in built)
        self.view_px = shared.choose_shared_view(built)
        self.cells = shared.choose_shared_grid(built, align)
        self.grid = Size(1, len(built) * self.cells.area)
        self.pixel_mean, self.pixel_std = shared.choose_shared_mean_std(built)
        self.squash: bool = built[0].squash if squash is None else squash

    def forward(self, pixels: Tensor) -> Tensor:
        """(views, 3, *view_px) to (views, 1, members * cells, sum of the members' dims)."""
        vit.require_view("interleaved", pixels, self.view_px)
        blocks, before = [], 0
        for member in self.members:
            features = member(shared.adapt_pixels(member, pixels, self.pixel_mean, self.pixel_std))
            blocks.append(_in_its_block(shared.resize_to_grid(features, self.cells), before, self.dim))
            before += features.shape[-1]
        return rearrange(torch.stack(blocks), "m v h w d -> v 1 (h w m) d")

    def load_pretrained(self) -> None:
        """Let every member read its own `checkpoint`."""
        shared.load_sub_encoders("interleaved", {f"members.{i}": member for i, member in enumerate(self.members)})


def _in_its_block(features: Tensor, before: int, dim: int) -> Tensor:
    """Zeros for the channels of other members before and behind these."""
    return F.pad(features, (before, dim - before - features.shape[-1]))


encoders.preset(
    "clip_dinov2_imof_336",
    of="interleaved",
    members=(
        "clip_vit_l_336",
        {"name": "dinov2_large", "image_px": 336, "norm": False},
    ),
)
