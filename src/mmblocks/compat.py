"""Differences between versions of torch and transformers, detected from signatures and attributes.

A function here looks at a signature or an attribute, never at a version number, so that it holds for versions that are
not out yet and for parts that a version has not renamed.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import PreTrainedModel

CACHE_KEYWORDS = ("cache", "past_key_values")
"""What transformers calls a key-value cache: the second until 5.23, the first since."""


def find_cache_keyword(module: nn.Module) -> str:
    """The keyword of the key-value cache of a model, decoder layer or attention of transformers.

    Raises `AttributeError` if it has none of the known names.
    """
    return _find_parameter_for_cache(type(module).forward)


@cache
def _find_parameter_for_cache(forward: Callable[..., Any]) -> str:
    parameters = inspect.signature(forward).parameters
    for name in CACHE_KEYWORDS:
        if name in parameters:
            return name
    raise AttributeError(
        f"{forward.__qualname__} takes no key-value cache by the name of {' or '.join(CACHE_KEYWORDS)}"
    )


def enable_gradient_checkpointing(lm: PreTrainedModel, settings: dict[str, Any]) -> None:
    """Turn gradient checkpointing on for a model of transformers. `settings` are those of torch's `checkpoint`."""
    new_name = getattr(lm, "activation_checkpointing_enable", None)
    (new_name or lm.gradient_checkpointing_enable)(settings)


def find_autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype of autocast on a kind of device ("cpu", "cuda"); None where it is off or not known.

    `torch.amp.is_autocast_available` would say the same, but torch 2.10 cannot compile it.
    """
    try:
        enabled = torch.is_autocast_enabled(device)
    except RuntimeError:  # a kind of device without autocast, such as "meta"
        return None
    return torch.get_autocast_dtype(device) if enabled else None


def make_flop_counter() -> FlopCounterMode:
    """torch's counter of FLOPs, which prints nothing. It counts attention on the CPU, as torch's own does since 2.15."""
    from torch.utils.flop_counter import FlopCounterMode, flop_registry

    def count_forward(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
        """Scores and their sums of values; shapes are (batch, heads, rows, width), keys may have fewer heads."""
        return 2 * query.numel() // query[-1] * key[-2] * (query[-1] + value[-1])

    def count_backward(
        gradient: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any
    ) -> int:
        """Scores once more, then gradients of queries, keys, weights and values."""
        return 2 * query.numel() // query[-1] * key[-2] * (3 * query[-1] + 2 * value[-1])

    formulas: dict[Any, Callable[..., int]] = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: count_forward,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: count_backward,
    }
    missing = {op: formula for op, formula in formulas.items() if op not in flop_registry}
    return FlopCounterMode(display=False, custom_mapping=missing)


@contextmanager
def suppress_warning_errors() -> Iterator[None]:
    """Within the block, warnings of other packages are no errors, even under `-W error`.

    Otherwise a probe would fail for a mere deprecation.
    """
    with warnings.catch_warnings():
        filters: Any = warnings.filters
        filters[:] = [("default" if action == "error" else action, *rest) for action, *rest in filters]
        yield
