"""Shape and size of a component beside usual neighbours, from building it on the meta device: no weights, no network."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mmblocks.components import describe_capabilities
from mmblocks.errors import ConfigError
from mmblocks.registry import Registry
from mmblocks.settings import REQUIRED
from mmblocks.shapes import SCENARIOS, Size, VisualShape

if TYPE_CHECKING:
    from torch import nn

KINDS = ("encoder", "projector", "pooling", "tokenizer", "backbone")
VIEW_PX, GRIDS = Size(384, 384), (Size(27, 27), Size(24, 24), Size(1, 257))
IN_DIM, OUT_DIM = 1152, 3584
EXAMPLE_VISUALS = {
    "image": VisualShape("image", Size(700, 1000)),
    "multi_image": VisualShape("image", Size(700, 1000)),
    "video": VisualShape("video", Size(720, 1280), 900, 30.0),
}


def list_facts(registry: Registry[Any], name: str) -> dict[str, str]:
    """Shape, size and capabilities of a component at its usual settings.

    Empty for a component that cannot be built from its defaults, or only from files of the hub. Chat templates, sources and
    tasks are not built: their classes declare their capabilities.
    """
    if registry.kind in ("template", "source", "task"):
        return dict(_describe_capabilities(registry, registry[name].builder))
    defaults = {s.name: s.default for s in registry.list_settings(name)}
    is_on_hub = registry.kind == "backbone" and not defaults.get("family") and not defaults.get("vocab_size")
    if registry.kind not in KINDS or REQUIRED in defaults.values() or is_on_hub:
        return {}
    import torch

    try:
        with torch.device("meta"):
            return dict(_describe(registry, name))
    except ConfigError:
        return {}


def _describe(registry: Registry[Any], name: str) -> Iterator[tuple[str, str]]:
    match registry.kind:
        case "encoder":
            encoder = registry.build(name)
            order = "" if encoder.spatial else ", without spatial order"
            yield "shape", f"{encoder.view_px} px -> {encoder.grid} cells of {encoder.dim}{order}"
            yield "size", _format_parameters(encoder)
            yield from _describe_capabilities(registry, encoder)
        case "projector":
            for grid, in_dim in itertools.product(GRIDS, (IN_DIM, OUT_DIM)):
                try:
                    projector = registry.build(name, in_dim=in_dim, out_dim=OUT_DIM, grid=grid)
                    out_grid = projector.out_grid(grid)
                except ConfigError:
                    continue
                order = "" if projector.spatial else ", without spatial order"
                yield "shape", f"{grid} cells of {in_dim} -> {out_grid} cells of {OUT_DIM}{order}"
                yield "size", _format_parameters(projector)
                yield from _describe_capabilities(registry, projector)
                return
        case "pooling":
            pooling = registry.build(name)
            grids = ", ".join(f"{grid} -> {pooling.out_grid(grid)}" for grid in GRIDS[:2])
            yield "shape", f"{grids} cells{'' if pooling.linear else ', not linear'}"
        case "tokenizer":
            yield from _describe_tokenizer(registry, name)
        case "backbone":
            backbone = registry.build(name)
            yield "shape", f"rows of {backbone.dim} -> {backbone.vocab_size} words, up to {backbone.max_tokens} tokens"
            yield "size", _format_parameters(backbone)


def _describe_tokenizer(registry: Registry[Any], name: str) -> Iterator[tuple[str, str]]:
    from mmblocks.components import poolings

    for grid in GRIDS[:2]:
        wired = {"view_px": VIEW_PX, "grid": grid, "spatial": True, "squash": True}
        tokenizer = registry.build(name, **wired, pooling=poolings.build("bilinear"))
        if tokenizer.find_faults():
            continue
        scenario = next(s for s in SCENARIOS if s in tokenizer.scenarios)
        plan = tokenizer.plan(EXAMPLE_VISUALS[scenario])
        visual = "30 s of 1280x720 at 30 frames per second" if scenario == "video" else "an image of 1000x700 px"
        yield "shape", f"{visual}, views of {grid} cells -> {len(plan.views)} views, {plan.num_tokens} tokens"
        yield "serves", ", ".join(sorted(tokenizer.scenarios))
        yield from _describe_capabilities(registry, tokenizer)
        return


def _describe_capabilities(registry: Registry[Any], component: object) -> Iterator[tuple[str, str]]:
    if sentences := describe_capabilities(component, registry.capabilities):
        yield "declares", " ".join(sentences)


def _format_parameters(module: nn.Module) -> str:
    count = sum(p.numel() for p in module.parameters())
    return f"{count / 1e6:,.1f} M parameters" if count >= 100_000 else f"{count:,} parameters"
