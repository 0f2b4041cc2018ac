"""Choose what learns by object, never by a piece of a parameter's name."""

from collections.abc import Iterable

from torch import nn

from mmblocks.errors import ConfigError
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import PARTS
from mmblocks.settings import format_suggestion

LORA = "lora"
"""The name under which the adapters inside a backbone are chosen; "backbone" is the rest of it."""


def find_part(model: OneVision, name: str) -> nn.Module:
    """A part of a model by its name. Raises `ConfigError` for another name."""
    if name not in PARTS:
        raise ConfigError(f"the model has no part {name!r}.{format_suggestion(name, PARTS)}")
    return getattr(model, name)


def list_adapters(model: OneVision) -> list[nn.Module]:
    """The low-rank adapters inside a backbone's linear layers; none unless `mmblocks.train.adapters.lora` has put them there.

    A layer of PEFT says under `adapter_layer_names` which of its members are adapters.
    """
    return [getattr(m, name) for m in model.backbone.modules() for name in getattr(m, "adapter_layer_names", ())]


def list_trainable_parameters(model: OneVision, name: str) -> list[nn.Parameter]:
    """The parameters of a part, or of the adapters ("lora"). Raises `ConfigError` for a name the model does not have."""
    low_rank = [p for adapter in list_adapters(model) for p in adapter.parameters()]
    if name == LORA:
        if not low_rank:
            raise ConfigError(
                "the model has no adapters to train; put them in with mmblocks.train.adapters.lora.add_lora."
            )
        return low_rank
    apart = set(map(id, low_rank))
    return [p for p in find_part(model, name).parameters() if id(p) not in apart]


def train_only(model: OneVision, names: Iterable[str]) -> None:
    """Let the named parts learn and freeze the others. "lora" are the adapters, "backbone" what is around them.

    A model in training mode stays in it, its frozen parts in evaluation mode.
    """
    wanted = {id(p) for name in names for p in list_trainable_parameters(model, name)}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in wanted)
    model.train(model.training)
