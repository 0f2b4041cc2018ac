import torch
from torch import Tensor

from mmblocks.components import encoders
from mmblocks.encoders.sub_encoders import Align, JoinedEncoders
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
class Fused(JoinedEncoders):
    """Several encoders side by side: at every cell the features of all members, one after the other.

    Prismatic's fusion of DINOv2 and SigLIP; DeepSeek-VL, Eagle and Cambrian join channels alike. `members` are names
    or settings of encoders, written as anywhere else: [clip_vit_l_336, {name: siglip, image_px: 384}].

    Pixels arrive at the largest member's view; a smaller member sees them resized (bicubic, antialiased) rather than
    the original image resized anew. Each member then gets its own normalisation. Where grids differ, cells are
    brought to one grid bilinearly: the first member's, the `finest` or the `coarsest`.

    `squash` decides for all members how an image that is not square is fitted to the view; with None they must
    agree. Prismatic squashes for all (its "resize-naive"), also for DINOv2, which by itself takes the middle of the image.

    A member's tensors stand under `members.0.`, `members.1.`, named as in the member alone.
    """

    name = "fused"
    spatial = True

    def __init__(self, members: tuple[Spec, ...], align: Align = "first", squash: bool | None = None) -> None:
        super().__init__(members, align, squash)
        self.grid = self.cells

    def forward(self, pixels: Tensor) -> Tensor:
        """(views, 3, *view_px) to (views, rows, columns, sum of the members' dims)."""
        return torch.cat(self.encode_members(pixels), dim=-1)


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
