from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Tensor, nn

from mmblocks.compat import suppress_warning_errors
from mmblocks.components import encoders
from mmblocks.encoders import patches, vit
from mmblocks.errors import ConfigError
from mmblocks.pretrained import make_model, read_config, read_preprocessing
from mmblocks.settings import MAXIMUM, format_value, is_of_type
from mmblocks.shapes import Size

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

SIZES = {  # a config's name -> ours, for sizes that are above 0 in any tower
    "image_size": "image_px",
    "patch_size": "patch_px",
    "hidden_size": "dim",
    "hidden_sizes": "dim",
    "embed_dim": "dim",
    "num_hidden_layers": "depth",
    "depths": "depth",
    "num_attention_heads": "heads",
    "num_heads": "heads",
    "intermediate_size": "mlp_dim",
    "num_channels": "channels",
}
MOST_OTHERS = 65_536
"""The largest whole number of a config under any other name."""


@encoders.register(
    "hf_vision",
    source="https://github.com/huggingface/transformers",
    tiny={
        "family": "vit",
        "sizes": {
            "image_size": 32,
            "patch_size": 16,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
        },
        "image_px": 32,
        "grid": [2, 2],
        "prefix_tokens": 1,
        "pixel_mean": [0.5, 0.5, 0.5],
        "pixel_std": [0.5, 0.5, 0.5],
    },
    verified_against="transformers AutoModel: ViT, DINOv3 ConvNeXt, Swin, MLCD, ResNet; FastVLM's tower",
)
class HFVision(nn.Module):
    """Any vision tower that transformers' AutoModel builds; the settings describe it, and a trial view checks them.

    The tower is that of `family` (a model_type such as "vit" or "mlcd_vision_model") with `sizes` (values by their names
    in config.json), or that of the config.json of `checkpoint`; of a model with a text tower it is the vision tower. A
    model that is to be saved and carried elsewhere needs `family` and `sizes`, or a hub name. Weights may also be those of
    the tower within a vision-language model of transformers (`checkpoint` with `family` and `sizes`).

    `grid` (rows, columns) and `prefix_tokens` (class token and registers in front of the patches, dropped) describe the
    tower's output for a view of `image_px`; a tower with another number of tokens is refused with both numbers. Mean and
    std are settings too, and are compared with preprocessor_config.json when weights are read. `dim` is measured.

    `layer=None` is the model's last_hidden_state; otherwise `layer` counts hidden_states as they are, before any final
    norm, and several layers stand side by side in the channels. All blocks run whatever `layer` is: encoders written for
    one family (siglip, clip, dinov2, dinov3) skip the later ones. Poolers and heads are dropped; batch normalisation
    keeps its statistics, and no block is skipped at random (drop_path_rate) unless `sizes` say so.

    Tensor names are transformers' under `tower.`.
    """

    spatial = True

    def __init__(
        self,
        image_px: int,
        grid: Size,
        prefix_tokens: int,
        pixel_mean: tuple[float, float, float],
        pixel_std: tuple[float, float, float],
        family: str | None = None,
        sizes: dict[str, Any] | None = None,
        layer: vit.Layer | None = None,
        squash: bool = True,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        self._sizes = dict(sizes or {})
        config = _read_tower_config(family, self._sizes, checkpoint)
        layer = layer if layer is None or isinstance(layer, int) else tuple(layer)
        key = config.to_json_string(use_diff=False)
        self._request = _TowerRequest(key, config, image_px, Size(*grid), prefix_tokens, layer)
        self.dim, unused, reader = _try_tower(self._request)
        self.view_px = Size(image_px, image_px)
        self.grid = self._request.grid
        self.pixel_mean = _to_floats(pixel_mean)
        self.pixel_std = _to_floats(pixel_std)
        self.squash = squash
        self.checkpoint = checkpoint
        self.tower = _build_tower(self._request.config)
        vit.drop_parts(self.tower, unused)
        self.takes_bytes = bool(reader)
        if reader:
            patches.enable_byte_pixels(self.tower, reader, self.pixel_mean, self.pixel_std)
        self.register_load_state_dict_post_hook(HFVision.refill_buffers)

    def forward(self, pixels: Tensor) -> Tensor:
        """(views, 3, image_px, image_px), normalised or, with `takes_bytes`, uint8, to (views, rows, columns, dim)."""
        vit.require_view("hf_vision", pixels, self.view_px, bytes_too=self.takes_bytes)
        pixels = patches.to_byte_pixels(pixels).to(next(self.tower.parameters()).dtype)
        return self._request.to_grid(self._request.compute_output(self.tower, pixels))

    def train(self, mode: bool = True) -> HFVision:
        super().train(mode)
        vit.freeze_batch_norm(self.tower)
        return self

    def load_pretrained(self) -> None:
        """Read the weights of `checkpoint`; its sizes, mean and std must be the settings'."""
        if self.checkpoint is None:
            raise vit.make_checkpoint_error("hf_vision", "google/vit-base-patch16-224")
        stated = read_preprocessing(self.checkpoint)
        wrong = [
            f"{setting}={list(here)}, but {key} is {stated[key]}"
            for setting, key, here in (
                ("pixel_mean", "image_mean", self.pixel_mean),
                ("pixel_std", "image_std", self.pixel_std),
            )
            if stated.get(key) is not None
            and not torch.allclose(torch.tensor(stated[key]).float(), torch.tensor(here), atol=1e-4)
        ]
        if wrong:
            raise ConfigError(
                f"encoder 'hf_vision': the settings disagree with {self.checkpoint}/preprocessor_config.json; "
                "take its values.\n  " + "\n  ".join(wrong)
            )
        vit.fill_from_transformers("hf_vision", self.tower, self.checkpoint, self._sizes)

    def refill_buffers(self, _: object = None) -> None:
        """Make buffers that no checkpoint holds, where they are still on meta."""
        vit.refill_buffers(self.tower, next(self.parameters()).device, lambda: _build_tower(self._request.config))


@dataclass(frozen=True, slots=True)
class _TowerRequest:
    """The settings of a tower. `key` is its config as text, by which requests are compared."""

    key: str
    config: PreTrainedConfig = field(compare=False)
    image_px: int
    grid: Size
    prefix_tokens: int
    layer: vit.Layer | None

    def compute_output(self, tower: Callable[..., Any], pixels: Tensor) -> Tensor:
        """The tower's features: (views, tokens, dim), or (views, dim, rows, columns)."""
        if self.layer is None:
            return tower(pixel_values=pixels).last_hidden_state
        hidden = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
        if fault := vit.find_layer_fault(self.layer, len(hidden) - 1):
            raise ConfigError(f"encoder 'hf_vision': {fault}.")
        chosen = [hidden[i] for i in vit.list_state_indices(self.layer, len(hidden) - 1)]
        if len({state.shape for state in chosen}) > 1:
            shapes = ", ".join(str(tuple(state.shape[1:])) for state in chosen)
            raise ConfigError(
                f"encoder 'hf_vision': layer={self.layer} has states of several shapes: {shapes}.", settings=["layer"]
            )
        return torch.cat(chosen, dim=1 if chosen[0].ndim == 4 else -1)

    def to_grid(self, features: Tensor) -> Tensor:
        if features.ndim == 4:
            return rearrange(features, "v d h w -> v h w d")
        return rearrange(features[:, self.prefix_tokens :], "v (h w) d -> v h w d", h=self.grid.height)

    def find_contradiction(self, raw: Tensor) -> str:
        """The tower's output where it differs from the settings; empty where it does not."""
        if raw.ndim not in (3, 4):
            return f"an output of shape {tuple(raw.shape)}, which is no grid"
        if raw.ndim == 4:
            rows, columns = raw.shape[2:]
            as_declared = (rows, columns) == self.grid and not self.prefix_tokens
            return "" if as_declared else f"a grid of {(rows, columns)} without prefix tokens"
        possible = self.prefix_tokens >= 0 and min(self.grid) > 0
        if possible and raw.shape[1] == self.prefix_tokens + self.grid.area:
            return ""
        return f"{raw.shape[1]} tokens, not {self.prefix_tokens} + {self.grid.height} x {self.grid.width}"


@lru_cache(maxsize=64)
@suppress_warning_errors()
def _try_tower(request: _TowerRequest) -> tuple[int, tuple[str, ...], str]:
    """Run one view through a tower on meta.

    Returns the channels of its features, the parts that do not affect them, and the patch convolution that alone reads
    pixels, if there is one.
    """
    with torch.device("meta"), torch.enable_grad():
        blueprint = _build_tower(request.config)
        what, side = type(blueprint).__name__, request.image_px
        try:
            with patches.PixelReadTracker(blueprint) as readers:
                raw = request.compute_output(blueprint, torch.empty(1, 3, side, side).as_subclass(patches.BytePixels))
        except ConfigError:
            raise
        except Exception as cause:  # a tower may raise anything for a view of a size that it cannot take
            raise ConfigError(
                f"encoder 'hf_vision': {what} cannot take image_px={side}: {type(cause).__name__}: {cause}",
                settings=["image_px"],
            ) from cause
        if output := request.find_contradiction(raw):
            raise ConfigError(
                f"encoder 'hf_vision': grid={tuple(request.grid)} and prefix_tokens={request.prefix_tokens} are declared, "
                f"but {what} gives {output} for image_px={side}.",
                settings=["grid", "prefix_tokens", "image_px"],
            )
        features = request.to_grid(raw)
        return features.shape[-1], tuple(vit.find_unused_parts(blueprint, features)), readers.sole_reader


def _read_tower_config(family: str | None, sizes: dict[str, Any], checkpoint: str | None) -> PreTrainedConfig:
    """The config of a vision tower; of a model with a text tower, that of its vision tower.

    No block is skipped at random, unless `sizes` say so.
    """
    if family is not None:
        config = _make_tower_config(family, sizes)
    elif checkpoint is None or sizes:
        raise ConfigError(
            f"encoder 'hf_vision': family=None with checkpoint={checkpoint!r} and sizes={sizes}; write a checkpoint "
            "alone, whose config.json has both, or family (its model_type) and sizes.",
            settings=["checkpoint", "sizes"],
        )
    else:
        config = read_config(checkpoint)
    config = getattr(config, "vision_config", config)
    if hasattr(config, "drop_path_rate") and "drop_path_rate" not in sizes:
        config.drop_path_rate = 0.0
    return config


def _make_tower_config(family: str, sizes: dict[str, Any]) -> PreTrainedConfig:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    if faults := [fault for name, value in sizes.items() for fault in _find_size_faults(name, value)]:
        raise ConfigError(
            f"encoder 'hf_vision': family={family!r} with sizes={format_value(sizes)}: {'; '.join(faults)}.",
            settings=["family", "sizes"],
        )
    try:
        default = AutoConfig.for_model(family)
        unknown = [name for name in sizes if not hasattr(default, name)]
        if unknown:
            raise ConfigError(
                f"encoder 'hf_vision': sizes has {unknown}, which family={family!r} does not know.", settings=["family"]
            )
        return AutoConfig.for_model(family, **sizes)
    except (ValueError, TypeError, StrictDataclassError) as cause:
        if isinstance(cause, ConfigError):
            raise
        raise ConfigError(
            f"encoder 'hf_vision': family={family!r} with sizes={sizes}: {cause}", settings=["family", "sizes"]
        ) from cause


def _find_size_faults(name: str, value: object) -> Iterator[str]:
    """Why a value of a config is no size of a tower; transformers would build layers until memory runs out."""
    ours = SIZES.get(name)
    most = MAXIMUM.get(ours or "", MOST_OTHERS)
    entries: list[Any] = [*value] if isinstance(value, list | tuple) and value else [value]
    for one in entries:
        whole = is_of_type(int, one)
        if ours is not None and not (whole and one > 0):
            yield f"{name}={format_value(one)} in sizes is not a whole number above 0"
        elif whole and abs(one) > most:
            yield f"{name}={format_value(one)} in sizes is too large; write {most} or less"
        elif isinstance(one, float) and not math.isfinite(one):
            yield f"{name}={one} in sizes is no number to compute with; write a finite number"


def _build_tower(config: PreTrainedConfig) -> PreTrainedModel:
    from transformers import AutoModel

    try:
        tower = make_model(AutoModel, deepcopy(config), dtype=torch.float32)
    except Exception as cause:  # a family may raise anything for a config that it cannot build
        raise ConfigError(
            f"encoder 'hf_vision': transformers' AutoModel builds no vision tower of {config.model_type!r}"
            f"{f' ({config.name_or_path})' if config.name_or_path else ''}: {type(cause).__name__}: {cause}"
        ) from cause
    vit.share_attention(tower)
    return tower


def _to_floats(values: tuple[float, float, float]) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)


encoders.preset(
    "mlcd_bigg_448",
    of="hf_vision",
    checkpoint="DeepGlint-AI/mlcd-vit-bigG-patch14-448",
    family="mlcd_vision_model",
    sizes={"image_size": 448},
    image_px=448,
    grid=Size(32, 32),
    prefix_tokens=1,
    pixel_mean=(0.48145466, 0.4578275, 0.40821073),
    pixel_std=(0.26862954, 0.26130258, 0.27577711),
    layer=-2,
    squash=False,
)
encoders.preset(
    "mlcd_bigg_336",
    of="mlcd_bigg_448",
    checkpoint="DeepGlint-AI/mlcd-vit-bigG-patch14-336",
    sizes={"image_size": 336},
    image_px=336,
    grid=Size(24, 24),
)
encoders.preset(
    "dinov3_convnext_tiny",
    of="hf_vision",
    checkpoint="facebook/dinov3-convnext-tiny-pretrain-lvd1689m",
    family="dinov3_convnext",
    sizes={"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 9, 3]},
    image_px=224,
    grid=Size(7, 7),
    prefix_tokens=1,
    pixel_mean=(0.485, 0.456, 0.406),
    pixel_std=(0.229, 0.224, 0.225),
)
encoders.preset(
    "dinov3_convnext_small",
    of="dinov3_convnext_tiny",
    checkpoint="facebook/dinov3-convnext-small-pretrain-lvd1689m",
    sizes={"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 27, 3]},
)
encoders.preset(
    "dinov3_convnext_base",
    of="dinov3_convnext_tiny",
    checkpoint="facebook/dinov3-convnext-base-pretrain-lvd1689m",
    sizes={"hidden_sizes": [128, 256, 512, 1024], "depths": [3, 3, 27, 3]},
)
encoders.preset(
    "dinov3_convnext_large",
    of="dinov3_convnext_tiny",
    checkpoint="facebook/dinov3-convnext-large-pretrain-lvd1689m",
    sizes={"hidden_sizes": [192, 384, 768, 1536], "depths": [3, 3, 27, 3]},
)
