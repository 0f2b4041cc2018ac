import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mmblocks.components import encoders
from mmblocks.encoders.sub_encoders import Align, JoinedEncoders
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
class Interleaved(JoinedEncoders):
    """Interleaved mixture of features (I-MoF): tokens of two or more encoders take turns, cell by cell.

    The first cell's token of every member, then the second cell's, row by row: members x cells tokens, as in MMVP,
    where CLIP has positions 0, 2, 4 and DINOv2 1, 3, 5. They are a row without the order of an image.

    The paper gives every member an adapter of its own; a model has one projector here. So each member's channels have
    a block of `dim` to themselves and are zero in the others': whatever the projector's first linear map does to a
    block, it does to that member alone. With the projector `linear` that is one linear adapter per member (their
    biases are one); with `mlp` only the first map is a member's own, and later ones are shared.

    Views, `align` and `squash` are as in the encoder `fused`, and so is that every member gets its own normalisation
    (MMVP gives DINOv2 the pixels that were normalised for CLIP).
    """

    name = "interleaved"
    spatial = False

    def __init__(self, members: tuple[Spec, ...], align: Align = "first", squash: bool | None = None) -> None:
        super().__init__(members, align, squash)
        self.grid = Size(1, len(self.members) * self.cells.area)

    def forward(self, pixels: Tensor) -> Tensor:
        """(views, 3, *view_px) to (views, 1, members * cells, sum of the members' dims)."""
        blocks, before = [], 0
        for features in self.encode_members(pixels):
            width = features.shape[-1]
            # Zeros for the channels of other members before and behind these.
            blocks.append(F.pad(features, (before, self.dim - before - width)))
            before += width
        return rearrange(torch.stack(blocks), "m v h w d -> v 1 (h w m) d")


encoders.preset(
    "clip_dinov2_imof_336",
    of="interleaved",
    members=("clip_vit_l_336", {"name": "dinov2_large", "image_px": 336, "norm": False}),
)
