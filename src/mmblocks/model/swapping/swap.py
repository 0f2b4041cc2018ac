"""Swap parts of a model, with a record of what was kept: `swap(model, {"projector": "gated"})`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from mmblocks.components import VisionEncoder, backbones, encoders, projectors
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

if TYPE_CHECKING:
    from mmblocks.backbones.causal_lm import CausalLM

log = logging.getLogger(__name__)

SLOTS = ("encoder", "projector", "pooling", "backbone", "template", *(f"tokenizer.{s}" for s in SCENARIOS), "images")
RECORD = "swap.json"
Weights = Literal["pretrained", "random"]


@dataclass(frozen=True, slots=True)
class SlotChange:
    """A slot that gets another component (`name`), or other settings for its present one."""

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
    """A model with other parts; the given one does not change, and shares the parts that are kept whole.

    changes: {"projector": "gated"} or {"projector": {"name": ..., settings}} puts a new component in a slot;
    {"encoder.image_px": 448} or {"encoder": {"image_px": 448}} changes settings of the present one and keeps the weights
    that fit, with resized position tables and, for a larger vocabulary, added rows. weights: the initial weights of a new
    encoder or backbone that names a checkpoint; everything else that is new is drawn from `seed`. Raises `ConfigError`
    with every reason before anything is built.
    """
    slot_changes = read_changes(changes)
    present = model.spec.to_dict()  # with the language model and text tokenizer where they were read from
    for setting, attribute in (("checkpoint", "checkpoint"), ("text_tokenizer", "tokenizer_source")):
        source = getattr(model.backbone, attribute, None)
        if source is not None and setting in present["backbone"]:
            present["backbone"] = {**present["backbone"], setting: source}
    spec = plan_swap(ModelSpec.from_dict(present), changes)
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        new, lines = _build_parts(model, spec, {change.slot: change for change in slot_changes}, weights)
    vocab_size = backbones.resolve_settings(spec.backbone).get("vocab_size")
    new.spec = _apply_changes(model.spec, slot_changes, {} if vocab_size is None else {"vocab_size": vocab_size})
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


# The requested changes ----------------------------------------------------------------------------------------------


def plan_swap(spec: ModelSpec, changes: Mapping[str, Any]) -> ModelSpec:
    """The composition after a swap. Raises `ConfigError` with every fault that the swap would cause."""
    slot_changes = read_changes(changes)
    new = _apply_changes(spec, slot_changes, {})
    if any(change.slot == "backbone" and "vocab_size" not in change.settings for change in slot_changes):
        new = _align_vocabulary(new)
    if faults := dry_build(new, offline=False).faults:
        before = dry_build(spec, offline=False).faults
        DryBuild([fault for fault in faults if fault not in before]).require_no_faults()
    return new


def read_changes(changes: Mapping[str, Any]) -> list[SlotChange]:
    """Changes by slot. Raises `ConfigError` with every key that names no slot."""
    by_slot: dict[str, dict[str, Any]] = {}
    faults = [] if changes else [Fault("model", "nothing is to be swapped.", f"Name one of {', '.join(SLOTS)}.")]
    flat = dict(changes)
    if isinstance(tokenizers := flat.get("tokenizer"), Mapping):
        del flat["tokenizer"]
        flat |= {f"tokenizer.{scenario}": value for scenario, value in tokenizers.items()}
    for key, value in flat.items():
        slot = next((slot for slot in SLOTS if key == slot or key.startswith(f"{slot}.")), None)
        if slot is None:
            faults.append(make_unknown_fault(key, "a model has no such part.", SLOTS, "model"))
        elif key != slot:
            by_slot.setdefault(slot, {})[key.removeprefix(f"{slot}.")] = value
        elif isinstance(value, Mapping):
            by_slot.setdefault(slot, {}).update(value)
        elif slot == "images":
            faults.append(Fault("model.images", f"{value!r} is no setting.", "Write for example images.alpha=drop."))
        else:
            by_slot.setdefault(slot, {})["name"] = value
    DryBuild(faults).require_no_faults()
    return [
        SlotChange(slot, given.get("name"), {k: v for k, v in given.items() if k != "name"})
        for slot, given in by_slot.items()
    ]


def _apply_changes(spec: ModelSpec, changes: list[SlotChange], vocabulary: Mapping[str, int]) -> ModelSpec:
    plain = spec.to_dict()
    for change in changes:
        where, key = (plain["tokenizer"], change.slot.partition(".")[2]) if "." in change.slot else (plain, change.slot)
        kept = {"name": change.name} if change.name is not None else where[key]
        where[key] = {**kept, **change.settings, **(vocabulary if change.slot == "backbone" else {})}
    return ModelSpec.from_dict(plain)


def _align_vocabulary(spec: ModelSpec) -> ModelSpec:
    """Set `vocab_size` to that of the text tokenizer, where this has more tokens."""
    if backbones.find_own_faults(spec.backbone):
        return spec
    settings = backbones.resolve_settings(spec.backbone)
    source = settings.get("text_tokenizer") or settings.get("checkpoint")
    rows, tokens = settings.get("vocab_size"), limits.count_tokenizer_words(source) if source else 0
    if not isinstance(rows, int) or tokens <= rows:
        return spec
    log.info("backbone: %d token embeddings instead of %d, as many as the text tokenizer has", tokens, rows)
    return replace(spec, backbone={"name": split_spec(spec.backbone)[0], **settings, "vocab_size": tokens})


# The new parts ------------------------------------------------------------------------------------------------------


def _build_parts(
    model: OneVision, spec: ModelSpec, changes: Mapping[str, SlotChange], weights: Weights
) -> tuple[OneVision, list[TransferLine]]:
    """The new model around the parts that stay, and the fate of every parameter.

    The projector stays where neither it nor its neighbours' sizes change.
    """
    encoder, encoder_lines = _swap_encoder(model, spec, changes.get("encoder"), weights)
    backbone, backbone_lines = _swap_backbone(model, spec, changes.get("backbone"), weights)
    change, old = changes.get("projector"), model.projector
    has_same_input = encoder.dim == model.encoder.dim and encoder.grid == model.encoder.grid
    if change is None and has_same_input and backbone.dim == model.backbone.dim:
        projector, projector_lines = old, [*transplant.list_untouched("projector", old)]
    else:
        new = projectors.build(spec.projector, in_dim=encoder.dim, out_dim=backbone.dim, grid=encoder.grid)
        projector = _match_dtype_and_device(new, model)
        if change is not None and change.is_replacement:
            projector_lines = [*transplant.list_replaced("projector", old, projector)]
        else:
            projector_lines = transplant.fill_module("projector", projector, old)
    router = build_router(spec, encoder, projector)
    new = OneVision(encoder, projector, router, backbone, build_template(spec.template, backbone), spec)
    new.origin = model.origin
    learned_tokens = _match_dtype_and_device(new.learned_tokens, model)
    token_lines = transplant.fill_module("learned_tokens", learned_tokens, model.learned_tokens)
    return new, [*encoder_lines, *projector_lines, *token_lines, *backbone_lines]


def _match_dtype_and_device(part: nn.Module, model: OneVision) -> Any:
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
    return new, transplant.fill_module("encoder", new, model.encoder, resize)


def _find_patch_grid(encoder: VisionEncoder) -> Size:
    """The grid of patches, also where the encoder's own grid is a row with a CLS token in front."""
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
        return new, transplant.fill_module("backbone", new, model.backbone, transplant.extend_vocabulary)
    has_checkpoint = backbones.resolve_settings(spec.backbone).get("checkpoint") is not None
    is_pretrained = weights == "pretrained" and has_checkpoint
    new = _load_pretrained_backbone(spec, change) if is_pretrained else backbones.build(spec.backbone)
    new = _match_dtype_and_device(new, model)
    return new, [*transplant.list_replaced("backbone", model.backbone, new)]


def _load_pretrained_backbone(spec: ModelSpec, change: SlotChange) -> CausalLM:
    """A backbone with the weights of its checkpoint, in a vocabulary that may be larger than the checkpoint's."""
    requested = {"name": change.name, **change.settings} if change.name is not None else spec.backbone
    with torch.device("meta"):
        pretrained = backbones.build(requested)
    pretrained.load_pretrained()
    if backbones.resolve_settings(spec.backbone).get("vocab_size") in (None, pretrained.vocab_size):
        return pretrained
    extended = backbones.build(spec.backbone)
    transplant.fill_module("backbone", extended, pretrained, transplant.extend_vocabulary)
    return extended
