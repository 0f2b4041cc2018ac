"""Whether a model is still what it was when something was computed with it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from mmblocks.reprs import format_by_shape

SAMPLES_PER_TENSOR = 64


@dataclass(frozen=True, slots=True)
class TensorAddresses:
    """Where a model's tensors lie, whatever they hold, and how the model is run."""

    tensors: tuple[Any, ...]
    switches: tuple[Any, ...]

    @classmethod
    def from_module(cls, model: nn.Module) -> TensorAddresses:
        """Those of a module's parameters and buffers at this moment."""
        tensors = list(chain(model.parameters(), model.buffers()))
        # A reference keeps the name of a storage from being given to another, and holds none of its memory.
        found = tuple((StorageWeakRef(t.untyped_storage()), t.storage_offset(), t.shape, t.dtype) for t in tensors)
        return cls(found, _switches(model, tensors[0].device.type))


@dataclass(frozen=True, slots=True, eq=False)
class WeightSnapshot:
    """The places of a model's tensors, how often these were written, and some of their numbers.

    torch counts writes (`_version`), but not those of fused optimizers nor those through `.data`; they are known by
    `SAMPLED` numbers of each tensor, so a write of the second kind to a few single numbers goes unnoticed.
    """

    addresses: TensorAddresses
    versions: tuple[int, ...]
    samples: tuple[Tensor, ...]
    __repr__ = format_by_shape

    @classmethod
    @torch.no_grad()
    def from_module(cls, model: nn.Module) -> WeightSnapshot:
        """Those of a module at this moment."""
        tensors = list(chain(model.parameters(), model.buffers()))
        kinds: dict[Any, list[Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault((tensor.dtype, tensor.device), []).append(_sample(tensor))
        versions = tuple(-1 if t.is_inference() else t._version for t in tensors)
        return cls(TensorAddresses.from_module(model), versions, tuple(map(torch.cat, kinds.values())))

    def is_same_as(self, other: WeightSnapshot) -> bool:
        """Whether what was computed before would be computed now."""
        return (
            self.addresses == other.addresses
            and self.versions == other.versions
            and -1 not in self.versions  # tensors of inference mode, whose writes nobody counts
            and all(torch.equal(a, b) for a, b in zip(self.samples, other.samples, strict=True))
        )


def _switches(model: nn.Module, device: str) -> tuple[Any, ...]:
    """What changes results beside weights: modes of modules (PEFT's adapters can be switched off), and of torch."""
    modes = tuple((type(m), m.training, getattr(m, "_disable_adapters", None)) for m in model.modules())
    autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return (*autocast, torch.is_inference_mode_enabled(), modes)


def _sample(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, len(flat) // SAMPLES_PER_TENSOR)][:SAMPLES_PER_TENSOR]
