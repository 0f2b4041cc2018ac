from __future__ import annotations

from torch import Tensor, nn

from mmblocks.components import encoders
from mmblocks.encoders import patches, vit
from mmblocks.encoders.clip import CLIP
from mmblocks.shapes import Size


@encoders.register(
    "blip2_vit",
    source="https://arxiv.org/abs/2301.12597",
    tiny={"image_px": 28, "patch_px": 14, "dim": 16, "depth": 2, "heads": 2, "mlp_dim": 24},
    verified_against="transformers Blip2ForConditionalGeneration",
)
class Blip2ViT(nn.Module):
    """BLIP-2's vision transformer (EVA-CLIP g/14 without its last block): the CLS token and all patches.

    Its grid is one row without a picture's order. The LayerNorm that follows in BLIP-2 belongs to the projector
    'qformer' (`body.ln_vision`), as in the original; transformers calls it `vision_model.post_layernorm`.

    Tensor names are those of published checkpoints: `vision_model.encoder.layers.0.self_attn.qkv.weight`.
    """

    pixel_mean = CLIP.pixel_mean
    pixel_std = CLIP.pixel_std
    spatial = False
    squash = True
    takes_bytes = True

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
        super().__init__()
        vit.require_vit_sizes(
            "blip2_vit", image_px=image_px, patch_px=patch_px, dim=dim, depth=depth, heads=heads, layer=depth
        )
        from transformers import Blip2VisionConfig, Blip2VisionModel

        self.dim = dim
        self.view_px = Size(image_px, image_px)
        self.grid = Size(1, 1 + (image_px // patch_px) ** 2)
        self.checkpoint = checkpoint
        self._sizes = {
            "image_px": image_px,
            "patch_px": patch_px,
            "dim": dim,
            "depth": depth,
            "heads": heads,
            "mlp_dim": mlp_dim,
            "hidden_act": "gelu",
            "norm_eps": 1e-6,
        }
        sizes = {vit.CONFIG_KEYS[setting]: value for setting, value in self._sizes.items()}
        # transformers draws these weights with a deviation of 1e-10, which leaves all patches alike.
        self.vision_model = Blip2VisionModel(Blip2VisionConfig(**sizes, initializer_range=0.02))
        self.vision_model.register_module("post_layernorm", nn.Identity())
        vit.share_attention(self.vision_model)
        patches.enable_byte_pixels(self.vision_model, "embeddings.patch_embedding", self.pixel_mean, self.pixel_std)

    def forward(self, pixels: Tensor) -> Tensor:
        """(views, 3, image_px, image_px), normalised or uint8, to (views, 1, 1 + patches, dim)."""
        vit.require_view("blip2_vit", pixels, self.view_px, bytes_too=True)
        return self.vision_model(pixel_values=patches.to_byte_pixels(pixels)).last_hidden_state.unsqueeze(1)

    def load_pretrained(self) -> None:
        """Read the weights of `checkpoint`, a BLIP-2 or its vision model alone; its sizes must be the settings'."""
        if self.checkpoint is None:
            raise vit.make_checkpoint_error("blip2_vit", "Salesforce/blip2-opt-2.7b")
        vit.fill_from_transformers("blip2_vit", self.vision_model, self.checkpoint, self._sizes, "vision_model.")


encoders.preset("blip2_vit_g_224", of="blip2_vit", checkpoint="Salesforce/blip2-opt-2.7b")
