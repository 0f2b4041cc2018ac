from typing import Literal

from mmblocks.components import encoders
from mmblocks.encoders.transformers_vit import TransformersViT
from mmblocks.encoders.vit import Layer


@encoders.register(
    "clip",
    source="https://arxiv.org/abs/2103.00020",
    tiny={"image_px": 30, "patch_px": 14, "dim": 16, "depth": 3, "heads": 2, "mlp_dim": 24},
    verified_against="transformers CLIPVisionModel; LLaVA-NeXT (golden modules)",
)
class CLIP(TransformersViT):
    """CLIP's vision transformer: tokens after the block that `layer` names, before the final LayerNorm.

    `layer` counts as transformers' hidden_states: -2 is the second-last block, LLaVA's choice; later blocks are not
    built. Several layers stand side by side in the channels, in the order written; 0 is the state before the first
    block. LLaVA-NeXT's "slicefour" on 24 blocks is [4, 10, 16, 22], its "slice_m25811_f6" is [-2, -5, -8, -11, 6];
    the attribute `dim` counts all channels (LLaVA-NeXT: four times one layer's, whatever the number of slices), the
    setting `dim` is the width of one block.

    `select="patch"` drops the CLS token; "cls_patch" keeps it first, and the grid is then one row of 1 + patches tokens
    without the order of an image.

    Tensor names are those of published checkpoints: `vision_model.encoder.layers.0.mlp.fc1.weight`.
    """

    name = "clip"
    example_checkpoint = "openai/clip-vit-large-patch14-336"
    pixel_mean = (0.48145466, 0.4578275, 0.40821073)
    pixel_std = (0.26862954, 0.26130258, 0.27577711)
    squash = False

    def __init__(
        self,
        image_px: int = 336,
        patch_px: int = 14,
        dim: int = 1024,
        depth: int = 24,
        heads: int = 16,
        mlp_dim: int = 4096,
        layer: Layer = -2,
        select: Literal["patch", "cls_patch"] = "patch",
        hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu",
        checkpoint: str | None = None,
    ) -> None:
        super().__init__(
            image_px=image_px,
            patch_px=patch_px,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_dim=mlp_dim,
            layer=layer,
            checkpoint=checkpoint,
            prefix_tokens=1,
            keep_prefix=select == "cls_patch",
            hidden_act=hidden_act,
            norm_eps=1e-5,
        )
        from transformers import CLIPVisionModel

        self.install_tower(self.make_tower(CLIPVisionModel))


encoders.preset("clip_vit_l_336", of="clip", checkpoint="openai/clip-vit-large-patch14-336")
encoders.preset("clip_vit_l_224", of="clip", checkpoint="openai/clip-vit-large-patch14", image_px=224)
encoders.preset(
    "clip_vit_b_16",
    of="clip",
    checkpoint="openai/clip-vit-base-patch16",
    image_px=224,
    patch_px=16,
    dim=768,
    depth=12,
    heads=12,
    mlp_dim=3072,
)
encoders.preset("clip_vit_b_32", of="clip_vit_b_16", checkpoint="openai/clip-vit-base-patch32", patch_px=32)
