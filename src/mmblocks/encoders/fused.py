from __future__ import annotations

import torch
from torch import Tensor, nn

from mmblocks.components import encoders
from mmblocks.encoders import members as shared
from mmblocks.encoders import vit
from mmblocks.encoders.members import Align
from mmblocks.registry import Spec

_TINY_VIT = {"patch_px": 14, "dim": 16, "depth": 3, "heads": 2, "mlp_dim": 24}


@encoders.register(
    "fused",
    source="https://arxiv.org/abs/2402.07865",
    tiny={
        "members": [{"name": "siglip", "image_px": 30, **_TINY_VIT}, {"name": "clip", "image_px": 42, **_TINY_VIT}],
        "squash": True,
    },
    verified_against="its members run by hand (timm, transformers)",
)
class Fused(nn.Module):
    """Several encoders side by side: at every cell the features of all members, one after the other.

    Prismatic's fusion of DINOv2 and SigLIP; DeepSeek-VL, Eagle and Cambrian join channels alike. `members` are names
    or settings of encoders, written as anywhere else: [clip_vit_l_336, {name: siglip, image_px: 384}].

    Pixels arrive at the largest member's view; a smaller member sees them resized (bicubic, antialiased) rather than
    the original picture resized anew. Each member then gets its own normalisation. Where grids differ, cells are
    brought to one grid bilinearly: the first member's, the `finest` or the `coarsest`.

    `squash` decides for all members how a picture that is not square meets the view; None asks that they agree.
    Prismatic squashes for all (its "resize-naive"), also for DINOv2, whose own habit is the middle of the picture.

    A member's tensors stand under `members.0.`, `members.1.`, named as in the member alone.
    """

    spatial = True

    def __init__(self, members: tuple[Spec, ...], align: Align = "first", squash: bool | None = None) -> None:
        super().__init__()
        built = shared.build_sub_encoders("fused", {f"members.{i}": spec for i, spec in enumerate(members)})
        shared.require_side_by_side("fused", members, built, squash)
        self.members = nn.ModuleList(built)
        self.dim: int = sum(member.dim for member in built)
        self.view_px = shared.choose_shared_view(built)
        self.grid = shared.choose_shared_grid(built, align)
        self.pixel_mean, self.pixel_std = shared.choose_shared_mean_std(built)
        self.squash: bool = built[0].squash if squash is None else squash

    def forward(self, pixels: Tensor) -> Tensor:
        """(views, 3, *view_px) to (views, rows, columns, sum of the members' dims)."""
        vit.require_view("fused", pixels, self.view_px)
        features = [
            member(shared.adapt_pixels(member, pixels, self.pixel_mean, self.pixel_std)) for member in self.members
        ]
        return torch.cat([shared.resize_to_grid(x, self.grid) for x in features], dim=-1)

    def load_pretrained(self) -> None:
        """Let every member read its own `checkpoint`."""
        shared.load_sub_encoders("fused", {f"members.{i}": member for i, member in enumerate(self.members)})


encoders.preset(
    "dinov2_siglip_384",
    of="fused",
    members=(
        {
            "name": "timm_vit",
            "model_name": "vit_large_patch14_reg4_dinov2",
            "checkpoint": "lvd142m",
            "image_px": 384,
            "layer": -2,
            "norm": False,
        },
        "siglip_so400m_384",
    ),
    squash=True,
)
encoders.preset(
    "dinov2_clip_336",
    of="fused",
    members=(
        {
            "name": "timm_vit",
            "model_name": "vit_large_patch14_reg4_dinov2",
            "checkpoint": "lvd142m",
            "image_px": 336,
            "layer": -2,
            "norm": False,
        },
        "clip_vit_l_336",
    ),
)
