"""A saved model in another composition around the same weights: visual tokenizers, pooling, template, how images are read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mmblocks.errors import ConfigError
from mmblocks.faults import Fault
from mmblocks.model.build import build_router, build_template
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import ModelSpec
from mmblocks.settings import find_differing_keys

WEIGHTED_PARTS = ("encoder", "projector", "backbone")
SOURCE_SETTINGS = ("checkpoint", "text_tokenizer")
"""Settings that say where weights and words come from, not what the part is."""


def find_part_faults(stored: ModelSpec, wanted: ModelSpec) -> list[Fault]:
    """Why the weights of one composition cannot be those of another: settings of parts that hold weights."""
    one, other = stored.to_dict(), wanted.to_dict()
    cure = "Exchange parts with `mmblocks swap` first, or write the recipe's model as the saved one is."
    return [
        Fault(part, f"{', '.join(keys)} {'differ' if len(keys) > 1 else 'differs'} from the saved model's.", cure)
        for part in WEIGHTED_PARTS
        if (keys := find_differing_keys(_drop_source_settings(one[part]), _drop_source_settings(other[part])))
    ]


def recompose_model(model: OneVision, wanted: ModelSpec) -> OneVision:
    """The same model with the visual tokenizers, pooling, chat template and image reading of `wanted`, in place.

    Raises `ConfigError` when parts with weights differ, or when a tokenizer inserts marks that the model has not.
    """
    if faults := find_part_faults(model.spec, wanted):
        raise ConfigError.from_faults(faults, "the saved model's parts are not the recipe's")
    spec = replace(
        model.spec,
        pooling=wanted.pooling,
        tokenizer=wanted.tokenizer,
        template=wanted.template,
        images=wanted.images,
    )
    router = build_router(spec, model.encoder, model.projector)
    if strange := set(router.learned_tokens) - set(model.learned_tokens.keys()):
        raise ConfigError(
            f"the recipe's tokenizers insert the marks {', '.join(sorted(strange))}, which the saved model has not learned; "
            "add them with `mmblocks swap` first."
        )
    model.router, model.template, model.spec = router, build_template(spec.template, model.backbone), spec
    return model


def _drop_source_settings(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _drop_source_settings(v) for k, v in value.items() if k not in SOURCE_SETTINGS}
    return [_drop_source_settings(v) for v in value] if isinstance(value, list) else value
