"""Wiring: the only place where one component's size becomes another's argument."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from mmblocks.components import ChatTemplate, backbones, encoders, poolings, projectors, templates, tokenizers
from mmblocks.errors import ConfigError
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import PARTS, ModelSpec
from mmblocks.model.systems import merge_choices
from mmblocks.ops.choice import find_requested_backend
from mmblocks.registry import Spec
from mmblocks.room import require_room
from mmblocks.shapes import Scenario
from mmblocks.templates.lazy_tokenizer import LazyTextTokenizer
from mmblocks.tokenizers.router import Router


def build(
    spec: ModelSpec | Mapping[str, Any] | None = None,
    /,
    *,
    weights: str = "random",
    dtype: torch.dtype = torch.float32,
    seed: int | None = None,
    **components: Spec,
) -> OneVision:
    """Compose a model: `build(encoder="siglip_so400m_384", backbone={"name": "qwen2_7b"})`.

    Named components replace those of `spec`: `build(compose("llava_next/vicuna_7b"), projector="gated")`.

    weights: "random" (drawn from `seed`, or torch's generator as it stands) or "pretrained" (what `checkpoint` of the
    encoder and of the backbone names). Raises `ConfigError` listing every reason why the parts do not fit each other,
    or with their sizes where they do not fit into the memory of this machine.
    """
    from mmblocks.model.checks.composition import require_dry_build

    if not isinstance(spec, ModelSpec):
        spec = ModelSpec.from_dict({**(spec or {}), **components})
    elif components:
        own = {field.name: getattr(spec, field.name) for field in fields(spec)}
        spec = ModelSpec.from_dict(merge_choices(own, components))
    if weights not in ("random", "pretrained"):
        raise ConfigError(
            f"weights={weights!r}; write 'random' or 'pretrained', or load a saved model with mmblocks.load."
        )
    find_requested_backend("attention")  # a wrong MMBLOCKS_OPS is refused first
    seen = require_dry_build(spec)
    made_as = torch.float32 if weights == "random" else dtype
    require_room({part: (seen.count_parameters(part) or 0) * made_as.itemsize for part in PARTS})
    return build_checked(spec, weights=weights, dtype=dtype, seed=seed)


def build_checked(
    spec: ModelSpec, *, weights: str = "random", dtype: torch.dtype = torch.float32, seed: int | None = None
) -> OneVision:
    """As `build`, for a composition that was checked before: a run checks its recipe once and builds a model per stage."""
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model = build_from_spec(spec, backbone_on_meta=weights == "pretrained")
    if weights == "pretrained":
        model.encoder.load_pretrained()
        model.backbone.load_pretrained(dtype)
    return set_dtype(model, dtype)


def set_dtype(model: OneVision, dtype: torch.dtype) -> OneVision:
    """Give the weights a type, in place. Buffers keep theirs: rotary frequencies in bfloat16 misplace far tokens."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def build_from_spec(spec: ModelSpec, *, backbone_on_meta: bool = False) -> OneVision:
    """Build every component with the sizes of its neighbours. Weights are random, or absent for a backbone on meta."""
    encoder = encoders.build(spec.encoder)
    with torch.device("meta") if backbone_on_meta else nullcontext():
        backbone = backbones.build(spec.backbone)
    projector = projectors.build(spec.projector, in_dim=encoder.dim, out_dim=backbone.dim, grid=encoder.grid)
    router = build_router(spec, encoder, projector)
    return OneVision(encoder, projector, router, backbone, build_template(spec.template, backbone), spec)


def build_template(spec: Spec, backbone: Any) -> ChatTemplate:
    """A chat template that may ask for the backbone's text tokenizer, which is read when it does."""
    return templates.build(spec, text_tokenizer=LazyTextTokenizer.from_backbone(backbone))


def build_router(spec: ModelSpec, encoder: Any, projector: Any) -> Router:
    """The visual tokenizers of all scenarios, given the grid that the encoder and projector leave them."""
    pooling = poolings.build(spec.pooling)

    def build_tokenizer(scenario: Scenario) -> Any:
        return tokenizers.build(
            spec.tokenizer[scenario],
            view_px=encoder.view_px,
            grid=projector.out_grid(encoder.grid),
            spatial=encoder.spatial and projector.spatial,
            squash=encoder.squash,
            pooling=pooling,
        )

    return Router(
        image=build_tokenizer("image"), multi_image=build_tokenizer("multi_image"), video=build_tokenizer("video")
    )


@contextmanager
def limit_parameters(most: int) -> Iterator[None]:
    """While the block runs, a module that is given more parameters than this in all is a `ConfigError`.

    A stored number of blocks may be any number, and building them one by one would not end.
    """
    counted = 0

    def count_one(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal counted
        counted += 1
        if counted > most:
            raise ConfigError(f"the model would have more than {most} parameters; its files hold far fewer tensors.")

    hook = register_module_parameter_registration_hook(count_one)
    try:
        yield
    finally:
        hook.remove()


def count_parameters(module: nn.Module) -> int:
    """Parameters of a module, each shared one once."""
    return sum(p.numel() for p in module.parameters())
