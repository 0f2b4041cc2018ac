from __future__ import annotations

from typing import Any

from einops import rearrange
from torch import Tensor, nn

from mmblocks.components import encoders
from mmblocks.encoders import patches, vit
from mmblocks.errors import ConfigError
from mmblocks.shapes import Size


@encoders.register(
    "dinov3",
    source="https://arxiv.org/abs/2508.10104",
    tiny={"image_px": 32, "dim": 16, "depth": 3, "heads": 2, "mlp_dim": 24},
    verified_against="transformers DINOv3ViTModel",
)
class DINOv3(nn.Module):
    """DINOv3's vision transformer with rotary positions: patches after the block that `layer` names.

    `layer` counts as transformers' hidden_states (-1: last block); later blocks are not built, and several layers stand
    side by side in the channels (`dim` in the settings is the width of one). With `norm` the model's final LayerNorm
    follows, on every layer that is given. The class token and the registers are dropped. Positions are fractions of
    the view, so any `image_px` will do.

    In training, positions are not stretched at random as they were when DINOv3 was trained: a view gives the same
    features whenever it is seen. `gated` (H+ and 7B) has a SiLU gate in the MLP; `qv_bias` is off in 7B alone. Mean and
    std are those of the models trained on web images (lvd1689m), not of the satellite ones.

    Tensor names are transformers' under `tower.`: `tower.model.layer.0.attention.q_proj.weight`.
    """

    pixel_mean = vit.IMAGENET_MEAN
    pixel_std = vit.IMAGENET_STD
    spatial = True
    squash = True
    takes_bytes = True

    def __init__(
        self,
        image_px: int = 224,
        patch_px: int = 16,
        dim: int = 1024,
        depth: int = 24,
        heads: int = 16,
        mlp_dim: int = 4096,
        gated: bool = False,
        qv_bias: bool = True,
        registers: int = 4,
        layer: vit.Layer = -1,
        norm: bool = True,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        vit.require_vit_sizes(
            "dinov3", image_px=image_px, patch_px=patch_px, dim=dim, depth=depth, heads=heads, layer=layer
        )
        _require_rotary(dim, heads, registers)
        self.dim = vit.count_channels(dim, layer)
        self.view_px = Size(image_px, image_px)
        self.grid = Size(image_px // patch_px, image_px // patch_px)
        self.checkpoint = checkpoint
        self._sizes: dict[str, Any] = {
            "patch_px": patch_px,
            "dim": dim,
            "depth": depth,
            "heads": heads,
            "mlp_dim": mlp_dim,
            "gated": gated,
            "hidden_act": "silu" if gated else "gelu",
            "query_bias": qv_bias,
            "key_bias": False,
            "value_bias": qv_bias,
            "registers": registers,
            "norm_eps": 1e-5,
        }
        self._states = vit.list_state_indices(layer, depth)
        self._prefix = 1 + registers
        self.tower = _build_tower(self._sizes, max(self._states), norm)
        vit.share_attention(self.tower)
        patches.enable_byte_pixels(self.tower, "embeddings.patch_embeddings", self.pixel_mean, self.pixel_std)
        self.register_load_state_dict_post_hook(_fill_rope_buffers)

    def forward(self, pixels: Tensor) -> Tensor:
        """(views, 3, image_px, image_px), normalised or uint8, to (views, rows, columns, dim)."""
        vit.require_view("dinov3", pixels, self.view_px, bytes_too=True)
        tokens = vit.compute_states(self.tower, pixels, self._states, self.tower.norm)
        return rearrange(tokens[:, self._prefix :], "v (h w) d -> v h w d", h=self.grid.height)

    def load_pretrained(self) -> None:
        """Read the weights of `checkpoint`; its sizes must be the settings'."""
        if self.checkpoint is None:
            raise vit.make_checkpoint_error("dinov3", "facebook/dinov3-vitl16-pretrain-lvd1689m")
        vit.fill_from_transformers("dinov3", self.tower, self.checkpoint, self._sizes)


def _build_tower(sizes: dict[str, Any], blocks: int, norm: bool) -> Any:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    settings = {vit.CONFIG_KEYS.get(name, name): value for name, value in sizes.items()}
    config = DINOv3ViTConfig(**settings, pos_embed_shift=None, pos_embed_jitter=None, pos_embed_rescale=None)
    config.num_hidden_layers = blocks
    tower: Any = DINOv3ViTModel(config)
    tower.embeddings.mask_token = None
    if not norm:
        tower.norm = nn.Identity()
    return tower


def _fill_rope_buffers(encoder: Any, _: Any) -> None:
    rope = encoder.tower.rope_embeddings
    vit.refill_buffers(rope, next(encoder.parameters()).device, lambda: type(rope)(rope.config))


def _require_rotary(dim: int, heads: int, registers: int) -> None:
    if dim // heads % 4:
        message = f"dim={dim} with heads={heads} gives {dim // heads} channels per head, not a multiple of 4"
        raise ConfigError(f"encoder 'dinov3': {message}.", settings=["dim", "heads"])
    if registers < 0:
        message = f"encoder 'dinov3': registers={registers} is no number of tokens; write 0 or more."
        raise ConfigError(message, settings=["registers"])


encoders.preset("dinov3_vitl16", of="dinov3", checkpoint="facebook/dinov3-vitl16-pretrain-lvd1689m")
encoders.preset(
    "dinov3_vits16",
    of="dinov3",
    checkpoint="facebook/dinov3-vits16-pretrain-lvd1689m",
    dim=384,
    depth=12,
    heads=6,
    mlp_dim=1536,
)
encoders.preset(
    "dinov3_vits16plus",
    of="dinov3_vits16",
    checkpoint="facebook/dinov3-vits16plus-pretrain-lvd1689m",
    gated=True,
)
encoders.preset(
    "dinov3_vitb16",
    of="dinov3",
    checkpoint="facebook/dinov3-vitb16-pretrain-lvd1689m",
    dim=768,
    depth=12,
    heads=12,
    mlp_dim=3072,
)
encoders.preset(
    "dinov3_vith16plus",
    of="dinov3",
    checkpoint="facebook/dinov3-vith16plus-pretrain-lvd1689m",
    dim=1280,
    depth=32,
    heads=20,
    mlp_dim=5120,
    gated=True,
)
encoders.preset(
    "dinov3_vit7b16",
    of="dinov3",
    checkpoint="facebook/dinov3-vit7b16-pretrain-lvd1689m",
    dim=4096,
    depth=40,
    heads=32,
    mlp_dim=8192,
    gated=True,
    qv_bias=False,
)
