"""A saved model with other visual tokenizers, pooling, chat template or image reading, and the same weights."""

from __future__ import annotations

from dataclasses import replace

from mmblocks.errors import ConfigError
from mmblocks.model.build import build_router, build_template
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import ModelSpec
from mmblocks.settings import find_differing_keys

WEIGHTED_PARTS = ("encoder", "projector", "backbone")
SOURCE_SETTINGS = ("checkpoint", "text_tokenizer")
"""Settings that name the source of weights and vocabulary, not what the part computes."""


def reasons_against(stored: ModelSpec, wanted: ModelSpec) -> list[str]:
    """Why weights of one composition do not fit another: differing settings of parts that hold weights."""
    one, other = stored.to_dict(), wanted.to_dict()
    return [
        f"{part}: {', '.join(keys)} {'differ' if len(keys) > 1 else 'differs'} from the saved model's"
        for part in WEIGHTED_PARTS
        if (keys := find_differing_keys(_drop_source_settings(one[part]), _drop_source_settings(other[part])))
    ]


def recompose_model(model: OneVision, wanted: ModelSpec) -> OneVision:
    """The same model with the visual tokenizers, pooling, chat template and image reading of `wanted`, in place.

    Raises `ConfigError` when parts with weights differ, or when a tokenizer needs learned tokens that the model lacks.
    """
    if reasons := reasons_against(model.spec, wanted):
        raise ConfigError(
            "the saved model's parts are not the recipe's:\n"
            + "".join(f"  - {reason}\n" for reason in reasons)
            + "Swap parts with `mmblocks swap` first, or give the recipe the saved model's settings."
        )
    spec = replace(wanted, **{part: getattr(model.spec, part) for part in WEIGHTED_PARTS})
    router = build_router(spec, model.encoder, model.projector)
    if missing := set(router.learned_tokens) - set(model.learned_tokens.keys()):
        raise ConfigError(
            f"the recipe's tokenizers insert the learned tokens {', '.join(sorted(missing))}, which the saved model lacks; "
            "add them with `mmblocks swap` first."
        )
    model.router, model.template, model.spec = router, build_template(spec.template, model.backbone), spec
    return model


def _drop_source_settings(value: object) -> object:
    if isinstance(value, dict):
        return {k: _drop_source_settings(v) for k, v in value.items() if k not in SOURCE_SETTINGS}
    return [_drop_source_settings(v) for v in value] if isinstance(value, list) else value
