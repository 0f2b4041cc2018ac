"""Other parts for a model that stands, and a record of what was kept: `swap(model, {"projector": "gated"})`."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from mmblocks.components import backbones, encoders, projectors
from mmblocks.faults import Fault
from mmblocks.json_files import read_object
from mmblocks.model.build import build_router, build_template
from mmblocks.model.checkpoint import write_into
from mmblocks.model.checks import limits
from mmblocks.model.checks.composition import DryBuild, dry_build
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import ModelSpec
from mmblocks.model.swapping import transplant
from mmblocks.model.swapping.transplant import TransferLine, TransferReport
from mmblocks.registry import split_spec
from mmblocks.settings import make_unknown_fault
from mmblocks.shapes import SCENARIOS, Size
from mmblocks.storage import replace_folder

log = logging.getLogger(__name__)

SLOTS = ("encoder", "projector", "pooling", "backbone", "template", *(f"tokenizer.{s}" for s in SCENARIOS), "images")
RECORD = "swap.json"
Weights = Literal["pretrained", "random"]


@dataclass(frozen=True, slots=True)
class SlotChange:
    """A slot that gets another component (`name`), or other settings for the one it has."""

    slot: str
    name: str | None
    settings: Mapping[str, Any]

    @property
    def is_replacement(self) -> bool:
        """Whether nothing of the old part is kept: another component, or weights from elsewhere."""
        return self.name is not None or "checkpoint" in self.settings


@dataclass(frozen=True, slots=True)
class SwapResult:
    """The new model, and what became of every parameter."""

    model: OneVision
    ledger: TransferReport
    record: Mapping[str, Any] = field(default_factory=dict)


def swap(
    model: OneVision, changes: Mapping[str, Any], *, seed: int | None = None, weights: Weights = "pretrained"
) -> SwapResult:
    """A model with other parts; the given one is left as it is, but shares the parts that are kept whole.

    changes: {"projector": "gated"} or {"projector": {"name": ..., settings}} puts a new component in a slot;
    {"encoder.image_px": 448} or {"encoder": {"image_px": 448}} changes settings of the one that is there and keeps
    what fits, with resized position tables and, for a larger vocabulary, added rows. weights: what a new encoder or
    backbone starts from where it names a checkpoint; all else that is new is drawn from `seed`. Raises `ConfigError`
    with every reason before anything is built.
    """
    wanted = read_changes(changes)
    spec = plan_swap(_present(model), changes)
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        new, lines = _build_parts(model, spec, {c.slot: c for c in wanted}, weights)
    new.spec = _apply_changes(model.spec, wanted, _vocabulary(spec))
    ledger = TransferReport(tuple(lines))
    record = {"changes": dict(changes), "seed": seed, "weights": weights, **ledger.to_dict()}
    return SwapResult(new.train(model.training), ledger, record)


def save_swap_result(swapped: SwapResult, out: Path | str, source: Path | str | None = None) -> Path:
    """Write a swapped model whole or not at all, with the records of this swap and of those before it in swap.json."""
    earlier = Path(source) / RECORD if source is not None else None
    history = read_object(earlier).get("swaps", []) if earlier and earlier.is_file() else []
    with replace_folder(Path(out)) as fresh:
        write_into(swapped.model, fresh)
        record = {"swaps": [*history, dict(swapped.record)]}
        (fresh / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return Path(out)


# What is asked for --------------------------------------------------------------------------------------------------


def plan_swap(spec: ModelSpec, changes: Mapping[str, Any]) -> ModelSpec:
    """The composition after a swap. Raises `ConfigError` with every reason; what was wrong before is not the swap's."""
    wanted = read_changes(changes)
    new = _apply_changes(spec, wanted, {})
    if any(change.slot == "backbone" and "vocab_size" not in change.settings for change in wanted):
        new = _align_vocabulary(new)
    if found := dry_build(new, offline=False).faults:
        before = dry_build(spec, offline=False).faults
        DryBuild([fault for fault in found if fault not in before]).require_no_faults()
    return new


def read_changes(changes: Mapping[str, Any]) -> list[SlotChange]:
    """Changes by slot. Raises `ConfigError` with every key that names no slot."""
    found: dict[str, dict[str, Any]] = {}
    faults = [] if changes else [Fault("model", "nothing is to be swapped.", f"Name one of {', '.join(SLOTS)}.")]
    for key, value in _flatten_changes(changes):
        slot = next((slot for slot in SLOTS if key == slot or key.startswith(f"{slot}.")), None)
        if slot is None:
            faults.append(make_unknown_fault(f"model.{key}", "a model has no such part.", SLOTS))
        elif key != slot:
            found.setdefault(slot, {})[key.removeprefix(f"{slot}.")] = value
        elif isinstance(value, Mapping):
            found.setdefault(slot, {}).update(value)
        elif slot == "images":
            faults.append(Fault("model.images", f"{value!r} is no setting.", "Write images.alpha=drop, say."))
        else:
            found.setdefault(slot, {})["name"] = value
    DryBuild(faults).require_no_faults()
    return [
        SlotChange(slot, given.get("name"), {k: v for k, v in given.items() if k != "name"})
        for slot, given in found.items()
    ]


def _flatten_changes(changes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in changes.items():
        if key == "tokenizer" and isinstance(value, Mapping):
            yield from ((f"tokenizer.{scenario}", inner) for scenario, inner in value.items())
        else:
            yield key, value


def _apply_changes(spec: ModelSpec, wanted: list[SlotChange], vocabulary: Mapping[str, Any]) -> ModelSpec:
    plain = spec.to_dict()
    for change in wanted:
        where, key = (plain["tokenizer"], change.slot.partition(".")[2]) if "." in change.slot else (plain, change.slot)
        kept = {"name": change.name} if change.name is not None else where[key]
        where[key] = {**kept, **change.settings, **(vocabulary if change.slot == "backbone" else {})}
    return ModelSpec.from_dict(plain)


def _present(model: OneVision) -> ModelSpec:
    """A model's composition with its language model and text tokenizer where they were read from, which may be a folder."""
    plain = model.spec.to_dict()
    read_from = {"checkpoint": "checkpoint", "text_tokenizer": "tokenizer_source"}
    here = {setting: getattr(model.backbone, attribute, None) for setting, attribute in read_from.items()}
    known = {k: v for k, v in here.items() if v is not None and k in plain["backbone"]}
    return ModelSpec.from_dict({**plain, "backbone": {**plain["backbone"], **known}})


def _align_vocabulary(spec: ModelSpec) -> ModelSpec:
    """Embeddings for every token of the text tokenizer, where it has more than the vocabulary."""
    if backbones.find_own_faults(spec.backbone):
        return spec
    settings = backbones.resolve_settings(spec.backbone)
    source = settings.get("text_tokenizer") or settings.get("checkpoint")
    rows, words = settings.get("vocab_size"), limits.count_tokenizer_words(source) if source else 0
    if not isinstance(rows, int) or words <= rows:
        return spec
    log.info("backbone: %d token embeddings instead of %d, as the text tokenizer has", words, rows)
    return replace(spec, backbone={"name": split_spec(spec.backbone)[0], **settings, "vocab_size": words})


def _vocabulary(spec: ModelSpec) -> dict[str, Any]:
    settings = backbones.resolve_settings(spec.backbone)
    return {"vocab_size": settings["vocab_size"]} if settings.get("vocab_size") is not None else {}


# The new parts ------------------------------------------------------------------------------------------------------


def _build_parts(
    model: OneVision, spec: ModelSpec, wanted: Mapping[str, SlotChange], weights: Weights
) -> tuple[OneVision, list[TransferLine]]:
    """The new model around the parts that stay, and what became of every parameter."""
    encoder, lines = _swap_encoder(model, spec, wanted.get("encoder"), weights)
    backbone, more = _swap_backbone(model, spec, wanted.get("backbone"), weights)
    projector, last = _swap_projector(model, spec, wanted.get("projector"), encoder, backbone)
    router = build_router(spec, encoder, projector)
    new = OneVision(encoder, projector, router, backbone, build_template(spec.template, backbone), spec)
    learned_tokens = transplant.fill_module(
        "learned_tokens", _match_dtype_and_device(new.learned_tokens, model), model.learned_tokens
    )
    return new, [*lines, *last, *learned_tokens, *more]


def _match_dtype_and_device(part: nn.Module, model: OneVision) -> nn.Module:
    """A new part in the type and on the device of the model's weights. Buffers keep their type."""
    dtype = next(model.parameters()).dtype
    for parameter in part.parameters():
        parameter.data = parameter.data.to(dtype)
    return part.to(model.device)


def _swap_encoder(
    model: OneVision, spec: ModelSpec, change: SlotChange | None, weights: Weights
) -> tuple[Any, list[TransferLine]]:
    if change is None:
        return model.encoder, [*transplant.list_untouched("encoder", model.encoder)]
    new: Any = _match_dtype_and_device(encoders.build(spec.encoder), model)
    if change.is_replacement:
        if weights == "pretrained" and getattr(new, "checkpoint", None) is not None:
            new.load_pretrained()
        return new, [*transplant.list_replaced("encoder", model.encoder, new)]
    resize = transplant.make_position_resize(_find_patch_grid(model.encoder), _find_patch_grid(new))
    return new, [*transplant.fill_module("encoder", new, model.encoder, resize)]


def _find_patch_grid(encoder: Any) -> Size:
    """The grid of patches, also where the encoder's own is a row with a CLS token in front."""
    if encoder.spatial:
        return encoder.grid
    side = int((encoder.grid.area - 1) ** 0.5)
    return Size(side, side)


def _swap_backbone(
    model: OneVision, spec: ModelSpec, change: SlotChange | None, weights: Weights
) -> tuple[Any, list[TransferLine]]:
    if change is None:
        return model.backbone, [*transplant.list_untouched("backbone", model.backbone)]
    if not change.is_replacement:
        new = _match_dtype_and_device(backbones.build(spec.backbone), model)
        return new, [*transplant.fill_module("backbone", new, model.backbone, transplant.extend_vocabulary)]
    named = backbones.resolve_settings(spec.backbone).get("checkpoint") is not None
    pretrained = weights == "pretrained" and named
    new = _match_dtype_and_device(
        _load_pretrained_backbone(spec, change) if pretrained else backbones.build(spec.backbone), model
    )
    return new, [*transplant.list_replaced("backbone", model.backbone, new)]


def _load_pretrained_backbone(spec: ModelSpec, change: SlotChange) -> Any:
    """A backbone with the weights of its checkpoint, in a vocabulary that may be larger than the checkpoint's."""
    asked = {"name": change.name, **change.settings} if change.name is not None else spec.backbone
    with torch.device("meta"):
        loaded = backbones.build(asked)
    loaded.load_pretrained()
    if backbones.resolve_settings(spec.backbone).get("vocab_size") in (None, loaded.vocab_size):
        return loaded
    grown = backbones.build(spec.backbone)
    list(transplant.fill_module("backbone", grown, loaded, transplant.extend_vocabulary))
    return grown


def _swap_projector(
    model: OneVision, spec: ModelSpec, change: SlotChange | None, encoder: Any, backbone: Any
) -> tuple[Any, list[TransferLine]]:
    """The projector between the new neighbours: the same object where nothing about it changes."""
    same = encoder.dim == model.encoder.dim and encoder.grid == model.encoder.grid
    if change is None and same and backbone.dim == model.backbone.dim:
        return model.projector, [*transplant.list_untouched("projector", model.projector)]
    new = projectors.build(spec.projector, in_dim=encoder.dim, out_dim=backbone.dim, grid=encoder.grid)
    new = _match_dtype_and_device(new, model)
    if change is not None and change.is_replacement:
        return new, [*transplant.list_replaced("projector", model.projector, new)]
    return new, [*transplant.fill_module("projector", new, model.projector)]
