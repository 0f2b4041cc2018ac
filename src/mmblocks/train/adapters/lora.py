"""Low-rank adapters on a backbone: put in, trained, merged away; the backbone beside them quantized if asked.

The layers are PEFT's (https://github.com/huggingface/peft). Adapters sit inside the backbone's linear layers, so packed
batches, generation, recomputing and sharding see an ordinary model. Their names in a state dict end in
`lora_A.default.weight` and `lora_B.default.weight`, the weights around them in `base_layer.weight`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmblocks._optional import need
from mmblocks.errors import ConfigError
from mmblocks.model.convert.keys import IN_MEMORY, to_theirs
from mmblocks.model.onevision import OneVision
from mmblocks.model.trainable import adapters, train_only
from mmblocks.train.adapter_folder import ADAPTERS, BACKBONE, PEFT_PREFIX, Base, Beside
from mmblocks.train.adapters.quantized import Quantized
from mmblocks.train.stages import Lora, Stage

ADAPTER = "default"


def prepare(model: OneVision, stage: Stage, *, seed: int = 0) -> None:
    """Make a model ready for a stage: adapters where it trains some, then everything frozen but what learns.

    Call it with the stage's starting weights and before sharding; what was learned is restored afterwards.
    """
    if stage.lora is not None:
        add_lora(model, stage.lora, seed=seed)
    train_only(model, stage.train)


def add_lora(model: OneVision, lora: Lora, *, seed: int = 0) -> None:
    """Put adapters on every linear layer of the backbone's blocks, in place; at first they change nothing.

    With `lora.bits` the weights around them are quantized here, so the model must hold the stage's starting weights.
    Adapters are drawn from `seed`, in float32. Raises `ConfigError` when the blocks hold no linear layer, or hold
    adapters already.
    """
    peft = need("peft", extra="train", to="training low-rank adapters (train.lora)")
    if adapters(model):
        raise ConfigError("the model has adapters already; merge them with merge_lora before it gets new ones.")
    targets = linear_layers(model)
    if lora.bits is not None:
        for name in targets:
            _put(model.backbone.lm, name, Quantized.of(model.backbone.lm.get_submodule(name), lora.bits))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(_config(peft, lora, targets), model.backbone.lm, ADAPTER)
    for adapter in adapters(model):
        adapter.float()


def linear_layers(model: OneVision) -> list[str]:
    """Names of the linear layers inside the backbone's language model, its output head apart."""
    lm = model.backbone.lm
    head = lm.get_output_embeddings()
    names = [name for name, module in lm.named_modules() if isinstance(module, nn.Linear) and module is not head]
    if not names:
        raise ConfigError(
            f"backbone {model.backbone.config.model_type!r} has no linear layer (torch.nn.Linear) that adapters could be "
            "put on; train 'backbone' instead of 'lora'."
        )
    return names


def _config(peft: Any, lora: Lora, targets: list[str]) -> Any:
    return peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, bias="none"
    )


@contextmanager
def without_lora(model: OneVision) -> Iterator[None]:
    """The model as if it had no adapters. For forward passes without gradients only."""
    layers = list(_layers(model).values())
    # PEFT's own switch, enable_adapters(), also freezes the adapters, which a sharded model would keep for good.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


# Merging ------------------------------------------------------------------------------------------------------------


def merge_lora(model: OneVision) -> None:
    """Add the adapters to the weights they belong to and take them out, in place; a model without any stays as it is.

    A quantized weight becomes the ordinary one that it stood for in training (its codes read back), plus its adapter.
    The model must be whole, not sharded.
    """
    for name, layer in _layers(model).items():
        _put(model.backbone.lm, name, _merged(layer))
    _forget(model)


@contextmanager
def merged(model: OneVision) -> Iterator[None]:
    """The model with its adapters merged, to be saved or measured in between; afterwards it is as before, to the bit."""
    layers = _layers(model)
    for name, layer in layers.items():
        _put(model.backbone.lm, name, _merged(layer))
    try:
        yield
    finally:
        for name, layer in layers.items():
            _put(model.backbone.lm, name, layer)


@torch.no_grad()
def _merged(layer: Any) -> nn.Linear:
    """A linear layer with the weights of an adapted one."""
    base = layer.get_base_layer()
    weight: Tensor = base.weight
    new = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
    new.weight = nn.Parameter(weight + layer.get_delta_weight(ADAPTER).to(weight.dtype), requires_grad=False)
    if base.bias is not None:
        new.bias = base.bias
    return new.train(layer.training)


def _layers(model: OneVision) -> dict[str, Any]:
    """PEFT's layers by their names in the language model."""
    named = model.backbone.lm.named_modules()
    return {name: module for name, module in named if hasattr(module, "adapter_layer_names")}


def _put(lm: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(lm.get_submodule(parent), last, module)


def _forget(model: OneVision) -> None:
    if hasattr(model.backbone.lm, "peft_config"):
        del model.backbone.lm.peft_config


# On disk ------------------------------------------------------------------------------------------------------------


def save_adapter(
    model: OneVision, folder: Path | str, *, base: Base = "transformers", source: str | None = None
) -> Path:
    """Write the adapters, and what learns beside them, as PEFT does, for the model that they were put on.

    base: "transformers" names the layers as the exported model (LLaVA-OneVision, LLaVA, LLaVA-NeXT) has them,
    "backbone" as the language model alone. source: where that model is, as written into the adapter's config.
    Load it with peft.PeftModel.from_pretrained(that model, folder). What learns and has no name in that model is in a file
    of our own, which the log, the folder's README.md and `adapter_folder.apply_adapter` know.
    """
    peft = need("peft", extra="train", to="saving low-rank adapters")
    layers = _layers(model)
    if not layers:
        raise ConfigError("the model has no adapters to save.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{_named(name, base)}.{kind}.weight": getattr(layer, kind)[ADAPTER].weight.detach().cpu().contiguous()
        for name, layer in layers.items()
        for kind in ("lora_A", "lora_B")
    }
    beside = Beside.of(model, base)
    from safetensors.torch import save_file

    save_file({PEFT_PREFIX + name: tensor for name, tensor in {**tensors, **beside.named}.items()}, folder / ADAPTERS)
    beside.write_ours(folder)
    config = model.backbone.lm.peft_config[ADAPTER]
    written = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=[_named(name, base) for name in layers],
        modules_to_save=beside.modules,
        bias="none",
        base_model_name_or_path=source,
        inference_mode=True,
        task_type="CAUSAL_LM" if base == "backbone" else None,
    )
    written.save_pretrained(folder)
    return folder


def _named(name: str, base: Base) -> str:
    """A linear layer by its full name in the model that the adapter is for: no tower has a layer of that name."""
    return name if base == "backbone" else to_theirs(BACKBONE + name, IN_MEMORY)
