"""The names and settings that make up a model, as plain values: what recipes compose and checkpoints store. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmblocks.components import REGISTRIES
from mmblocks.errors import ConfigError
from mmblocks.image_reading import DEFAULT_READING, ImageReading
from mmblocks.registry import Spec, read_sub_components, split_spec
from mmblocks.settings import Setting, format_suggestion, read_settings
from mmblocks.shapes import SCENARIOS

PARTS = ("encoder", "projector", "learned_tokens", "backbone")
ONEVISION_TOKENIZERS = {"image": "anyres_max", "multi_image": "pad_newline", "video": "frames"}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A composition: each component is a name, or a mapping of its name and settings.

    The defaults are LLaVA-OneVision's (https://arxiv.org/abs/2408.03326) around an encoder and a backbone of choice.
    `tokenizer` holds one visual tokenizer per scenario: image, multi_image, video. `images` says how images are read.
    """

    encoder: str | Mapping[str, Any] = "siglip_so400m_384"
    projector: str | Mapping[str, Any] = "mlp"
    pooling: str | Mapping[str, Any] = "bilinear"
    tokenizer: Mapping[str, Any] = field(default_factory=lambda: dict(ONEVISION_TOKENIZERS))
    backbone: str | Mapping[str, Any] = "qwen2_0_5b"
    template: str | Mapping[str, Any] = "qwen_2"
    images: ImageReading = DEFAULT_READING

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ModelSpec:
        """Read plain values. Raises `ConfigError` for unknown keys; scenarios left out get OneVision's tokenizer.

        Models saved before `images` was a setting have none, and get the default.
        """
        tokenizer = raw.get("tokenizer", {})
        if not isinstance(tokenizer, Mapping):
            raise ConfigError(
                f"model.tokenizer is {tokenizer!r}; write a visual tokenizer for each of {', '.join(SCENARIOS)}."
            )
        unknown = [s for s in tokenizer if s not in SCENARIOS]
        if unknown:
            raise ConfigError(
                f"model.tokenizer has no scenario {unknown[0]!r}.{format_suggestion(unknown[0], SCENARIOS)}"
            )
        images = raw.get("images", {})
        read_as = images if isinstance(images, ImageReading) else ImageReading.from_dict(images, "model.images")
        return read_settings(
            cls, {**raw, "tokenizer": {**ONEVISION_TOKENIZERS, **tokenizer}, "images": read_as}, "model"
        )

    def list_slots(self) -> dict[str, tuple[str, Spec]]:
        """Every component slot by its config key: {"model.encoder": ("encoder", spec), "model.tokenizer.image": ...}."""
        plain = {k: getattr(self, k) for k in ("encoder", "projector", "pooling", "backbone", "template")}
        slots = {f"model.{kind}": (kind, spec) for kind, spec in plain.items()}
        return slots | {f"model.tokenizer.{s}": ("tokenizer", self.tokenizer[s]) for s in SCENARIOS}

    def to_dict(self) -> dict[str, Any]:
        """The spec as json-ready values, every setting of every component written out."""
        named = {key: _expand_settings(kind, spec) for key, (kind, spec) in self.list_slots().items()}
        kinds = ("encoder", "projector", "pooling", "backbone", "template")
        tokenizer = {s: named[f"model.tokenizer.{s}"] for s in SCENARIOS}
        return {k: named[f"model.{k}"] for k in kinds} | {"tokenizer": tokenizer, "images": self.images.to_dict()}


def _expand_settings(kind: str, spec: Spec) -> dict[str, Any]:
    name, settings = split_spec(spec)
    schema = REGISTRIES[kind].list_settings(name)
    return {"name": name} | {s.name: _to_json_value(kind, s, settings.get(s.name, s.default)) for s in schema}


def _to_json_value(kind: str, setting: Setting, value: Any) -> Any:
    """A setting's value as json knows it; components in it are written out too."""
    inner = [_expand_settings(kind, spec) for spec in read_sub_components(setting, value).values()]
    if not inner:
        return _to_lists(value)
    return inner if isinstance(value, list | tuple) else inner[0]


def _to_lists(value: Any) -> Any:
    """Tuples as lists, so that a spec equals what JSON gives back."""
    return [_to_lists(v) for v in value] if isinstance(value, list | tuple) else value
