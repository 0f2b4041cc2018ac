from __future__ import annotations

import difflib
import inspect
import os
from pathlib import Path
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from mmblocks.components import encoders
from mmblocks.encoders import vit
from mmblocks.errors import CheckpointError, ConfigError
from mmblocks.shapes import Size


@encoders.register(
    "timm_vit",
    source="https://github.com/huggingface/pytorch-image-models",
    tiny={"model_name": "test_vit", "image_px": 32, "layer": 2},
)
class TimmViT(nn.Module):
    """Any plain vision transformer of timm by its name: patches after the block that `layer` names.

    `layer` counts as transformers' hidden_states (-1: last block). With `norm` the model's final norm follows, as in
    timm's forward_features; without it features are the block's raw output, as in LLaVA. Class and register tokens are
    dropped. `image_px=None` is the size the model was published for.

    `checkpoint` names where pretrained weights come from: "pretrained" (timm's weights of that name), a timm tag such
    as "augreg_in21k", or a path with a slash in it to a .safetensors file or to a folder with one. timm fits position
    embeddings of its own weights to `image_px`; those of a local file must fit as they are.

    Size, grid, prefix tokens, mean, std and cropping are timm's own statements about the model. Tensor names are
    timm's under `trunk.`.
    """

    spatial = True

    def __init__(
        self,
        model_name: str,
        image_px: int | None = None,
        layer: int = -1,
        norm: bool = True,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.model_name = model_name if checkpoint is None or _is_path(checkpoint) else _tagged(model_name, checkpoint)
        self._fixed: dict[str, Any] = {} if image_px is None else {"img_size": image_px}
        self._norm = norm
        trunk = _create(self.model_name, self._fixed, pretrained=False)
        _require_patch_grid(self.model_name, trunk, layer)
        stated = trunk.pretrained_cfg
        self.dim: int = trunk.embed_dim
        self.view_px = Size(*trunk.patch_embed.img_size)
        self.grid = Size(*trunk.patch_embed.grid_size)
        self.pixel_mean: tuple[float, float, float] = tuple(stated["mean"])
        self.pixel_std: tuple[float, float, float] = tuple(stated["std"])
        self.squash: bool = stated.get("crop_mode") == "squash"
        self.trunk = trunk
        last = vit.blocks_for(layer, len(trunk.blocks)) - 1
        trunk.prune_intermediate_layers([last], prune_norm=not norm, prune_head=True)

    def forward(self, pixels: Tensor) -> Tensor:
        """(views, 3, *view_px) to (views, rows, columns, dim)."""
        vit.require_view("timm_vit", pixels, self.view_px)
        (features,) = self.trunk.forward_intermediates(
            pixels.to(next(self.trunk.parameters()).dtype),
            indices=1,
            norm=self._norm,
            output_fmt="NLC",
            intermediates_only=True,
        )
        return rearrange(features, "v (h w) d -> v h w d", h=self.grid.height)

    def load_pretrained(self) -> None:
        """Read the weights of `checkpoint`; all that the blocks in use need must be there."""
        if self.checkpoint is None:
            raise vit.no_checkpoint("timm_vit", "pretrained")
        with vit.readable("timm_vit", self.checkpoint):
            if _is_path(self.checkpoint):
                from timm.models import load_state_dict

                found = load_state_dict(str(_weights_file(Path(self.checkpoint))))
            else:
                found = _create(self.model_name, self._fixed, pretrained=True).state_dict()
        vit.fill("timm_vit", self.trunk, found, self.checkpoint)


def _is_path(checkpoint: str) -> bool:
    """Decided by the text alone, so that a model is the same wherever it is built."""
    return "/" in checkpoint or os.sep in checkpoint or checkpoint.endswith(".safetensors")


def _tagged(model_name: str, checkpoint: str) -> str:
    """timm's full name, model.tag: mean and std belong to the tag."""
    model, _, tag = model_name.partition(".")
    if checkpoint == "pretrained" or checkpoint == tag:
        return model_name
    if tag:
        raise ConfigError(
            f"encoder 'timm_vit': model_name={model_name!r} and checkpoint={checkpoint!r} name two sets of weights; "
            'write the tag once, or checkpoint="pretrained".'
        )
    return f"{model}.{checkpoint}"


def _create(name: str, fixed: dict[str, Any], *, pretrained: bool) -> Any:
    import timm

    if not timm.is_model(name):
        close = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=3)
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise ConfigError(f"encoder 'timm_vit': timm has no model {name!r}.{hint}")
    try:
        return timm.create_model(name, pretrained=pretrained, **fixed)
    except (RuntimeError, TypeError, AssertionError) as cause:
        if pretrained:
            raise CheckpointError(f"encoder 'timm_vit': timm cannot load {name!r}: {cause}") from cause
        raise ConfigError(f"encoder 'timm_vit': timm cannot build {name!r} with {fixed}: {cause}") from cause


def _require_patch_grid(name: str, trunk: Any, layer: int) -> None:
    """Refuse a model whose features are not one grid of patches, with everything that speaks against it."""
    faults = []
    reductions = sorted({stage["reduction"] for stage in getattr(trunk, "feature_info", [])})
    if len(reductions) != 1:
        faults.append(f"its stages shrink the picture by {reductions or 'unknown factors'}, not all by the same")
    if getattr(getattr(trunk, "patch_embed", None), "grid_size", None) is None:
        faults.append("it states no grid of patches (patch_embed.grid_size)")
    if getattr(trunk, "num_prefix_tokens", None) is None or not _tells_prefix_apart(trunk):
        faults.append("it does not tell patch tokens from prefix tokens")
    if not faults and (wrong := vit.layer_fault(layer, len(trunk.blocks))):
        faults.append(wrong)
    if not {"mean", "std"} <= set(trunk.pretrained_cfg or {}):
        faults.append("timm states no pixel mean and std for it")
    if faults:
        raise ConfigError(f"encoder 'timm_vit': {name!r} ({type(trunk).__name__}) cannot be used: {'; '.join(faults)}.")


def _tells_prefix_apart(trunk: Any) -> bool:
    intermediates = getattr(trunk, "forward_intermediates", None)
    return intermediates is not None and "return_prefix_tokens" in inspect.signature(intermediates).parameters


def _weights_file(path: Path) -> Path:
    if path.is_file():
        return path
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise CheckpointError(f"encoder 'timm_vit': {path} holds {len(files)} .safetensors files; name one.")
    return files[0]
