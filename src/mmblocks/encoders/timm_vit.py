import difflib
import inspect
import os
from pathlib import Path
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from mmblocks.components import encoders
from mmblocks.encoders import patches, vit
from mmblocks.errors import CheckpointError, ConfigError
from mmblocks.shapes import Size
from mmblocks.versions import describe_untested_version


class TimmTrunk(Protocol):
    """What this reads of a vision transformer of timm."""

    blocks: nn.Sequential
    patch_embed: nn.Module
    pretrained_cfg: dict[str, Any]


@encoders.register(
    "timm_vit",
    source="https://github.com/huggingface/pytorch-image-models",
    tiny={"model_name": "test_vit", "image_px": 32, "layer": 2},
    verified_against="timm forward_features and forward_intermediates",
)
class TimmViT(nn.Module):
    """Any vision transformer of timm by its name: patches after the block that `layer` names.

    These may be plain, have rotary positions (EVA-02, PE) or a convolutional stem (ViTamin, R50 hybrids). `layer` counts
    as transformers' hidden_states (-1: last block); several layers stand side by side in the channels, and 0, the state
    before the first block, is not available. With `norm` the model's final norm follows, as in
    timm's forward_features; without it features are the block's raw output, as in LLaVA. Class and register tokens are
    dropped. `image_px=None` is the size the model was published for.

    `checkpoint` names where pretrained weights come from: "pretrained" (timm's weights of that name), a timm tag such
    as "augreg_in21k", or a path with a slash in it to a .safetensors file or to a folder with one. timm fits position
    embeddings of its own weights to `image_px`; those of a local file must fit as they are.

    Size, grid, prefix tokens, mean, std and cropping are those that timm states. Tensor names are
    timm's under `trunk.`.
    """

    spatial = True

    def __init__(
        self,
        model_name: str,
        image_px: int | None = None,
        layer: vit.Layer = -1,
        norm: bool = True,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.model_name = make_full_name("timm_vit", model_name, checkpoint)
        self._fixed: dict[str, Any] = {} if image_px is None else {"img_size": image_px}
        self._norm = norm
        trunk = create_trunk("timm_vit", self.model_name, self._fixed)
        _require_patch_grid(self.model_name, trunk, layer)
        stated = trunk.pretrained_cfg
        self.dim: int = vit.count_channels(trunk.embed_dim, layer)
        self.view_px = Size(*trunk.patch_embed.img_size)
        self.grid = Size(*trunk.patch_embed.grid_size)
        self.pixel_mean: tuple[float, float, float] = tuple(stated["mean"])
        self.pixel_std: tuple[float, float, float] = tuple(stated["std"])
        self.squash: bool = stated.get("crop_mode") == "squash"
        self.trunk = trunk
        from timm.layers.patch_embed import PatchEmbed

        embed = trunk.patch_embed
        # Where one patch convolution reads the pixels, and timm gives them to it as they are.
        self.takes_bytes = type(embed) is PatchEmbed and not embed.dynamic_img_pad and patches.is_patchwise(embed.proj)
        if self.takes_bytes:
            patches.enable_byte_pixels(trunk, "patch_embed.proj", self.pixel_mean, self.pixel_std)
        blocks = [i - 1 for i in vit.list_state_indices(layer, len(trunk.blocks))]
        self._blocks = sorted(set(blocks))
        self._order = [self._blocks.index(block) for block in blocks]
        trunk.prune_intermediate_layers(self._blocks, prune_norm=not norm, prune_head=True)
        self.register_load_state_dict_post_hook(TimmViT.refill_buffers)

    def forward(self, pixels: Tensor) -> Tensor:
        """(views, 3, *view_px), normalised or, with `takes_bytes`, uint8, to (views, rows, columns, dim)."""
        vit.require_view("timm_vit", pixels, self.view_px, bytes_too=self.takes_bytes)
        states = self.trunk.forward_intermediates(
            patches.to_byte_pixels(pixels).to(next(self.trunk.parameters()).dtype),
            indices=self._blocks,
            norm=self._norm,
            output_fmt="NLC",
            intermediates_only=True,
        )
        features = torch.cat([states[i] for i in self._order], dim=-1)
        return rearrange(features, "v (h w) d -> v h w d", h=self.grid.height)

    def load_pretrained(self) -> None:
        """Read the weights of `checkpoint`; all that the blocks in use need must be there."""
        if self.checkpoint is None:
            raise vit.make_checkpoint_error("timm_vit", "pretrained")
        weights = read_weights("timm_vit", self.model_name, self._fixed, self.checkpoint)
        vit.fill_module("timm_vit", self.trunk, weights, self.checkpoint)

    def refill_buffers(self, _: object = None) -> None:
        """Make buffers that no checkpoint holds, where they are still on meta."""
        device = next(self.parameters()).device
        vit.refill_buffers(self.trunk, device, lambda: create_trunk("timm_vit", self.model_name, self._fixed))


# What encoders made of timm's models share --------------------------------------------------------------------------


def make_full_name(encoder: str, model_name: str, checkpoint: str | None) -> str:
    """timm's name of model and weights, model.tag, where `checkpoint` is a tag: mean and std belong to the tag."""
    model, _, tag = model_name.partition(".")
    if checkpoint is None or _is_path(checkpoint) or checkpoint in ("pretrained", tag):
        return model_name
    if tag:
        raise ConfigError(
            f"encoder {encoder!r}: model_name={model_name!r} and checkpoint={checkpoint!r} name two sets of weights; "
            'write the tag once, or checkpoint="pretrained".',
            settings=["model_name", "checkpoint"],
        )
    return f"{model}.{checkpoint}"


def create_trunk(encoder: str, name: str, fixed: dict[str, Any], *, pretrained: bool = False) -> Any:
    """A model of timm that skips no block at random. Raises `ConfigError`, or `CheckpointError` with `pretrained`."""
    import timm
    from timm.layers.drop import DropPath

    if not timm.is_model(name):
        close = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=3)
        hints = [f"Did you mean {', '.join(close)}?" if close else "", describe_untested_version("timm") or ""]
        text = " ".join([f"encoder {encoder!r}: timm {timm.__version__} has no model {name!r}.", *filter(None, hints)])
        raise ConfigError(text)
    try:
        model: Any = timm.create_model(name, pretrained=pretrained, **fixed)
    except (RuntimeError, TypeError, AssertionError) as cause:
        if pretrained:
            raise CheckpointError(f"encoder {encoder!r}: timm cannot load {name!r}: {cause}") from cause
        raise ConfigError(f"encoder {encoder!r}: timm cannot build {name!r} with {fixed}: {cause}") from cause
    for module in model.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    return model


def find_hub_id(model_name: str, checkpoint: str) -> str | None:
    """Where the hub keeps timm's weights of a model; None where timm has them elsewhere or not at all."""
    import timm

    known = timm.get_pretrained_cfg(make_full_name("timm", model_name, checkpoint))
    return getattr(known, "hf_hub_id", None)


def read_weights(encoder: str, name: str, fixed: dict[str, Any], checkpoint: str) -> dict[str, Tensor]:
    """The tensors of a file or folder, or timm's own weights of a model."""
    with vit.wrap_read_errors(encoder, checkpoint):
        if not _is_path(checkpoint):
            return create_trunk(encoder, name, fixed, pretrained=True).state_dict()
        from timm.models import load_state_dict

        path = Path(checkpoint)
        if not path.is_file():
            files = sorted(path.glob("*.safetensors"))
            if len(files) != 1:
                raise CheckpointError(f"encoder {encoder!r}: {path} holds {len(files)} .safetensors files; name one.")
            path = files[0]
        return load_state_dict(str(path), weights_only=True)


def _is_path(checkpoint: str) -> bool:
    """Decided by the text alone, so that a model is the same wherever it is built."""
    return "/" in checkpoint or os.sep in checkpoint or checkpoint.endswith(".safetensors")


# Which models have one grid of patches ------------------------------------------------------------------------------


def _require_patch_grid(name: str, trunk: TimmTrunk, layer: vit.Layer) -> None:
    """Refuse a model whose features are not one grid of patches, with every reason."""
    faults = []
    reductions = sorted({stage["reduction"] for stage in getattr(trunk, "feature_info", [])})
    if len(reductions) != 1:
        faults.append(f"its stages shrink the image by {reductions or 'unknown factors'}, not all by the same")
    if getattr(getattr(trunk, "patch_embed", None), "grid_size", None) is None:
        faults.append("it states no grid of patches (patch_embed.grid_size)")
    intermediates = getattr(trunk, "forward_intermediates", None)
    separable = intermediates is not None and "return_prefix_tokens" in inspect.signature(intermediates).parameters
    if getattr(trunk, "num_prefix_tokens", None) is None or not separable:
        faults.append("it does not separate patch tokens from prefix tokens")
    if not faults:
        depth = len(trunk.blocks)
        fault = vit.find_layer_fault(layer, depth)
        if not fault and 0 in vit.list_state_indices(layer, depth):
            fault = f"layer={layer}: timm gives no state before the first block"
        if fault := fault or _find_view_fault(trunk.patch_embed):
            faults.append(fault)
    if not {"mean", "std"} <= set(trunk.pretrained_cfg or {}):
        faults.append("timm states no pixel mean and std for it")
    if faults:
        raise ConfigError(f"encoder 'timm_vit': {name!r} ({type(trunk).__name__}) cannot be used: {'; '.join(faults)}.")


def _find_view_fault(embed: object) -> str:
    """Why a patch embedding refuses views of its own size; empty where it takes them."""
    from timm.layers.patch_embed import PatchEmbed

    if not isinstance(embed, PatchEmbed) or embed.strict_img_size or embed.dynamic_img_pad:
        return ""  # a strict one skips what no whole patch covers
    sides: Any = (embed.img_size, embed.patch_size)
    view, patch = (Size(*side) for side in sides)
    if view.height % patch.height == 0 and view.width % patch.width == 0:
        return ""
    return f"image_px={view.height} is no multiple of its patches of {patch.height} pixels"


encoders.preset(
    "eva02_clip_l_336",
    of="timm_vit",
    model_name="eva02_large_patch14_clip_336.merged2b",
    checkpoint="pretrained",
    layer=-2,
    norm=False,
)
encoders.preset("eva02_clip_l_224", of="eva02_clip_l_336", model_name="eva02_large_patch14_clip_224.merged2b")
encoders.preset(
    "openclip_vit_l_224",
    of="timm_vit",
    model_name="vit_large_patch14_clip_224.laion2b",
    checkpoint="pretrained",
    layer=-2,
    norm=False,
)
encoders.preset("openclip_vit_h_224", of="openclip_vit_l_224", model_name="vit_huge_patch14_clip_224.laion2b")
encoders.preset("openclip_vit_bigg_224", of="openclip_vit_l_224", model_name="vit_gigantic_patch14_clip_224.laion2b")
encoders.preset("dfn_vit_h_378", of="openclip_vit_l_224", model_name="vit_huge_patch14_clip_quickgelu_378.dfn5b")
encoders.preset("vitamin_l_336", of="openclip_vit_l_224", model_name="vitamin_large_336.datacomp1b_clip")
encoders.preset("pe_core_l_336", of="openclip_vit_l_224", model_name="vit_pe_core_large_patch14_336.fb")
