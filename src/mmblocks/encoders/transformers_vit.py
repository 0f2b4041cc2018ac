"""What the vision transformers of transformers share: sizes, forward pass and weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from einops import rearrange
from torch import Tensor, nn

from mmblocks.encoders import patches, vit
from mmblocks.pretrained import make_model
from mmblocks.shapes import Size

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TransformersViT(nn.Module):
    """Tokens after the blocks that `layer` names, without the prefix tokens, as a grid.

    `layer` counts as transformers' hidden_states; later blocks are not built, and several layers stand side by side in
    the channels. A subclass sets the class attributes and hands its tower to `install_tower`.
    """

    name: str
    """In the registry."""
    example_checkpoint: str
    pixel_mean: patches.Colour
    pixel_std: patches.Colour
    squash: bool
    takes_bytes = True
    tower_name = "vision_model"
    """The attribute that holds the tower: published checkpoints have it in the names of their tensors."""
    patch_conv = "embeddings.patch_embedding"
    final_norm = ""
    """The norm in the tower that follows every layer that is given."""
    checkpoint_prefix = ""
    """It stands before the tower's names in a checkpoint that holds more, where transformers does not know so."""
    states_image_px = True
    """Whether the config of a checkpoint states the size of the view."""

    def __init__(
        self,
        *,
        image_px: int,
        patch_px: int,
        dim: int,
        depth: int,
        heads: int,
        layer: vit.Layer,
        checkpoint: str | None,
        prefix_tokens: int,
        keep_prefix: bool = False,
        **sizes: object,
    ) -> None:
        super().__init__()
        vit.require_vit_sizes(
            self.name, image_px=image_px, patch_px=patch_px, dim=dim, depth=depth, heads=heads, layer=layer
        )
        side = image_px // patch_px
        self.dim = vit.count_channels(dim, layer)
        self.view_px = Size(image_px, image_px)
        self.spatial = not keep_prefix
        self.grid = Size(1, prefix_tokens + side * side) if keep_prefix else Size(side, side)
        self.checkpoint = checkpoint
        self._first_token = 0 if keep_prefix else prefix_tokens
        self._states = vit.list_state_indices(layer, depth)
        self._sizes: dict[str, Any] = {
            **({"image_px": image_px} if self.states_image_px else {}),
            "patch_px": patch_px,
            "dim": dim,
            "depth": depth,
            "heads": heads,
            **sizes,
        }

    def make_tower(self, kind: type[Any], **further: object) -> Any:
        """A tower of these sizes, with as many blocks as are needed. further: entries of its config."""
        settings = {vit.CONFIG_KEYS.get(setting, setting): value for setting, value in self._sizes.items()}
        settings["num_hidden_layers"] = max(self._states)
        return make_model(kind, kind.config_class(**settings, **further))

    def install_tower(self, tower: PreTrainedModel, unused: Sequence[str] = ("post_layernorm",)) -> None:
        """Take the tower in, without its `unused` parts."""
        vit.drop_parts(tower, unused)
        vit.fill_position_ids(tower)
        vit.share_attention(tower)
        patches.enable_byte_pixels(tower, self.patch_conv, self.pixel_mean, self.pixel_std)
        self.add_module(self.tower_name, tower)

    def forward(self, pixels: Tensor) -> Tensor:
        """(views, 3, image_px, image_px), normalised or uint8, to (views, rows, columns, dim)."""
        vit.require_view(self.name, pixels, self.view_px, bytes_too=True)
        tower = getattr(self, self.tower_name)
        norm = getattr(tower, self.final_norm) if self.final_norm else None
        tokens = vit.compute_states(tower, pixels, self._states, norm)
        return rearrange(tokens[:, self._first_token :], "v (h w) d -> v h w d", h=self.grid.height)

    def load_pretrained(self) -> None:
        """Read the weights of `checkpoint`; its sizes must be the settings'."""
        if self.checkpoint is None:
            raise vit.make_checkpoint_error(self.name, self.example_checkpoint)
        tower = getattr(self, self.tower_name)
        vit.fill_from_transformers(self.name, tower, self.checkpoint, self._sizes, self.checkpoint_prefix)
