"""Small models of a language model's config, on which its family's code is tried out."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

from mmblocks.backbones.family_config import EXPERT_COUNTS
from mmblocks.tensors import assign_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def shrink_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config with few heads, few experts, few tokens and a small width; what decides which code runs is kept."""
    narrow = shrink_vocabulary(config)
    heads, groups = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    few = 2 if groups in (None, heads) else 4
    sizes = {
        "num_attention_heads": few,
        "num_key_value_heads": 1 if groups == 1 else 2,
        "hidden_size": few * head_dim,
        "intermediate_size": 16,
        "moe_intermediate_size": 16,
        **dict.fromkeys(EXPERT_COUNTS, 4),
        **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token"), 2),
    }
    for name, size in sizes.items():
        if getattr(config, name, None) is not None:
            setattr(narrow, name, size)
    narrow._experts_implementation = "eager"  # grouped products lack float64
    return narrow


def shrink_vocabulary(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config with 8 tokens, none of them a special one."""
    narrow = copy.deepcopy(config)
    narrow.vocab_size = 8
    narrow.pad_token_id = narrow.bos_token_id = narrow.eos_token_id = None
    return narrow


def select_layers(config: PreTrainedConfig, layers: slice) -> PreTrainedConfig:
    """The config of a model of these layers only; its lists with an entry for each layer are cut alike."""
    fewer, depth = copy.deepcopy(config), config.num_hidden_layers
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == depth:
            setattr(fewer, name, value[layers])
    fewer.num_hidden_layers = len(range(depth)[layers])
    return fewer


def select_first_layers(config: PreTrainedConfig, most: int) -> PreTrainedConfig:
    """The config with its first layers only: `most`, or more until there is one of every kind."""
    kinds = list(getattr(config, "layer_types", None) or [])
    last_new_kind = max((kinds.index(kind) for kind in kinds), default=0)
    return select_layers(config, slice(max(most, last_new_kind + 1)))


@torch.no_grad()
def draw_weights(module: nn.Module, std: float, dtype: torch.dtype) -> None:
    """Give a module, whose weights may be on meta, the same random ones every time; `std` is that of its matrices.

    Vectors have a standard deviation of 1, so that norms and biases have an effect. torch's own generator is not used.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = {
        name: torch.randn(weight.shape, generator=generator, device="cpu") * (std if weight.ndim > 1 else 1.0)
        for name, weight in module.named_parameters()
    }
    assign_tensors(module, drawn, dtype)
