"""What a composition takes from the hub and this machine does not have yet: text tokenizers and weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmblocks.components import backbones, encoders, projectors
from mmblocks.model.checks.faults import Missing, component_faults, resolved
from mmblocks.model.checks.limits import on_this_machine
from mmblocks.registry import Registry

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
TOKENIZER = "tokenizer_config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def missing_tokenizers(model: Any) -> list[Missing]:
    """Text tokenizers of the hub that are not in its cache; parts that are at fault name none."""
    return [
        Missing(
            key,
            f"the text tokenizer of {source!r} is not on this machine.",
            f"hf download {source} --include 'tokenizer*' --include 'vocab*' --include 'merges*' --include '*.json'",
            fetched=True,
        )
        for key, source in _tokenizers(model)
        if _is_on_hub(source) and on_this_machine(source, TOKENIZER) is None
    ]


def missing_weights(model: Any) -> list[Missing]:
    """Weights of the hub that are not in its cache."""
    return [
        Missing(key, f"the weights of {source!r} are not on this machine.", f"hf download {source}", fetched=True)
        for key, source in _checkpoints(model)
        if _is_on_hub(source) and all(on_this_machine(source, name) is None for name in WEIGHTS)
    ]


def _tokenizers(model: Any) -> Iterator[tuple[str, str]]:
    for kind, registry in (("backbone", backbones), ("projector", projectors)):
        settings = _settings(model, kind, registry)
        if source := settings.get("text_tokenizer") or (settings.get("checkpoint") if kind == "backbone" else None):
            yield f"model.{kind}.text_tokenizer", source


def _checkpoints(model: Any) -> Iterator[tuple[str, str]]:
    for kind, registry in (("encoder", encoders), ("backbone", backbones)):
        spec = model.get(kind) if isinstance(model, Mapping) else None
        yield from _checkpoints_of(f"model.{kind}", registry, spec)


def _checkpoints_of(key: str, registry: Registry[Any], spec: Any) -> Iterator[tuple[str, str]]:
    if spec is None or component_faults(key, registry, spec):
        return
    for inner, member in registry.members(spec).items():
        yield from _checkpoints_of(f"{key}.{inner}", registry, member)
    settings = resolved(registry, spec)
    if source := _hub_id(settings):
        yield f"{key}.checkpoint", source


def _hub_id(settings: Mapping[str, Any]) -> str | None:
    """Where the weights of a part are kept; those of timm's models are named by a tag."""
    checkpoint = settings.get("checkpoint")
    if checkpoint is None or "model_name" not in settings or "/" in checkpoint:
        return checkpoint
    from mmblocks.encoders.timm_vit import hub_id

    return hub_id(settings["model_name"], checkpoint)


def _settings(model: Any, kind: str, registry: Registry[Any]) -> Mapping[str, Any]:
    spec = model.get(kind) if isinstance(model, Mapping) else None
    return {} if spec is None or component_faults("", registry, spec) else resolved(registry, spec)


def _is_on_hub(source: str) -> bool:
    return HUB_ID.fullmatch(source) is not None and not Path(source).exists()
