"""Whether a composition can work, from its settings and meta tensors alone: every reason against it, at once.

A part that cannot be built does not end the check. Its neighbours are then tried beside stand-ins, and only what is
wrong beside all of these is reported, so that one mistake is not reported as many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn

from mmblocks.components import backbones, encoders, poolings, projectors, templates, tokenizers
from mmblocks.errors import ConfigError
from mmblocks.image_reading import DEFAULT_READING, ImageReading, list_reading_faults
from mmblocks.model.checks import limits
from mmblocks.model.checks.dry_build import (
    STAND_INS,
    BuildAttempt,
    TokenizerContext,
    find_common_faults,
    find_named_settings,
    try_build,
)
from mmblocks.model.checks.faults import Fault, find_component_faults, resolve_settings
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import ONEVISION_TOKENIZERS, ModelSpec
from mmblocks.registry import split_spec
from mmblocks.settings import format_suggestion
from mmblocks.shapes import SCENARIOS, Scenario, Size
from mmblocks.templates.lazy_tokenizer import LazyTextTokenizer
from mmblocks.tokenizers.router import Router

KINDS = ("encoder", "projector", "pooling", "backbone", "template")


def find_faults(spec: ModelSpec | Mapping[str, Any]) -> list[Fault]:
    """Every fault of a composition, network off. Takes plain values too, whatever is in them."""
    return dry_build(spec).faults


def require_dry_build(spec: ModelSpec | Mapping[str, Any]) -> DryBuild:
    """The dry build of a composition without faults. Raises one `ConfigError` that lists every fault."""
    seen = dry_build(spec, offline=False)
    seen.require_no_faults()
    return seen


@dataclass(frozen=True, slots=True)
class _ComponentBuild:
    """What is built of a composition before its visual tokenizers, and the faults found on the way."""

    faults: Sequence[Fault]
    text_faults: Sequence[Fault]
    encoder: Any
    projector: Any
    backbone: Any
    pooling: Any
    template: Any
    beside: TokenizerContext | None
    images: ImageReading


@dataclass(slots=True)
class DryBuild:
    """What could be built of a composition on the meta device, and every fault found on the way."""

    faults: list[Fault] = field(default_factory=list)
    encoder: Any = None
    projector: Any = None
    backbone: Any = None
    template: Any = None
    tokenizers: dict[Scenario, Any] = field(default_factory=dict)
    choices: Mapping[Scenario, Any] = field(default_factory=dict)
    component_build: _ComponentBuild | None = None
    images: ImageReading = DEFAULT_READING

    def require_no_faults(self) -> None:
        """Raise one `ConfigError` that lists every fault."""
        if self.faults:
            listed = "\n".join(f"  - {fault}" for fault in self.faults)
            raise ConfigError(f"this composition cannot work:\n{listed}")

    def with_tokenizers(self, chosen: Mapping[str, Any]) -> DryBuild:
        """The same composition with other visual tokenizers for some scenarios; nothing else is built again."""
        assert self.component_build is not None  # `examine` made it
        return _build_tokenizers(self.component_build, {**ONEVISION_TOKENIZERS, **self.choices, **chosen})

    @property
    def router(self) -> Router:
        """The tokenizers of a composition without faults."""
        return Router(**self.tokenizers)

    def to_model(self, spec: ModelSpec) -> OneVision:
        """The parts of a composition without faults as a model without weights; they are the same objects."""
        with torch.device("meta"):
            return OneVision(self.encoder, self.projector, self.router, self.backbone, self.template, spec)

    def count_parameters(self, part: str) -> int | None:
        """Parameters of a part, each shared one once; None where it could not be built."""
        if part == "learned_tokens":
            if self.backbone is None or len(self.tokenizers) < len(SCENARIOS):
                return None
            return len(self.router.learned_tokens) * self.backbone.dim
        module = getattr(self, part)
        return sum(p.numel() for p in module.parameters()) if isinstance(module, nn.Module) else None


def dry_build(spec: ModelSpec | Mapping[str, Any], *, offline: bool = True) -> DryBuild:
    """Build on the meta device what can be built, and collect every fault.

    offline: a backbone whose sizes stand in a config.json that is not on this machine is a fault; otherwise it is
    fetched.
    """
    found: list[Fault] = []
    slots, images = _read_slots(spec, found), _images(spec, found)
    choices = {s: slots[key] for s in SCENARIOS if (key := f"model.tokenizer.{s}") in slots}
    return _build_tokenizers(_build_components(slots, images, found, offline), choices)


def _build_components(
    slots: Mapping[str, Any], images: ImageReading, found: list[Fault], offline: bool
) -> _ComponentBuild:
    """Everything but the visual tokenizers; adds to the faults that were found."""

    def collect_faults(trial: BuildAttempt) -> Any:
        found.extend(trial.faults)
        return trial.part

    with torch.device("meta"):
        encoder = collect_faults(_try_encoder("model.encoder", slots["model.encoder"]))
        backbone = collect_faults(_try_backbone(slots["model.backbone"], offline))
        projector = collect_faults(_try_projector(slots["model.projector"], encoder, backbone))
        pooling = collect_faults(try_build("model.pooling", poolings, slots["model.pooling"]))
        template = collect_faults(_try_template(slots["model.template"], backbone))
        beside = collect_faults(_try_tokenizer_context(encoder, projector))
    about_text = [] if backbone is None or template is None else limits.find_text_faults(backbone, template)
    return _ComponentBuild(
        tuple(found), tuple(about_text), encoder, projector, backbone, pooling, template, beside, images
    )


def _build_tokenizers(before: _ComponentBuild, choices: Mapping[Any, Any]) -> DryBuild:
    """The rest of the dry build: visual tokenizers by scenario, and what they need of what is there."""
    found = [*before.faults]
    encoder, backbone, beside = before.encoder, before.backbone, before.beside
    built: dict[Scenario, Any] = {}
    with torch.device("meta"):
        pooled = _try_pooling(before.pooling, choices, beside)
        found += pooled.faults
        for scenario, spec in choices.items():
            trial = _try_tokenizer(scenario, spec, _besides(encoder, beside), pooled.part)
            found += trial.faults
            built |= {} if trial.part is None else {scenario: trial.part}
    if beside is not None and backbone is not None:
        found += limits.find_media_faults(built, beside.view_px, backbone.max_tokens)
    found += before.text_faults
    return DryBuild(
        found,
        encoder,
        before.projector,
        backbone,
        before.template,
        built,
        choices=choices,
        component_build=before,
        images=before.images,
    )


def _read_slots(spec: ModelSpec | Mapping[str, Any], found: list[Fault]) -> dict[str, Any]:
    """The components asked for, by config key, defaults filled in; what cannot be told apart is a fault."""
    known = (*KINDS, "tokenizer", "images")
    raw = {k: getattr(spec, k) for k in known} if isinstance(spec, ModelSpec) else spec
    found += _find_unknown_keys("model", raw, known, "a model has no such part.")
    default = ModelSpec()
    slots = {f"model.{kind}": raw.get(kind, getattr(default, kind)) for kind in KINDS}
    chosen = raw.get("tokenizer", {})
    if not isinstance(chosen, Mapping):
        cure = f"Write one for each of {', '.join(SCENARIOS)}."
        found.append(Fault("model.tokenizer", f"{chosen!r} does not say which scenario it serves.", cure))
        return slots
    found += _find_unknown_keys("model.tokenizer", chosen, SCENARIOS, "there is no such scenario.")
    return slots | {f"model.tokenizer.{s}": chosen.get(s, ONEVISION_TOKENIZERS[s]) for s in SCENARIOS}


def _images(spec: ModelSpec | Mapping[str, Any], found: list[Fault]) -> ImageReading:
    """How images are read; the default where the settings are faulty."""
    raw = spec.images if isinstance(spec, ModelSpec) else spec.get("images", {})
    if isinstance(raw, ImageReading):
        return raw
    faults = list_reading_faults(raw, "model.images")
    found += [Fault("model.images", fault.removeprefix("model.images: ")) for fault in faults]
    return DEFAULT_READING if faults else ImageReading.from_dict(raw)


def _find_unknown_keys(key: str, raw: Mapping[str, Any], known: Sequence[str], message: str) -> list[Fault]:
    return [Fault(f"{key}.{k}", message, format_suggestion(k, known).strip()) for k in raw if k not in known]


# Parts --------------------------------------------------------------------------------------------------------------


def _try_encoder(key: str, spec: Any) -> BuildAttempt:
    """An encoder made of encoders is built when each member can be; else its members say what is wrong."""
    own = find_component_faults(key, encoders, spec)
    members = {} if any(fault.key == key for fault in own) else encoders.find_sub_components(spec)
    wrong = [fault for inner, member in members.items() for fault in _try_encoder(f"{key}.{inner}", member).faults]
    if wrong:
        return BuildAttempt(None, own + wrong)
    trial = try_build(key, encoders, spec)
    if trial.part is not None and not trial.faults:
        trial.faults += limits.find_encoder_faults(key, resolve_settings(encoders, spec))
    return trial


def _try_backbone(spec: Any, offline: bool) -> BuildAttempt:
    key = "model.backbone"
    if find_component_faults(key, backbones, spec):
        return try_build(key, backbones, spec)
    settings = resolve_settings(backbones, spec)
    if wrong := limits.find_backbone_faults(settings):
        return BuildAttempt(limits.BackboneSizes.from_settings(settings), wrong)
    if offline and settings.get("checkpoint") and settings.get("family", "unknown") is None:
        folder = limits.find_local_folder(settings["checkpoint"])
        if folder is None:
            return BuildAttempt(None, [limits.make_missing_config_fault(settings["checkpoint"])])
        spec = {**dict(split_spec(spec)[1]), "name": split_spec(spec)[0], "checkpoint": str(folder)}
    return try_build(key, backbones, spec)


def _try_projector(spec: Any, encoder: Any, backbone: Any) -> BuildAttempt:
    """Where a neighbour is unknown, or its width refused, a width that fits is assumed, so that the grid still shows."""
    in_dim = next((n.dim for n in (encoder, backbone) if n is not None), 64)
    out_dim = in_dim if backbone is None else backbone.dim
    grids = [b.grid for b in STAND_INS] if encoder is None else [encoder.grid]
    trials = [_try_projector_sizes(spec, in_dim, out_dim, grid) for grid in grids]
    if encoder is None:
        return BuildAttempt(None, find_common_faults(trials))
    if trials[0].part is None and in_dim != out_dim:
        trials[0].part = _try_projector_sizes(spec, in_dim, in_dim, encoder.grid).part
    return trials[0]


def _try_projector_sizes(spec: Any, in_dim: int, out_dim: int, grid: Size) -> BuildAttempt:
    return try_build("model.projector", projectors, spec, in_dim=in_dim, out_dim=out_dim, grid=grid)


def _try_template(spec: Any, backbone: Any) -> BuildAttempt:
    return try_build("model.template", templates, spec, text_tokenizer=LazyTextTokenizer.from_backbone(backbone))


def _try_tokenizer_context(encoder: Any, projector: Any) -> BuildAttempt:
    """What the tokenizers have beside them, when encoder and projector agree on a grid."""
    if encoder is None or projector is None:
        return BuildAttempt()
    try:
        grid = projector.out_grid(encoder.grid)
    except ConfigError as cause:
        return BuildAttempt(None, [Fault("model.projector", str(cause))])
    return BuildAttempt(TokenizerContext(encoder.view_px, grid, encoder.spatial and projector.spatial, encoder.squash))


def _besides(encoder: Any, beside: TokenizerContext | None) -> list[TokenizerContext]:
    """The tokenizers' neighbours, or stand-ins for what is unknown of them."""
    if beside is not None:
        return [beside]
    return [*STAND_INS] if encoder is None else [replace(b, view_px=encoder.view_px) for b in STAND_INS]


def _try_pooling(pooling: Any, choices: Mapping[Any, Any], beside: TokenizerContext | None) -> BuildAttempt:
    """The pooling if it takes the grid (or nobody uses it), else one that keeps every cell, for the checks to go on."""
    keeper = poolings.build("none")
    if pooling is None or beside is None or not beside.spatial or not any(map(_needs_pooling, choices.values())):
        return BuildAttempt(pooling or keeper)
    try:
        pooling.out_grid(beside.grid)
    except ConfigError as cause:
        return BuildAttempt(keeper, [Fault("model.pooling", str(cause))])
    return BuildAttempt(pooling)


def _needs_pooling(spec: Any) -> bool:
    key = "model.tokenizer"
    named = not any(fault.key == key for fault in find_component_faults(key, tokenizers, spec))
    return named and "pooling" in tokenizers.find_wired_arguments(split_spec(spec)[0])


def _try_tokenizer(scenario: Scenario, spec: Any, besides: Sequence[TokenizerContext], pooling: Any) -> BuildAttempt:
    trials = [_try_in_context(scenario, spec, beside, pooling) for beside in besides]
    return BuildAttempt(trials[0].part if len(besides) == 1 else None, find_common_faults(trials))


def _try_in_context(scenario: Scenario, spec: Any, beside: TokenizerContext, pooling: Any) -> BuildAttempt:
    key = f"model.tokenizer.{scenario}"
    trial = try_build(key, tokenizers, spec, pooling=pooling, **asdict(beside))
    if trial.part is None:
        return trial
    if scenario not in trial.part.scenarios:
        serves = ", ".join(sorted(trial.part.scenarios))
        message = f"{split_spec(spec)[0]!r} does not serve the scenario {scenario!r}, only {serves}."
        return BuildAttempt(
            None, [*trial.faults, Fault(key, message, f"Choose one of {', '.join(_serving(scenario, beside))}.")]
        )
    for reason in trial.part.reasons_against():
        named = find_named_settings(reason, split_spec(spec)[1])
        trial.faults.append(Fault(f"{key}.{named[0]}" if len(named) == 1 else key, reason))
    return BuildAttempt(None if trial.faults else trial.part, trial.faults)


def _serving(scenario: Scenario, beside: TokenizerContext) -> list[str]:
    """Names of the visual tokenizers that serve a scenario."""
    trials = {
        name: try_build(
            "", tokenizers, {"name": name, **tokenizers[name].tiny}, pooling=poolings.build("none"), **asdict(beside)
        )
        for name in tokenizers
    }
    return [name for name, trial in trials.items() if trial.part is not None and scenario in trial.part.scenarios]
