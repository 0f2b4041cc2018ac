"""A language model whose layers are spread over several devices; accelerate decides which layer goes where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mmblocks._optional import import_optional
from mmblocks.errors import ConfigError

if TYPE_CHECKING:
    from mmblocks.backbones.causal_lm import CausalLM
    from mmblocks.model.onevision import OneVision

RESERVED = 0.1
"""Share of a device's free memory that is left to activations, caches and the other parts of the model."""


def spread_layers(model: OneVision, devices: Sequence[torch.device]) -> None:
    """Move the language model's layers to CUDA devices in equal shares, in order, and all other parts to the first of them.

    The model is for inference then. Raises `ConfigError` where the weights do not fit.
    """
    for part in (model.encoder, model.projector, model.learned_tokens):
        part.to(devices[0])
    spread_backbone(model.backbone, devices, [torch.cuda.mem_get_info(device)[0] for device in devices])


def spread_backbone(backbone: CausalLM, devices: Sequence[torch.device], free_bytes: Sequence[int]) -> None:
    """Move the layers of a language model alone. free_bytes: of each device.

    The inputs of each layer are moved to its device; hidden states and logits come back to that of the embeddings. Steps are
    not captured as CUDA graphs.
    """
    import_optional("accelerate", extra="devices", to="spreading a model over several devices")
    shares = _divide_modules(backbone.lm, [int(free * (1 - RESERVED)) for free in free_bytes])
    for name, share in shares.items():
        module = backbone.lm.get_submodule(name)
        device = devices[share] if any(True for _ in module.parameters()) else devices[0]
        module.to(device)
        module.register_forward_pre_hook(partial(_move_inputs, device), with_kwargs=True, prepend=True)
    backbone.devices = tuple(devices)


def _divide_modules(lm: nn.Module, limits: Sequence[int]) -> Mapping[str, int]:
    """The number of the device of each part of a language model; layers are whole, and tied weights are in one place."""
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    whole: Any = getattr(lm, "_no_split_modules", None)
    whole_layers: list[str] = list(whole or ())
    balanced: Any = get_balanced_memory(lm, dict(enumerate(limits)), whole_layers)
    shares: Any = infer_auto_device_map(lm, balanced, whole_layers)
    if outside := [name for name, share in shares.items() if not isinstance(share, int)]:
        wanted = sum(p.numel() * p.element_size() for p in lm.parameters())
        raise ConfigError(
            f"the language model's weights ({wanted / 2**30:.1f} GiB) do not fit on {len(limits)} devices with "
            f"{', '.join(f'{limit / 2**30:.1f}' for limit in limits)} GiB to use (from {outside[0]} on); name more devices, or "
            "keep it in 8 or 4 bits."
        )
    return shares


def _move_inputs(
    device: torch.device, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    from accelerate.utils import send_to_device

    copies = {id(value): send_to_device(value, device) for value in kwargs.values()}  # one object stays one
    moved: Any = send_to_device(args, device)
    return moved, {name: copies[id(value)] for name, value in kwargs.items()}
