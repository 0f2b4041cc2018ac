from __future__ import annotations

from typing import Literal

from einops import rearrange
from torch import Tensor, nn

from mmblocks.components import encoders
from mmblocks.encoders import patches, vit
from mmblocks.shapes import Size


@encoders.register(
    "clip",
    source="https://arxiv.org/abs/2103.00020",
    tiny={"image_px": 30, "patch_px": 14, "dim": 16, "depth": 3, "heads": 2, "mlp_dim": 24},
    verified_against="transformers CLIPVisionModel; LLaVA-NeXT (golden modules)",
)
class CLIP(nn.Module):
    """CLIP's vision transformer: tokens after the block that `layer` names, before the final LayerNorm.

    `layer` counts as transformers' hidden_states: -2 is the second-last block, LLaVA's choice; later blocks are not
    built. Several layers stand side by side in the channels, in the order written; 0 is the state before the first
    block. LLaVA-NeXT's "slicefour" on 24 blocks is [4, 10, 16, 22], its "slice_m25811_f6" is [-2, -5, -8, -11, 6];
    `dim` states all channels (LLaVA-NeXT states four times one layer's, whatever the number of slices).

    `dim` in the settings is the width of one block. `select="patch"` drops the CLS token; "cls_patch" keeps it first, and the grid is then one row of
    1 + patches tokens without a picture's order.

    Tensor names are those of published checkpoints: `vision_model.encoder.layers.0.mlp.fc1.weight`.
    """

    pixel_mean = (0.48145466, 0.4578275, 0.40821073)
    pixel_std = (0.26862954, 0.26130258, 0.27577711)
    squash = False
    takes_bytes = True

    def __init__(
        self,
        image_px: int = 336,
        patch_px: int = 14,
        dim: int = 1024,
        depth: int = 24,
        heads: int = 16,
        mlp_dim: int = 4096,
        layer: vit.Layer = -2,
        select: Literal["patch", "cls_patch"] = "patch",
        hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu",
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        vit.require_vit_sizes(
            "clip", image_px=image_px, patch_px=patch_px, dim=dim, depth=depth, heads=heads, layer=layer
        )
        from transformers import CLIPVisionConfig, CLIPVisionModel

        side = image_px // patch_px
        self.dim = vit.count_channels(dim, layer)
        self.view_px = Size(image_px, image_px)
        self.spatial = select == "patch"
        self.grid = Size(side, side) if self.spatial else Size(1, 1 + side * side)
        self.checkpoint = checkpoint
        self._sizes = {
            "image_px": image_px,
            "patch_px": patch_px,
            "dim": dim,
            "depth": depth,
            "heads": heads,
            "mlp_dim": mlp_dim,
            "hidden_act": hidden_act,
            "norm_eps": 1e-5,
        }
        config = CLIPVisionConfig(**{vit.CONFIG_KEYS[setting]: value for setting, value in self._sizes.items()})
        config.num_hidden_layers = vit.count_blocks(layer, depth)
        self._states = vit.list_state_indices(layer, depth)
        self.vision_model = CLIPVisionModel(config)
        self.vision_model.register_module(
            "post_layernorm", nn.Identity()
        )  # transformers applies it to the pooled CLS only
        vit.fill_position_ids(self.vision_model)
        vit.share_attention(self.vision_model)
        patches.enable_byte_pixels(self.vision_model, "embeddings.patch_embedding", self.pixel_mean, self.pixel_std)

    def forward(self, pixels: Tensor) -> Tensor:
        """(views, 3, image_px, image_px), normalised or uint8, to (views, rows, columns, dim)."""
        vit.require_view("clip", pixels, self.view_px, bytes_too=True)
        tokens = vit.compute_states(self.vision_model, pixels, self._states)
        tokens = tokens[:, 1:] if self.spatial else tokens
        return rearrange(tokens, "v (h w) d -> v h w d", h=self.grid.height)

    def load_pretrained(self) -> None:
        """Read the weights of `checkpoint`; its sizes must be the settings'."""
        if self.checkpoint is None:
            raise vit.make_checkpoint_error("clip", "openai/clip-vit-large-patch14-336")
        vit.fill_from_transformers("clip", self.vision_model, self.checkpoint, self._sizes)


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
