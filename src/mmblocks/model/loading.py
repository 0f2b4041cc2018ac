"""One way to find and read a model: a folder of any known layout, or a repository of the Hugging Face hub."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmblocks.errors import CheckpointError, ConfigError
from mmblocks.hub import HubReference, fetch_snapshot
from mmblocks.image_reading import DEFAULT_READING, ImageReading
from mmblocks.model import checkpoint
from mmblocks.model.build import count_parameters
from mmblocks.model.onevision import OneVision
from mmblocks.model.placement import choose_devices, choose_dtype
from mmblocks.model.spec import PARTS, ModelSpec
from mmblocks.pretrained import may_fetch
from mmblocks.registry import split_spec

if TYPE_CHECKING:
    from mmblocks.model.convert.layout import CheckpointLayout
    from mmblocks.model.convert.weights import MatchedTensors
    from mmblocks.model.quantized import Bits

log = logging.getLogger(__name__)

OURS, ADAPTER = "mmblocks", "adapter"
"""The layouts of models that mmblocks has saved, and of adapters that are read over a base model."""


@dataclass(frozen=True, slots=True)
class LocatedModel:
    """A checkpoint on this machine. layout: its name in `mmblocks.model.convert`. origin: `org/name@commit` of a checkpoint of
    the hub, else empty. base: a reference to the model that an adapter is read over; empty for the one that it names.
    """

    folder: Path
    layout: str
    origin: str = ""
    base: str = ""

    def get_layout(self) -> CheckpointLayout:
        """What reads it."""
        from mmblocks.model.convert import layout_of

        if not self.base:
            return layout_of(self.layout)
        from mmblocks.model.convert.adapter import AdapterLayout

        if self.layout != ADAPTER:
            raise ConfigError(
                f"{self.folder} is a whole model, which is read over no base; leave base={self.base!r} out."
            )
        return AdapterLayout(self.base)


def locate_model(reference: Path | str, base: Path | str | None = None, *, weights: bool = True) -> LocatedModel:
    """The checkpoint that a reference names: an existing folder, or `org/name` or `org/name@revision` on the hub.

    Files that are not on this machine are downloaded, unless `mmblocks.pretrained.forbid_fetching` forbids it. base: see
    `LocatedModel`. weights: False downloads settings alone. Raises `CheckpointError` for what is neither, and for a checkpoint
    of an unknown layout.
    """
    folder, origin = locate_folder(reference, weights=weights)
    return LocatedModel(folder, _detect_layout(folder), origin, "" if base is None else str(base))


def locate_folder(reference: Path | str, *, weights: bool = True) -> tuple[Path, str]:
    """The folder of any checkpoint of transformers, LLaVA or ours, and its origin as in `LocatedModel`."""
    if Path(reference).exists():
        return Path(reference), ""
    repository = HubReference.parse(str(reference)) if isinstance(reference, str) else None
    if repository is None:
        raise CheckpointError(
            f"there is no folder {str(reference)!r}, and it is no repository of the hub; write a folder, org/name or "
            "org/name@revision."
        )
    try:
        snapshot = fetch_snapshot(repository, weights=weights, offline=not may_fetch())
    except CheckpointError as cause:
        raise CheckpointError(f"there is no folder {str(reference)!r}, and on the hub: {cause}") from cause
    return snapshot.folder, str(snapshot.reference)


def _detect_layout(folder: Path) -> str:
    if checkpoint.is_saved_model(folder):  # the code of other layouts is not imported then
        return OURS
    from mmblocks.model.convert import detect_layout

    return detect_layout(folder)


def read_located_spec(located: LocatedModel) -> ModelSpec:
    """The composition of a checkpoint; no value of a tensor is read."""
    from mmblocks.model.convert.layout import name_in_errors

    with name_in_errors(located.folder):
        return located.get_layout().read_spec(located.folder)


def read_stored_images(located: LocatedModel) -> ImageReading:
    """How a model reads images, from its config alone; the default where its layout does not say."""
    return checkpoint.read_spec(located.folder).images if located.layout == OURS else DEFAULT_READING


def load(
    reference: Path | str,
    *,
    dtype: torch.dtype | str | None = torch.float32,
    device: torch.device | str = "cpu",
    images: Mapping[str, Any] | None = None,
    template: str | None = None,
    bits: Bits | None = None,
    base: Path | str | None = None,
) -> OneVision:
    """Read a model, every tensor of it or none: see `locate_model` for what a reference is.

    Checkpoints of other layouts are imported in memory, and nothing is written. dtype: of the weights, or "auto" (see
    `placement.choose_dtype`); None is the type in which they are stored. device: see `placement.choose_devices`; with several
    of them the language model's layers are spread over them (`spreading`). images: settings of `ImageReading` instead of the
    stored ones, such as {"alpha": "drop"}. template: a chat template instead of the checkpoint's own. bits: 4 or 8 keeps the
    language model's linear layers quantized, frozen (see `quantized`). base: a reference to the model that an adapter folder is
    read over, by default the one that it names. Raises `CheckpointError` that lists what disagrees.
    """
    return load_located(
        locate_model(reference, base), dtype=dtype, device=device, images=images, template=template, bits=bits
    )


def load_located(
    located: LocatedModel,
    *,
    dtype: torch.dtype | str | None = torch.float32,
    device: torch.device | str = "cpu",
    images: Mapping[str, Any] | None = None,
    template: str | None = None,
    bits: Bits | None = None,
) -> OneVision:
    """`load` for a checkpoint that was located before."""
    devices = choose_devices(device) if isinstance(device, str) else [device]
    place = devices[0]
    if isinstance(dtype, str):
        dtype = choose_dtype(dtype, place, lambda: _find_stored_dtype(located))
    if located.layout == OURS and template is None and dtype is not None:
        model = checkpoint.load(located.folder, dtype=dtype, images=images)
        model.origin = located.origin or model.origin
    else:
        model, record = import_located(located, dtype, template=template, images=images or {})
        log.info("%s\n%s", located.origin or located.folder, "\n".join(describe_import(model, record)))
    if bits is not None:
        from mmblocks.model.quantized import quantize_backbone

        quantize_backbone(model, bits, place)
    if len(devices) > 1:
        from mmblocks.model.spreading import spread_layers

        spread_layers(model, devices)
        return model
    return model.to(place)


def _find_stored_dtype(located: LocatedModel) -> torch.dtype:
    from mmblocks.model.convert.weights import find_stored_dtype  # not imported where nobody needs it

    return find_stored_dtype(located.get_layout().find_weights_folder(located.folder))


def import_located(
    located: LocatedModel, dtype: torch.dtype | None, *, template: str | None, images: Mapping[str, Any]
) -> tuple[OneVision, MatchedTensors]:
    """The model, and how each tensor was accounted for; the arguments are those of `load`."""
    stored_as = _find_stored_dtype(located) if dtype is None else dtype
    model, record = located.get_layout().import_model(located.folder, dtype=stored_as, template=template)
    model.spec = replace(model.spec, images=model.images.with_changes(images))
    model.origin = located.origin or model.origin
    return model, record


def describe_import(model: OneVision, record: MatchedTensors) -> Iterator[str]:
    """What was read of a checkpoint, line by line: parts with their sizes, tensors, chat template, and what was not needed."""
    names = {part: split_spec(getattr(model.spec, part))[0] for part in ("encoder", "projector")}
    names["learned_tokens"] = ", ".join(model.learned_tokens.keys()) or "none"
    names["backbone"] = model.backbone.config.model_type
    for part in PARTS:
        yield f"part     {part}: {names[part]}, {count_parameters(getattr(model, part)):,} parameters"
    dtype = str(next(model.backbone.parameters()).dtype).removeprefix("torch.")
    yield f"layout   {record.layout}: {len(record.tensors)} tensors read as {dtype}"
    yield f"template {record.chat}"
    for reason, count in Counter(record.unused.values()).items():
        yield f"unused   {count} tensors: {reason}"
