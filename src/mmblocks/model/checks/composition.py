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

from mmblocks.components import (
    Backbone,
    Pooling,
    VisionEncoder,
    backbones,
    encoders,
    poolings,
    projectors,
    templates,
    tokenizers,
)
from mmblocks.errors import ConfigError
from mmblocks.faults import HARMLESS, Fault
from mmblocks.image_reading import DEFAULT_READING, ImageReading, find_reading_faults
from mmblocks.model.checks import limits
from mmblocks.model.checks.dry_build import (
    STAND_INS,
    BuildAttempt,
    TokenizerContext,
    find_common_faults,
    to_fault,
    try_build,
)
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import ONEVISION_TOKENIZERS, ModelSpec
from mmblocks.registry import split_spec
from mmblocks.settings import make_unknown_fault
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
    context: TokenizerContext | None
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

    @property
    def errors(self) -> list[Fault]:
        """The faults with which the composition cannot work."""
        return [fault for fault in self.faults if fault.severity not in HARMLESS]

    def require_no_faults(self) -> None:
        """Raise one `ConfigError` that lists every error."""
        if self.errors:
            raise ConfigError.from_faults(self.errors, "this composition cannot work")

    def with_tokenizers(self, chosen: Mapping[str, Any]) -> DryBuild:
        """The same composition with other visual tokenizers for some scenarios; nothing else is built again."""
        assert self.component_build is not None  # `dry_build` made it
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
    known = (*KINDS, "tokenizer", "images")
    raw: Mapping[str, Any] = {k: getattr(spec, k) for k in known} if isinstance(spec, ModelSpec) else spec
    faults = [make_unknown_fault(str(k), "a model has no such part.", known, "model") for k in raw if k not in known]
    slots: dict[str, Any] = {kind: raw.get(kind, getattr(ModelSpec(), kind)) for kind in KINDS}
    choices, images = raw.get("tokenizer", {}), raw.get("images", {})
    if isinstance(choices, Mapping):
        unknown = [str(scenario) for scenario in choices if scenario not in SCENARIOS]
        message = "there is no such scenario."
        faults += [make_unknown_fault(name, message, SCENARIOS, "model.tokenizer") for name in unknown]
        choices = {scenario: choices.get(scenario, ONEVISION_TOKENIZERS[scenario]) for scenario in SCENARIOS}
    else:
        cure = f"Write one for each of {', '.join(SCENARIOS)}."
        faults.append(Fault("model.tokenizer", f"{choices!r} does not say which scenario it serves.", cure))
        choices = {}
    if not isinstance(images, ImageReading):
        wrong = list(find_reading_faults(images, "model.images"))
        faults += wrong
        images = DEFAULT_READING if wrong else ImageReading.from_dict(images)
    return _build_tokenizers(_build_components(slots, images, faults, offline), choices)


def _build_components(
    slots: Mapping[str, Any], images: ImageReading, faults: list[Fault], offline: bool
) -> _ComponentBuild:
    """Everything but the visual tokenizers; adds to the faults that were found."""

    def collect_faults(attempt: BuildAttempt) -> Any:
        faults.extend(attempt.faults)
        return attempt.part

    with torch.device("meta"):
        encoder = collect_faults(_try_encoder("model.encoder", slots["encoder"]))
        backbone = collect_faults(_try_backbone("model.backbone", slots["backbone"], offline))
        projector = collect_faults(_try_projector(slots["projector"], encoder, backbone))
        pooling = collect_faults(try_build("model.pooling", poolings, slots["pooling"]))
        later = LazyTextTokenizer.from_backbone(backbone)
        template = collect_faults(try_build("model.template", templates, slots["template"], text_tokenizer=later))
        context = None
        if encoder is not None and projector is not None:
            try:
                grid, spatial = projector.out_grid(encoder.grid), encoder.spatial and projector.spatial
                context = TokenizerContext(encoder.view_px, grid, spatial, encoder.squash)
            except ConfigError as cause:
                faults.append(to_fault("model.projector", cause))
    text_faults = [] if backbone is None or template is None else limits.find_text_faults(backbone, template)
    return _ComponentBuild(
        tuple(faults), tuple(text_faults), encoder, projector, backbone, pooling, template, context, images
    )


def _build_tokenizers(before: _ComponentBuild, choices: Mapping[Any, Any]) -> DryBuild:
    """The rest of the dry build: visual tokenizers by scenario, and what they need of what is there."""
    faults, context, pooling = [*before.faults], before.context, before.pooling
    built: dict[Scenario, Any] = {}
    with torch.device("meta"):
        if (
            context is not None
            and pooling is not None
            and context.spatial
            and any(map(_needs_pooling, choices.values()))
        ):
            try:
                pooling.out_grid(context.grid)
            except ConfigError as cause:
                faults.append(to_fault("model.pooling", cause))
                pooling = None
        pooling = pooling or poolings.build("none")  # keeps every cell, for the other checks
        contexts = [context] if context is not None else [*STAND_INS]
        if context is None and before.encoder is not None:
            contexts = [replace(one, view_px=before.encoder.view_px) for one in STAND_INS]
        for scenario, spec in choices.items():
            attempts = [_try_tokenizer(scenario, spec, one, pooling) for one in contexts]
            faults += find_common_faults(attempts)
            if context is not None and attempts[0].part is not None:
                built[scenario] = attempts[0].part
    if context is not None and before.backbone is not None:
        faults += limits.find_media_faults(built, context.view_px, before.backbone.max_tokens)
    return DryBuild(
        [*faults, *before.text_faults],
        before.encoder,
        before.projector,
        before.backbone,
        before.template,
        built,
        choices=choices,
        component_build=before,
        images=before.images,
    )


# Parts --------------------------------------------------------------------------------------------------------------


def _try_encoder(key: str, spec: object) -> BuildAttempt:
    """An encoder made of encoders is built when each member can be; else its members say what is wrong."""
    own = encoders.find_own_faults(spec, key)
    members = {} if any(fault.key == key for fault in own) else encoders.find_sub_components(spec)
    wrong = [fault for inner, member in members.items() for fault in _try_encoder(f"{key}.{inner}", member).faults]
    if wrong:
        return BuildAttempt(None, own + wrong)
    attempt = try_build(key, encoders, spec)
    if attempt.part is not None and not attempt.faults:
        attempt.faults += limits.find_head_limit_faults(key, encoders.resolve_settings(spec))
    return attempt


def _try_backbone(key: str, spec: object, offline: bool) -> BuildAttempt:
    if backbones.find_own_faults(spec):
        return try_build(key, backbones, spec)
    settings = backbones.resolve_settings(spec)
    if wrong := limits.find_backbone_faults(settings):
        return BuildAttempt(limits.BackboneSizes.from_settings(settings), wrong)
    source = settings.get("checkpoint")
    if offline and source and settings.get("family", "unknown") is None:
        folder = limits.find_local_folder(source)
        if folder is None:
            message = f"its sizes stand in the config.json of {source!r}, which is not on this machine."
            cure = f"Fetch it (hf download {source} config.json), name a folder, or write family and sizes as settings."
            return BuildAttempt(None, [Fault(f"{key}.checkpoint", message, cure, "missing")])
        name, given = split_spec(spec)
        spec = {**given, "name": name, "checkpoint": str(folder)}
    return try_build(key, backbones, spec)


def _try_projector(spec: object, encoder: VisionEncoder | None, backbone: Backbone | None) -> BuildAttempt:
    """Where a neighbour is unknown, or its width refused, a width that fits is assumed, so that the grid still shows."""
    in_dim = next((n.dim for n in (encoder, backbone) if n is not None), 64)
    out_dim = in_dim if backbone is None else backbone.dim

    def try_sizes(out_dim: int, grid: Size) -> BuildAttempt:
        return try_build("model.projector", projectors, spec, in_dim=in_dim, out_dim=out_dim, grid=grid)

    if encoder is None:
        return BuildAttempt(None, find_common_faults([try_sizes(out_dim, context.grid) for context in STAND_INS]))
    attempt = try_sizes(out_dim, encoder.grid)
    if attempt.part is None and in_dim != out_dim:
        attempt.part = try_sizes(in_dim, encoder.grid).part
    return attempt


def _needs_pooling(spec: object) -> bool:
    is_known = not any(fault.key == "" for fault in tokenizers.find_own_faults(spec))
    return is_known and "pooling" in tokenizers.find_wired_arguments(split_spec(spec)[0])


def _try_tokenizer(scenario: Scenario, spec: object, context: TokenizerContext, pooling: Pooling) -> BuildAttempt:
    key, neighbours = f"model.tokenizer.{scenario}", {"pooling": pooling, **asdict(context)}
    attempt = try_build(key, tokenizers, spec, **neighbours)
    if attempt.part is None:
        return attempt
    if scenario in attempt.part.scenarios:
        faults = [*attempt.faults, *(fault.move_below(key) for fault in attempt.part.find_faults())]
        return BuildAttempt(None if faults else attempt.part, faults)
    message = f"{split_spec(spec)[0]!r} does not serve the scenario {scenario!r}, only"
    neighbours["pooling"] = poolings.build("none")
    tiny = {
        name: try_build("", tokenizers, {"name": name, **tokenizers[name].tiny}, **neighbours) for name in tokenizers
    }
    serving = [name for name, one in tiny.items() if one.part is not None and scenario in one.part.scenarios]
    cure = f"Choose one of {', '.join(serving)}."
    fault = Fault(key, f"{message} {', '.join(sorted(attempt.part.scenarios))}.", cure)
    return BuildAttempt(None, [*attempt.faults, fault])
