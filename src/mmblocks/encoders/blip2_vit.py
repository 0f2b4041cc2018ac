from mmblocks.components import encoders
from mmblocks.encoders.clip import CLIP
from mmblocks.encoders.transformers_vit import TransformersViT


@encoders.register(
    "blip2_vit",
    source="https://arxiv.org/abs/2301.12597",
    tiny={"image_px": 28, "patch_px": 14, "dim": 16, "depth": 2, "heads": 2, "mlp_dim": 24},
    verified_against="transformers Blip2ForConditionalGeneration",
)
class Blip2ViT(TransformersViT):
    """BLIP-2's vision transformer (EVA-CLIP g/14 without its last block): the CLS token and all patches.

    Its grid is one row without the order of an image. The LayerNorm that follows in BLIP-2 belongs to the projector
    'qformer' (`body.ln_vision`), as in the original; transformers calls it `vision_model.post_layernorm`. `checkpoint`
    is a BLIP-2 or its vision model alone.

    Tensor names are those of published checkpoints: `vision_model.encoder.layers.0.self_attn.qkv.weight`.
    """

    name = "blip2_vit"
    example_checkpoint = "Salesforce/blip2-opt-2.7b"
    checkpoint_prefix = "vision_model."
    pixel_mean = CLIP.pixel_mean
    pixel_std = CLIP.pixel_std
    squash = True

    def __init__(
        self,
        image_px: int = 224,
        patch_px: int = 14,
        dim: int = 1408,
        depth: int = 39,
        heads: int = 16,
        mlp_dim: int = 6144,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__(
            image_px=image_px,
            patch_px=patch_px,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_dim=mlp_dim,
            layer=depth,
            checkpoint=checkpoint,
            prefix_tokens=1,
            keep_prefix=True,
            hidden_act="gelu",
            norm_eps=1e-6,
        )
        from transformers import Blip2VisionModel

        # transformers draws these weights with a deviation of 1e-10, which leaves all patches alike.
        self.install_tower(self.make_tower(Blip2VisionModel, initializer_range=0.02))


encoders.preset("blip2_vit_g_224", of="blip2_vit", checkpoint="Salesforce/blip2-opt-2.7b")
