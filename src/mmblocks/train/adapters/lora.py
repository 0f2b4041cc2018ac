"""Low-rank adapters on a backbone: added, merged, saved; the frozen weights around them may be quantized.

The layers are PEFT's (https://github.com/huggingface/peft). Adapters are inside the backbone's linear layers, so packed
batches, generation, gradient checkpointing and sharding see an ordinary model. Their names in a state dict end in
`lora_A.default.weight` and `lora_B.default.weight`, those of the weights around them in `base_layer.weight`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmblocks._optional import import_optional
from mmblocks.errors import ConfigError
from mmblocks.hub import HubReference
from mmblocks.model.convert.adapter import PEFT_PREFIX
from mmblocks.model.convert.keys import IN_MEMORY, to_theirs
from mmblocks.model.onevision import OneVision
from mmblocks.model.quantized import list_linear_layers, quantize_backbone, replace_modules
from mmblocks.model.trainable import list_adapters, train_only
from mmblocks.train.adapters.folder import ADAPTERS, BACKBONE_PREFIX, AdapterBase, NonAdapterWeights
from mmblocks.train.stages import Lora, Stage

ADAPTER = "default"


def prepare_trainable(model: OneVision, stage: Stage, *, seed: int = 0) -> None:
    """Prepare a model for a stage: add adapters where it trains some, then freeze all but the trained parts.

    Call it with the stage's starting weights, before sharding and before a state is restored.
    """
    if stage.lora is not None:
        add_lora(model, stage.lora, seed=seed)
    train_only(model, stage.train)


def add_lora(model: OneVision, lora: Lora, *, seed: int = 0) -> None:
    """Add adapters to every linear layer of the backbone's blocks, in place; at first they change nothing.

    With `lora.bits` the weights around them are quantized here, so the model must hold the stage's starting weights.
    Adapters are initialised from `seed`, in float32. Raises `ConfigError` when the blocks have no linear layer, or already
    have adapters.
    """
    peft = import_optional("peft", extra="train", to="training low-rank adapters (train.lora)")
    if list_adapters(model):
        raise ConfigError("the model has adapters already; merge them with merge_lora before it gets new ones.")
    targets = list_linear_layers(model)
    if lora.bits is not None:
        quantize_backbone(model, lora.bits)
    settings = {"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = peft.LoraConfig(**settings, target_modules=targets, bias="none")
        peft.inject_adapter_in_model(config, model.backbone.lm, ADAPTER)
    for adapter in list_adapters(model):
        adapter.float()


@contextmanager
def disable_lora(model: OneVision) -> Iterator[None]:
    """Switch the adapters off, for forward passes without gradients only."""
    layers: list[Any] = list(_find_lora_layers(model).values())
    # PEFT's own switch, enable_adapters(), also freezes the adapters, which in a sharded model cannot be undone.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


# Merging ------------------------------------------------------------------------------------------------------------


def merge_lora(model: OneVision) -> None:
    """Add the adapters to the weights they belong to and remove them, in place; a model without any stays as it is.

    A quantized weight becomes its dequantized form plus its adapter. The model must be whole, not sharded.
    """
    replace_modules(model, {name: _merge_layer(layer) for name, layer in _find_lora_layers(model).items()})
    if hasattr(model.backbone.lm, "peft_config"):
        del model.backbone.lm.peft_config


@contextmanager
def merge_temporarily(model: OneVision) -> Iterator[None]:
    """Merge the adapters, to save or measure the model inside the block; afterwards it is as before, to the bit."""
    layers = _find_lora_layers(model)
    replace_modules(model, {name: _merge_layer(layer) for name, layer in layers.items()})
    try:
        yield
    finally:
        replace_modules(model, layers)


@torch.no_grad()
def _merge_layer(layer: nn.Module) -> nn.Linear:
    """An ordinary linear layer with the weights of an adapted one."""
    adapted: Any = layer  # of PEFT, around a linear layer
    base = adapted.get_base_layer()
    weight: Tensor = base.weight
    merged = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
    merged.weight = nn.Parameter(weight + adapted.get_delta_weight(ADAPTER).to(weight.dtype), requires_grad=False)
    if base.bias is not None:
        merged.bias = base.bias
    return merged.train(layer.training)


def _find_lora_layers(model: OneVision) -> dict[str, nn.Module]:
    """PEFT's layers by their names in the language model."""
    named = model.backbone.lm.named_modules()
    return {name: module for name, module in named if hasattr(module, "adapter_layer_names")}


# On disk ------------------------------------------------------------------------------------------------------------


def save_adapter(
    model: OneVision, folder: Path | str, *, base: AdapterBase = "transformers", source: str | None = None
) -> Path:
    """Write the adapters, and the other trained weights, in PEFT's format, for the model that the stage started from.

    base: "transformers" names the layers as in the exported model (LLaVA-OneVision, LLaVA, LLaVA-NeXT), "backbone" as in
    the language model alone. source: that model, a folder or `org/name[@revision]`, as written into the adapter's config. Load it with
    peft.PeftModel.from_pretrained(that model, folder). Trained weights that have no name in that model go into a file of our
    own, which a log message and the folder's README.md describe and `mmblocks.model.convert.adapter.apply_adapter` reads.
    """
    peft = import_optional("peft", extra="train", to="saving low-rank adapters")
    layers = _find_lora_layers(model)
    if not layers:
        raise ConfigError("the model has no adapters to save.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    is_backbone = base == "backbone"
    names = {name: name if is_backbone else to_theirs(BACKBONE_PREFIX + name, IN_MEMORY) for name in layers}
    tensors = {
        f"{names[name]}.{kind}.weight": getattr(layer, kind)[ADAPTER].weight.detach().cpu().contiguous()
        for name, layer in layers.items()
        for kind in ("lora_A", "lora_B")
    }
    others = NonAdapterWeights.from_model(model, base)
    from safetensors.torch import save_file

    save_file({PEFT_PREFIX + name: t for name, t in {**tensors, **others.base_tensors}.items()}, folder / ADAPTERS)
    others.write_own_tensors(folder)
    config, repository = model.backbone.lm.peft_config[ADAPTER], HubReference.parse(source or "")
    peft.LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(names.values()),  # full names, which no other part has
        modules_to_save=others.modules_to_save,
        bias="none",
        base_model_name_or_path=source if repository is None else repository.repository,
        revision=repository and repository.revision,
        inference_mode=True,
        task_type="CAUSAL_LM" if is_backbone else None,
    ).save_pretrained(folder)
    return folder
