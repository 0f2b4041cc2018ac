from __future__ import annotations

from typing import Any

from einops import rearrange
from torch import Tensor, nn

from mmblocks.components import encoders
from mmblocks.encoders import patches, vit
from mmblocks.errors import ConfigError
from mmblocks.shapes import Size


@encoders.register(
    "dinov2",
    source="https://arxiv.org/abs/2304.07193",
    tiny={"image_px": 30, "trained_px": 42, "dim": 16, "depth": 3, "heads": 2, "registers": 2},
    verified_against="transformers Dinov2Model and Dinov2WithRegistersModel",
)
class DINOv2(nn.Module):
    """DINOv2's vision transformer, with or without registers: patches after the block that `layer` names.

    `layer` counts as transformers' hidden_states (-1: last block); later blocks are not built, and several layers stand
    side by side in the channels (`dim` in the settings is the width of one). With `norm` the model's final LayerNorm
    follows, on every layer that is given. The class token and the registers are dropped.

    `trained_px` is the view that the position embeddings were trained for (518 in what was published); at another
    `image_px` they are interpolated as transformers does it, with antialiasing where the model has registers.

    Tensor names are those of published checkpoints under `tower.`: `tower.encoder.layer.0.attention...`.
    """

    pixel_mean = vit.IMAGENET_MEAN
    pixel_std = vit.IMAGENET_STD
    spatial = True
    squash = False
    takes_bytes = True

    def __init__(
        self,
        image_px: int = 518,
        patch_px: int = 14,
        dim: int = 1024,
        depth: int = 24,
        heads: int = 16,
        mlp_ratio: int = 4,
        swiglu: bool = False,
        registers: int = 0,
        trained_px: int = 518,
        layer: vit.Layer = -1,
        norm: bool = True,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        vit.require_vit_sizes(
            "dinov2", image_px=image_px, patch_px=patch_px, dim=dim, depth=depth, heads=heads, layer=layer
        )
        _require_positions(trained_px, patch_px, registers)
        self.dim = vit.count_channels(dim, layer)
        self.view_px = Size(image_px, image_px)
        self.grid = Size(image_px // patch_px, image_px // patch_px)
        self.checkpoint = checkpoint
        self._sizes: dict[str, Any] = {
            "trained_px": trained_px,
            "patch_px": patch_px,
            "dim": dim,
            "depth": depth,
            "heads": heads,
            "mlp_ratio": mlp_ratio,
            "swiglu": swiglu,
            "norm_eps": 1e-6,
            **({"registers": registers} if registers else {}),
        }
        self._states = vit.list_state_indices(layer, depth)
        self._prefix = 1 + registers
        self.tower = _build_tower(self._sizes, max(self._states), norm)
        vit.share_attention(self.tower)
        patches.enable_byte_pixels(
            self.tower, "embeddings.patch_embeddings.projection", self.pixel_mean, self.pixel_std
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """(views, 3, image_px, image_px), normalised or uint8, to (views, rows, columns, dim)."""
        vit.require_view("dinov2", pixels, self.view_px, bytes_too=True)
        tokens = vit.compute_states(self.tower, pixels, self._states, self.tower.layernorm)
        return rearrange(tokens[:, self._prefix :], "v (h w) d -> v h w d", h=self.grid.height)

    def load_pretrained(self) -> None:
        """Read the weights of `checkpoint`; its sizes must be the settings'."""
        if self.checkpoint is None:
            raise vit.make_checkpoint_error("dinov2", "facebook/dinov2-large")
        vit.fill_from_transformers("dinov2", self.tower, self.checkpoint, self._sizes)


def _build_tower(sizes: dict[str, Any], blocks: int, norm: bool) -> Any:
    """transformers' model of `blocks` blocks without its mask token, which stands in for no patch of a whole image."""
    from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    settings = {vit.CONFIG_KEYS.get(name, name): value for name, value in sizes.items()}
    if "registers" in sizes:
        config = Dinov2WithRegistersConfig(**settings)
        config.num_hidden_layers = blocks
        tower: Any = Dinov2WithRegistersModel(config)
    else:
        config = Dinov2Config(**settings)
        config.num_hidden_layers = blocks
        tower = Dinov2Model(config)
    tower.embeddings.mask_token = None
    if not norm:
        tower.layernorm = nn.Identity()
    return tower


def _require_positions(trained_px: int, patch_px: int, registers: int) -> None:
    if trained_px < patch_px:
        message = f"encoder 'dinov2': trained_px={trained_px} holds no whole patch of patch_px={patch_px}."
        raise ConfigError(message, settings=["trained_px", "patch_px"])
    if registers < 0:
        message = f"encoder 'dinov2': registers={registers} is no number of tokens; write 0 or more."
        raise ConfigError(message, settings=["registers"])


encoders.preset("dinov2_large", of="dinov2", checkpoint="facebook/dinov2-large")
encoders.preset("dinov2_small", of="dinov2", checkpoint="facebook/dinov2-small", dim=384, depth=12, heads=6)
encoders.preset("dinov2_base", of="dinov2", checkpoint="facebook/dinov2-base", dim=768, depth=12, heads=12)
encoders.preset(
    "dinov2_giant", of="dinov2", checkpoint="facebook/dinov2-giant", dim=1536, depth=40, heads=24, swiglu=True
)
encoders.preset("dinov2_reg_small", of="dinov2_small", checkpoint="facebook/dinov2-with-registers-small", registers=4)
encoders.preset("dinov2_reg_base", of="dinov2_base", checkpoint="facebook/dinov2-with-registers-base", registers=4)
encoders.preset("dinov2_reg_large", of="dinov2", checkpoint="facebook/dinov2-with-registers-large", registers=4)
encoders.preset("dinov2_reg_giant", of="dinov2_giant", checkpoint="facebook/dinov2-with-registers-giant", registers=4)
