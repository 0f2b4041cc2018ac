"""A saved model with other visual tokenizers, pooling, chat template or image reading, and the same weights."""

from dataclasses import replace

from mmblocks.errors import ConfigError
from mmblocks.faults import Fault
from mmblocks.model.build import build_router, build_template
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import ModelSpec
from mmblocks.settings import find_differing_keys

WEIGHTED_PARTS = ("encoder", "projector", "backbone")
SOURCE_SETTINGS = ("checkpoint", "text_tokenizer")
"""Settings that name the source of weights and vocabulary, not what the part computes."""


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

    Raises `ConfigError` when parts with weights differ, or when a tokenizer needs learned tokens that the model lacks.
    """
    if faults := find_part_faults(model.spec, wanted):
        raise ConfigError.from_faults(faults, "the saved model's parts are not the recipe's")
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
