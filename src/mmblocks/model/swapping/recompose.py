"""A saved model in another composition around the same weights: visual tokenizers, pooling, template, how images are read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mmblocks.errors import ConfigError
from mmblocks.model.build import wire_template, wire_tokenizers
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import ModelSpec
from mmblocks.settings import differing

WEIGHTY = ("encoder", "projector", "backbone")
PLACES = ("checkpoint", "text_tokenizer")
"""Settings that say where weights and words come from, not what the part is."""


def reasons_against(stored: ModelSpec, wanted: ModelSpec) -> list[str]:
    """Why the weights of one composition cannot be those of another: settings of parts that hold weights."""
    one, other = stored.plain(), wanted.plain()
    return [
        f"{part}: {', '.join(keys)} {'differ' if len(keys) > 1 else 'differs'} from the saved model's"
        for part in WEIGHTY
        if (keys := differing(_without_places(one[part]), _without_places(other[part])))
    ]


def recomposed(model: OneVision, wanted: ModelSpec) -> OneVision:
    """The same model with the visual tokenizers, pooling, chat template and image reading of `wanted`, in place.

    Raises `ConfigError` when parts with weights differ, or when a tokenizer inserts marks that the model has not.
    """
    if reasons := reasons_against(model.spec, wanted):
        raise ConfigError(
            "the saved model's parts are not the recipe's:\n"
            + "".join(f"  - {reason}\n" for reason in reasons)
            + "Exchange parts with `mmblocks swap` first, or write the recipe's model as the saved one is."
        )
    spec = replace(
        model.spec,
        pooling=wanted.pooling,
        tokenizer=wanted.tokenizer,
        template=wanted.template,
        images=wanted.images,
    )
    router = wire_tokenizers(spec, model.encoder, model.projector)
    if strange := set(router.marks) - set(model.marks.keys()):
        raise ConfigError(
            f"the recipe's tokenizers insert the marks {', '.join(sorted(strange))}, which the saved model has not learned; "
            "add them with `mmblocks swap` first."
        )
    model.router, model.template, model.spec = router, wire_template(spec.template, model.backbone), spec
    return model


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_places(v) for k, v in value.items() if k not in PLACES}
    return [_without_places(v) for v in value] if isinstance(value, list) else value
