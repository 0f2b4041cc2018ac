from mmblocks.components import encoders
from mmblocks.encoders.transformers_vit import TransformersViT
from mmblocks.encoders.vit import Layer


@encoders.register(
    "siglip",
    source="https://arxiv.org/abs/2303.15343",
    tiny={"image_px": 30, "patch_px": 14, "dim": 16, "depth": 3, "heads": 2, "mlp_dim": 24},
    verified_against="transformers SiglipVisionModel; LLaVA-NeXT (golden modules)",
)
class SigLIP(TransformersViT):
    """SigLIP's vision transformer: all patches after the block that `layer` names, before the final LayerNorm.

    `layer` counts as transformers' hidden_states: -2 is the second-last block, LLaVA-OneVision's choice. Later blocks,
    the final LayerNorm and the pooling head are not built. Several layers stand side by side in the channels (the
    setting `dim` is the width of one). Pixels beyond the last whole patch are not read: 384 at patches of 14 gives 27,
    and 6 are left over.

    SigLIP 2's checkpoints of fixed size have the same architecture. Its NaFlex ones are not offered: their grid follows
    the image's aspect ratio, while an encoder here states one grid for every view.

    Tensor names are those of published checkpoints: `vision_model.encoder.layers.0.mlp.fc1.weight`.
    """

    name = "siglip"
    example_checkpoint = "google/siglip-so400m-patch14-384"
    pixel_mean = (0.5, 0.5, 0.5)
    pixel_std = (0.5, 0.5, 0.5)
    squash = True

    def __init__(
        self,
        image_px: int = 384,
        patch_px: int = 14,
        dim: int = 1152,
        depth: int = 27,
        heads: int = 16,
        mlp_dim: int = 4304,
        layer: Layer = -2,
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
            prefix_tokens=0,
            hidden_act="gelu_pytorch_tanh",
            norm_eps=1e-6,
        )
        from transformers import SiglipVisionModel

        self.install_tower(self.make_tower(SiglipVisionModel, vision_use_head=False))


encoders.preset("siglip_so400m_384", of="siglip", checkpoint="google/siglip-so400m-patch14-384")
encoders.preset("siglip_so400m_224", of="siglip", checkpoint="google/siglip-so400m-patch14-224", image_px=224)
encoders.preset(
    "siglip_base_224",
    of="siglip",
    checkpoint="google/siglip-base-patch16-224",
    image_px=224,
    patch_px=16,
    dim=768,
    depth=12,
    heads=12,
    mlp_dim=3072,
)
encoders.preset("siglip_base_256", of="siglip_base_224", checkpoint="google/siglip-base-patch16-256", image_px=256)
encoders.preset("siglip_base_384", of="siglip_base_224", checkpoint="google/siglip-base-patch16-384", image_px=384)
encoders.preset("siglip_base_512", of="siglip_base_224", checkpoint="google/siglip-base-patch16-512", image_px=512)
encoders.preset(
    "siglip_large_384",
    of="siglip",
    checkpoint="google/siglip-large-patch16-384",
    patch_px=16,
    dim=1024,
    depth=24,
    heads=16,
    mlp_dim=4096,
)
encoders.preset("siglip_large_256", of="siglip_large_384", checkpoint="google/siglip-large-patch16-256", image_px=256)

encoders.preset("siglip2_base_224", of="siglip_base_224", checkpoint="google/siglip2-base-patch16-224")
encoders.preset("siglip2_base_256", of="siglip_base_256", checkpoint="google/siglip2-base-patch16-256")
encoders.preset("siglip2_base_384", of="siglip_base_384", checkpoint="google/siglip2-base-patch16-384")
encoders.preset("siglip2_base_512", of="siglip_base_512", checkpoint="google/siglip2-base-patch16-512")
encoders.preset("siglip2_large_256", of="siglip_large_256", checkpoint="google/siglip2-large-patch16-256")
encoders.preset("siglip2_large_384", of="siglip_large_384", checkpoint="google/siglip2-large-patch16-384")
encoders.preset("siglip2_large_512", of="siglip_large_384", checkpoint="google/siglip2-large-patch16-512", image_px=512)
encoders.preset("siglip2_so400m_224", of="siglip_so400m_224", checkpoint="google/siglip2-so400m-patch14-224")
encoders.preset("siglip2_so400m_384", of="siglip", checkpoint="google/siglip2-so400m-patch14-384")
encoders.preset(
    "siglip2_so400m_p16_256", of="siglip", checkpoint="google/siglip2-so400m-patch16-256", image_px=256, patch_px=16
)
encoders.preset("siglip2_so400m_p16_384", of="siglip", checkpoint="google/siglip2-so400m-patch16-384", patch_px=16)
encoders.preset(
    "siglip2_so400m_p16_512", of="siglip", checkpoint="google/siglip2-so400m-patch16-512", image_px=512, patch_px=16
)
encoders.preset(
    "siglip2_giant_384",
    of="siglip",
    checkpoint="google/siglip2-giant-opt-patch16-384",
    patch_px=16,
    dim=1536,
    depth=40,
    heads=16,
    mlp_dim=6144,
)
encoders.preset(
    "siglip2_giant_256", of="siglip2_giant_384", checkpoint="google/siglip2-giant-opt-patch16-256", image_px=256
)
