"""The files of a feature cache: written whole, found by what is on them, read with their checksum."""

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
from mmblocks.data.media.files import name_of
from mmblocks.data.media.identity import digest, identity
from mmblocks.errors import DataError
from mmblocks.image_reading import ImageReading
from mmblocks.model.modes import evaluating
from mmblocks.model.onevision import OneVision
from mmblocks.shapes import RoutedPlan, VisualPlan

FORMAT = 1


@dataclass(frozen=True, slots=True)
class FeatureCache:
    """The features of one encoder on disk. It holds no weights, so data workers can carry it.

    folder: where those of this encoder are. grid: (rows, columns, dim) of a view's features. images: how images are read.
    """

    folder: Path
    grid: tuple[int, int, int]
    dtype: torch.dtype
    images: ImageReading

    @classmethod
    def of(cls, root: Path | str, model: OneVision, precision: str = "float32") -> FeatureCache:
        """The cache of a model's encoder below `root`: another encoder, other weights or precision, another folder."""
        black = torch.zeros(1, 3, *model.encoder.view_px, dtype=torch.uint8)
        features = encode(model, black, precision)
        _, rows, columns, dim = features.shape
        return cls(Path(root) / _fingerprint(model, precision), (rows, columns, dim), features.dtype, model.images)

    def read(self, visuals: Sequence[Visual], plans: Sequence[RoutedPlan]) -> Tensor:
        """(pictures, rows, columns, dim): those of all pictures of the plans, in order. Raises `DataError` for missing or
        damaged ones.
        """
        none = torch.empty(0, *self.grid, dtype=self.dtype)
        pairs = zip(visuals, plans, strict=True)
        return torch.cat([none, *(self._read(visual, routed.plan) for visual, routed in pairs)])

    def _read(self, visual: Visual, plan: VisualPlan) -> Tensor:
        features = read_file(self.place(visual, plan), name_of(visual.source, visual.kind))
        assert features.shape == (len(plan.pictures), *self.grid), "the name of the file holds the plan"
        return features

    def place(self, visual: Visual, plan: VisualPlan) -> Path:
        """The file of a visual under a plan. A picture that has changed on disk, or is read otherwise, has another one."""
        name = digest(identity(visual), repr(plan.pictures), repr(self.images))
        return self.folder / name[:2] / f"{name}.safetensors"

    def holds(self, visual: Visual, plan: VisualPlan) -> bool:
        """Whether there is a whole file for a visual; a file that is cut counts as none."""
        try:
            with safe_open(self.place(visual, plan), "pt") as file:
                return "features" in file.keys()  # noqa: SIM118
        except (FileNotFoundError, SafetensorError):
            return False


def read_file(path: Path, name: str) -> Tensor:
    """Features from their file. `name` is what errors call the visual."""
    try:
        with safe_open(path, "pt") as file:
            features, written = file.get_tensor("features"), (file.metadata() or {}).get("checksum")
    except FileNotFoundError as cause:
        raise DataError(
            f"{name}: the cache holds no features of it ({path}); it could not be read when the cache was filled, or has "
            "changed since. Start the run again."
        ) from cause
    except SafetensorError as cause:
        raise DataError(f"{name}: {path} is cut or damaged ({cause}); delete it and start the run again.") from cause
    if written != _checksum(features):
        raise DataError(f"{name}: {path} is damaged, its checksum differs; delete it and start the run again.")
    return features


def write_file(path: Path, features: Tensor) -> None:
    """Put features into their file, whole or not at all; several processes may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}-{os.getpid()}")
    save_file({"features": features}, fresh, metadata={"checksum": _checksum(features)})
    fresh.replace(path)


def _checksum(features: Tensor) -> str:
    raw: Any = features.contiguous().flatten().view(torch.uint8).numpy()
    return str(zlib.crc32(raw))


@torch.no_grad()
def encode(model: OneVision, pixels: Tensor, precision: str) -> Tensor:
    """uint8 (views, 3, h, w) to the features that the model computes of them, on the CPU."""
    pixels = pixels.to(model.device)
    with evaluating(model.encoder), torch.autocast(pixels.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        return model.encode(pixels).cpu()


# What makes features what they are -----------------------------------------------------------------------------------


def _fingerprint(model: OneVision, precision: str) -> str:
    """An encoder's settings, weights and how it is run, as a folder's name."""
    encoder = model.encoder
    settings = _plain(model.spec.plain()["encoder"])
    said = [settings, precision, tuple(encoder.view_px), encoder.pixel_mean, encoder.pixel_std, FORMAT]
    weights = [
        part
        for name, tensor in sorted(encoder.state_dict().items())
        for part in (f"{name} {tensor.dtype} {tuple(tensor.shape)}", _bytes(tensor))
    ]
    return f"{settings['name']}-{digest(json.dumps(said, sort_keys=True), *weights)}"


def _plain(value: Any) -> Any:
    """Settings without where the weights came from: they count by what they are."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k != "checkpoint"}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
