"""The files of a feature cache: written atomically, named by the content of the visual, read with their checksum."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmblocks.conversation import Visual
from mmblocks.data.media.files import describe_source
from mmblocks.data.media.identity import identify_visual, make_digest
from mmblocks.errors import DataError
from mmblocks.image_reading import ImageReading
from mmblocks.model.modes import use_evaluation_mode
from mmblocks.model.onevision import OneVision
from mmblocks.shapes import RoutedPlan, VisualPlan

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class FeatureCache:
    """The features of one encoder on disk. It holds no weights, so data workers can use it.

    folder: the files of this encoder. grid: (rows, columns, dim) of a view's features. images: how images are read.
    """

    folder: Path
    grid: tuple[int, int, int]
    dtype: torch.dtype
    images: ImageReading

    @classmethod
    def from_model(cls, root: Path | str, model: OneVision, precision: str = "float32") -> FeatureCache:
        """The cache of a model's encoder, in a folder below `root` named by the encoder's settings, weights and precision."""
        encoder = model.encoder
        features = encode_views(model, torch.zeros(1, 3, *encoder.view_px, dtype=torch.uint8), precision)
        _, rows, columns, dim = features.shape
        settings = _drop_checkpoints(model.spec.to_dict()["encoder"])
        inputs = [settings, precision, tuple(encoder.view_px), encoder.pixel_mean, encoder.pixel_std, FORMAT_VERSION]
        weights: list[str | bytes] = []
        for name, tensor in sorted(encoder.state_dict().items()):
            data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            weights += [f"{name} {tensor.dtype} {tuple(tensor.shape)}", data]
        name = f"{settings['name']}-{make_digest(json.dumps(inputs, sort_keys=True), *weights)}"
        return cls(Path(root) / name, (rows, columns, dim), features.dtype, model.images)

    def read(self, visuals: Sequence[Visual], plans: Sequence[RoutedPlan]) -> Tensor:
        """(unique views, rows, columns, dim): features of all unique views of the plans, in order. Raises `DataError` for missing or
        damaged ones.
        """
        features = [torch.empty(0, *self.grid, dtype=self.dtype)]
        for visual, routed in zip(visuals, plans, strict=True):
            path = self.to_path(visual, routed.plan)
            features.append(read_features_file(path, describe_source(visual.source, visual.kind)))
            assert features[-1].shape == (len(routed.plan.unique_views), *self.grid), "the file's name holds the plan"
        return torch.cat(features)

    def to_path(self, visual: Visual, plan: VisualPlan) -> Path:
        """The file of a visual under a plan. An image that has changed on disk, or is read differently, has another file."""
        name = make_digest(identify_visual(visual), repr(plan.unique_views), repr(self.images))
        return self.folder / name[:2] / f"{name}.safetensors"

    def has_features(self, visual: Visual, plan: VisualPlan) -> bool:
        """Whether there is a complete file for a visual; a truncated one does not count."""
        try:
            with safe_open(self.to_path(visual, plan), "pt") as file:
                return "features" in file.keys()  # noqa: SIM118
        except (FileNotFoundError, SafetensorError):
            return False


def read_features_file(path: Path, name: str) -> Tensor:
    """Features from their file; errors call the visual `name`."""
    try:
        with safe_open(path, "pt") as file:
            features, checksum = file.get_tensor("features"), (file.metadata() or {}).get("checksum")
    except FileNotFoundError as cause:
        raise DataError(
            f"{name}: the cache holds no features of it ({path}); it could not be read when the cache was filled, or has "
            "changed since. Start the run again."
        ) from cause
    except SafetensorError as cause:
        raise DataError(
            f"{name}: {path} is truncated or damaged ({cause}); delete it and start the run again."
        ) from cause
    if checksum != _compute_checksum(features):
        raise DataError(f"{name}: {path} is damaged, its checksum differs; delete it and start the run again.")
    return features


def write_features_file(path: Path, features: Tensor) -> None:
    """Write features into their file atomically; several processes may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}-{os.getpid()}")
    features = features.contiguous()  # a convolution's, channels first, are a view of other strides
    save_file({"features": features}, fresh, metadata={"checksum": _compute_checksum(features)})
    fresh.replace(path)


def _compute_checksum(features: Tensor) -> str:
    raw: Any = features.flatten().view(torch.uint8).numpy()
    return str(zlib.crc32(raw))


@torch.no_grad()
def encode_views(model: OneVision, pixels: Tensor, precision: str) -> Tensor:
    """uint8 (views, 3, h, w) to the encoder's features, on the CPU."""
    pixels = pixels.to(model.device)
    with (
        use_evaluation_mode(model.encoder),
        torch.autocast(pixels.device.type, torch.bfloat16, enabled=precision == "bfloat16"),
    ):
        return model.encode_pixels(pixels).cpu()


def _drop_checkpoints(value: Any) -> Any:
    """Settings without the paths of checkpoints: weights count by their values."""
    if isinstance(value, dict):
        return {k: _drop_checkpoints(v) for k, v in value.items() if k != "checkpoint"}
    return [_drop_checkpoints(v) for v in value] if isinstance(value, list) else value
