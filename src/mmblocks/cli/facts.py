"""What a component makes of usual neighbours, read from the component itself on the meta device: no weights, no network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmblocks.components import describe_capabilities
from mmblocks.errors import ConfigError
from mmblocks.registry import Registry
from mmblocks.settings import REQUIRED
from mmblocks.shapes import SCENARIOS, Size, VisualShape

VIEW_PX, GRIDS = Size(384, 384), (Size(27, 27), Size(24, 24), Size(1, 257))
IN_DIM, OUT_DIM = 1152, 3584
EXAMPLE_VISUALS = {
    "image": VisualShape("image", Size(700, 1000)),
    "multi_image": VisualShape("image", Size(700, 1000)),
    "video": VisualShape("video", Size(720, 1280), 900, 30.0),
}


def list_facts(registry: Registry[Any], name: str) -> dict[str, str]:
    """Shape, parameters and capabilities of a component at its usual size; empty for what cannot be built by default.

    Chat templates and sources have no size; their classes declare what they are capable of.
    """
    if registry.kind not in _DESCRIBERS:
        return dict(_describe_capabilities(registry, registry[name].builder))
    if _incomplete(registry, name):
        return {}
    import torch

    try:
        with torch.device("meta"):
            return dict(_DESCRIBERS[registry.kind](registry, name))
    except ConfigError:
        return {}


def _incomplete(registry: Registry[Any], name: str) -> bool:
    """Whether it cannot be built from its defaults, or only from what lies elsewhere."""
    schema = {s.name: s.default for s in registry.list_settings(name)}
    elsewhere = registry.kind == "backbone" and not schema.get("family") and not schema.get("vocab_size")
    return REQUIRED in schema.values() or elsewhere


def _describe_encoder(registry: Registry[Any], name: str) -> Iterator[tuple[str, str]]:
    encoder = registry.build(name)
    order = "" if encoder.spatial else ", a row without an image's order"
    yield "shape", f"{encoder.view_px} px -> {encoder.grid} cells of {encoder.dim}{order}"
    yield "size", _format_parameters(encoder)
    yield from _describe_capabilities(registry, encoder)


def _describe_projector(registry: Registry[Any], name: str) -> Iterator[tuple[str, str]]:
    for grid in GRIDS:
        for in_dim in (IN_DIM, OUT_DIM):
            try:
                projector = registry.build(name, in_dim=in_dim, out_dim=OUT_DIM, grid=grid)
                out = projector.out_grid(grid)
            except ConfigError:
                continue
            order = "" if projector.spatial else ", without an image's order"
            yield "shape", f"{grid} cells of {in_dim} -> {out} cells of {OUT_DIM}{order}"
            yield "size", _format_parameters(projector)
            yield from _describe_capabilities(registry, projector)
            return


def _describe_pooling(registry: Registry[Any], name: str) -> Iterator[tuple[str, str]]:
    pooling = registry.build(name)
    taken = [f"{grid} -> {pooling.out_grid(grid)}" for grid in GRIDS[:2]]
    yield "shape", f"{', '.join(taken)} cells{'' if pooling.linear else ', not linear'}"


def _describe_tokenizer(registry: Registry[Any], name: str) -> Iterator[tuple[str, str]]:
    from mmblocks.components import poolings

    for grid in GRIDS[:2]:
        beside = {"view_px": VIEW_PX, "grid": grid, "spatial": True, "squash": True}
        tokenizer = registry.build(name, **beside, pooling=poolings.build("bilinear"))
        if tokenizer.reasons_against():
            continue
        scenario = next(s for s in SCENARIOS if s in tokenizer.scenarios)
        plan = tokenizer.plan(EXAMPLE_VISUALS[scenario])
        what = "30 s of 1280x720 at 30 per second" if scenario == "video" else "an image of 1000x700 px"
        yield "shape", f"{what}, views of {grid} cells -> {len(plan.views)} views, {plan.num_tokens} tokens"
        yield "serves", ", ".join(sorted(tokenizer.scenarios))
        yield from _describe_capabilities(registry, tokenizer)
        return


def _describe_backbone(registry: Registry[Any], name: str) -> Iterator[tuple[str, str]]:
    backbone = registry.build(name)
    yield "shape", f"rows of {backbone.dim} -> {backbone.vocab_size} words, up to {backbone.max_tokens} tokens"
    yield "size", _format_parameters(backbone)


def _describe_capabilities(registry: Registry[Any], component: object) -> Iterator[tuple[str, str]]:
    if sentences := describe_capabilities(component, registry.capabilities):
        yield "declares", " ".join(sentences)


def _format_parameters(module: Any) -> str:
    count = sum(p.numel() for p in module.parameters())
    return f"{count / 1e6:,.1f} M parameters" if count >= 100_000 else f"{count:,} parameters"


_DESCRIBERS = {
    "encoder": _describe_encoder,
    "projector": _describe_projector,
    "pooling": _describe_pooling,
    "tokenizer": _describe_tokenizer,
    "backbone": _describe_backbone,
}
