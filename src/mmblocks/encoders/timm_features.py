from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from mmblocks.compat import suppress_warning_errors
from mmblocks.components import encoders
from mmblocks.encoders import timm_vit, vit
from mmblocks.errors import ConfigError
from mmblocks.shapes import Size


@encoders.register(
    "timm_features",
    source="https://github.com/huggingface/pytorch-image-models",
    tiny={"model_name": "test_convnext", "image_px": 64},
    verified_against="timm forward_features and features_only: ConvNeXt, Swin, ResNet",
)
class TimmFeatures(nn.Module):
    """Any model of timm with stages (ConvNeXt, Swin, ResNet, MambaOut ...): the feature map of one stage.

    `stage` counts timm's feature_info from 0, or from the end (-1: last stage); later stages are not built. With `norm`
    the last stage is followed by the model's final norm, if it has one, as in timm's forward_features.
    `image_px=None` is the size the model was published for; convolutional models take any other.

    Grid and width are measured on a trial view; mean, std and cropping are those that timm states. Batch normalisation
    keeps its statistics. `checkpoint` is as in `timm_vit`, and tensor names are timm's under `trunk.`.
    """

    spatial = True

    def __init__(
        self,
        model_name: str,
        image_px: int | None = None,
        stage: int = -1,
        norm: bool = True,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.model_name = timm_vit.make_full_name("timm_features", model_name, checkpoint)
        self._request, self.grid, self.dim, unused = _try_trunk(self.model_name, image_px, stage, norm)
        self.view_px = self._request.view_px
        self.pixel_mean = self._request.pixel_mean
        self.pixel_std = self._request.pixel_std
        self.squash = self._request.squash
        self.trunk = self._request.build_trunk()
        vit.drop_parts(self.trunk, unused)
        self.register_load_state_dict_post_hook(TimmFeatures.refill_buffers)

    def forward(self, pixels: Tensor) -> Tensor:
        """(views, 3, *view_px) to (views, rows, columns, dim)."""
        vit.require_view("timm_features", pixels, self.view_px)
        return self._request.compute_features(self.trunk, pixels.to(next(self.trunk.parameters()).dtype))

    def train(self, mode: bool = True) -> TimmFeatures:
        super().train(mode)
        vit.freeze_batch_norm(self.trunk)
        return self

    def load_pretrained(self) -> None:
        """Read the weights of `checkpoint`; all that the stages in use need must be there."""
        if self.checkpoint is None:
            raise vit.make_checkpoint_error("timm_features", "pretrained")
        weights = timm_vit.read_weights("timm_features", self.model_name, self._request.fixed, self.checkpoint)
        vit.fill_module("timm_features", self.trunk, weights, self.checkpoint)

    def refill_buffers(self, _: object = None) -> None:
        """Make buffers that no checkpoint holds, where they are still on meta."""
        vit.refill_buffers(self.trunk, next(self.parameters()).device, self._request.build_trunk)


@dataclass(frozen=True, slots=True)
class _TrunkRequest:
    """The settings of a model of timm, and what timm states about its images."""

    model_name: str
    fixed: dict[str, Any]
    stage: int
    norm: bool
    view_px: Size
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    squash: bool

    def build_trunk(self, whole: Any = None) -> Any:
        """The model up to the stage that is used; `whole`, where it is built already, is cut in place."""
        trunk = timm_vit.create_trunk("timm_features", self.model_name, self.fixed) if whole is None else whole
        trunk.prune_intermediate_layers([self.stage], prune_norm=not self.norm, prune_head=True)
        return trunk

    def compute_features(self, trunk: nn.Module, pixels: Tensor) -> Tensor:
        """(views, 3, height, width) to (views, rows, columns, dim)."""
        (features,) = trunk.forward_intermediates(  # type: ignore[operator]
            pixels, indices=[self.stage], norm=self.norm, output_fmt="NCHW", intermediates_only=True
        )
        return rearrange(features, "v d h w -> v h w d")


@lru_cache(maxsize=64)
@suppress_warning_errors()
def _try_trunk(
    model_name: str, image_px: int | None, stage: int, norm: bool
) -> tuple[_TrunkRequest, Size, int, tuple[str, ...]]:
    """Grid and width of a model's feature map, measured on one view on meta, and the parts that do not affect it."""
    with torch.device("meta"), torch.enable_grad():
        trunk = timm_vit.create_trunk("timm_features", model_name, {})
        request = _make_request(trunk, model_name, image_px, stage, norm)
        blueprint = request.build_trunk(None if request.fixed else trunk)
        blueprint.eval()  # in training, batch normalisation refuses one view that gives one cell
        try:
            features = request.compute_features(blueprint, torch.empty(1, 3, *request.view_px))
        except Exception as cause:  # a model may raise anything for a view of a size that it cannot take
            raise ConfigError(
                f"encoder 'timm_features': {model_name!r} ({type(blueprint).__name__}) gives no feature map for a "
                f"view of image_px={request.view_px.height}: {type(cause).__name__}: {cause}",
                settings=["image_px"],
            ) from cause
        unused = tuple(vit.find_unused_parts(blueprint, features))
    return request, Size(*features.shape[1:3]), features.shape[3], unused


def _make_request(trunk: Any, model_name: str, image_px: int | None, stage: int, norm: bool) -> _TrunkRequest:
    """A request from the settings and timm's own statements about a model."""
    stated = dict(trunk.pretrained_cfg or {})
    faults = [f"timm states no {fact} for it" for fact in ("mean", "std", "input_size") if not stated.get(fact)]
    if not hasattr(trunk, "forward_intermediates") or not hasattr(trunk, "prune_intermediate_layers"):
        faults.append("timm gives no feature maps of it (forward_intermediates)")
    if faults:
        raise ConfigError(
            f"encoder 'timm_features': {model_name!r} ({type(trunk).__name__}) cannot be used: {'; '.join(faults)}."
        )
    stages = len(trunk.feature_info)
    if not -stages <= stage < stages:
        raise ConfigError(
            f"encoder 'timm_features': stage={stage} names no stage; {model_name!r} has {stages}: "
            f"choose 0 to {stages - 1} or {-stages} to -1.",
            settings=["stage"],
        )
    return _TrunkRequest(
        model_name=model_name,
        fixed={"img_size": image_px} if image_px and stated.get("fixed_input_size") else {},
        stage=stage % stages,
        norm=norm,
        view_px=Size(*((image_px, image_px) if image_px else stated["input_size"][1:])),
        pixel_mean=tuple(stated["mean"]),
        pixel_std=tuple(stated["std"]),
        squash=stated.get("crop_mode") == "squash",
    )


encoders.preset(
    "openclip_convnext_large_320",
    of="timm_features",
    model_name="convnext_large_mlp.clip_laion2b_ft_soup_320",
    checkpoint="pretrained",
)
encoders.preset(
    "openclip_convnext_xxlarge_256",
    of="timm_features",
    model_name="convnext_xxlarge.clip_laion2b_soup",
    checkpoint="pretrained",
)
