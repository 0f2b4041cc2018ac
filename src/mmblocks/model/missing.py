"""What a composition takes from the hub and this machine does not have yet: text tokenizers and weights."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmblocks.components import backbones, encoders, projectors
from mmblocks.faults import Fault
from mmblocks.model.checks.limits import find_local_folder
from mmblocks.registry import Registry

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
TOKENIZER = "tokenizer_config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def find_missing_tokenizers(model: object) -> list[Fault]:
    """Text tokenizers of the hub that are not in its cache; parts that are at fault name none."""
    return [
        Fault(
            key,
            f"the text tokenizer of {source!r} is not on this machine.",
            f"hf download {source} --include 'tokenizer*' --include 'vocab*' --include 'merges*' --include '*.json'",
            "fetchable",
        )
        for key, source in _list_tokenizer_sources(model)
        if _is_on_hub(source) and find_local_folder(source, TOKENIZER) is None
    ]


def find_missing_weights(model: object) -> list[Fault]:
    """Weights of the hub that are not in its cache."""
    return [
        Fault(key, f"the weights of {source!r} are not on this machine.", f"hf download {source}", "fetchable")
        for kind, registry in (("encoder", encoders), ("backbone", backbones))
        for key, source in _list_checkpoint_sources(f"model.{kind}", registry, _find_part(model, kind))
        if _is_on_hub(source) and all(find_local_folder(source, name) is None for name in WEIGHTS)
    ]


def _find_part(model: object, kind: str) -> object:
    return model.get(kind) if isinstance(model, Mapping) else None


def _list_tokenizer_sources(model: object) -> Iterator[tuple[str, str]]:
    for kind, registry in (("backbone", backbones), ("projector", projectors)):
        part = _find_part(model, kind)
        settings = {} if part is None or registry.find_own_faults(part) else registry.resolve_settings(part)
        if source := settings.get("text_tokenizer") or (settings.get("checkpoint") if kind == "backbone" else None):
            yield f"model.{kind}.text_tokenizer", source


def _list_checkpoint_sources(key: str, registry: Registry[Any], spec: object) -> Iterator[tuple[str, str]]:
    if spec is None or registry.find_own_faults(spec):
        return
    for inner, member in registry.find_sub_components(spec).items():
        yield from _list_checkpoint_sources(f"{key}.{inner}", registry, member)
    settings = registry.resolve_settings(spec)
    source = settings.get("checkpoint")
    if source is not None and "model_name" in settings and "/" not in source:  # a tag of timm's
        from mmblocks.encoders.timm_vit import find_hub_id

        source = find_hub_id(settings["model_name"], source)
    if source:
        yield f"{key}.checkpoint", source


def _is_on_hub(source: str) -> bool:
    return HUB_ID.fullmatch(source) is not None and not Path(source).exists()
