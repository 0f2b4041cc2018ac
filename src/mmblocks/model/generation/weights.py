"""Whether a model's weights are the same as when something was computed with them."""

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
    """Where a model's tensors lie in memory, and the modes that change what it computes."""

    tensors: tuple[Any, ...]
    modes: tuple[Any, ...]
    """Modes of modules (PEFT's adapters can be switched off), and of torch."""

    @classmethod
    def from_module(cls, model: nn.Module) -> TensorAddresses:
        """The addresses of a module's parameters and buffers at this moment."""
        tensors = list(chain(model.parameters(), model.buffers()))
        # A weak reference keeps a storage's id from being used again, and holds none of its memory.
        places = tuple((StorageWeakRef(t.untyped_storage()), t.storage_offset(), t.shape, t.dtype) for t in tensors)
        device = tensors[0].device.type
        autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        modules = tuple((type(m), m.training, getattr(m, "_disable_adapters", None)) for m in model.modules())
        return cls(places, (*autocast, torch.is_inference_mode_enabled(), modules))


@dataclass(frozen=True, slots=True, eq=False)
class WeightSnapshot:
    """The addresses of a model's tensors, their versions, and some of their numbers.

    torch counts writes (`_version`), but not those of fused optimizers nor those through `.data`. These are noticed by
    `SAMPLES_PER_TENSOR` numbers of each tensor, so a write through `.data` to a few single numbers goes unnoticed.
    """

    addresses: TensorAddresses
    versions: tuple[int, ...]
    samples: tuple[Tensor, ...]
    __repr__ = format_by_shape

    @classmethod
    @torch.no_grad()
    def from_module(cls, model: nn.Module) -> WeightSnapshot:
        """The snapshot of a module at this moment."""
        tensors = list(chain(model.parameters(), model.buffers()))
        samples: dict[Any, list[Tensor]] = {}
        for tensor in tensors:
            flat = tensor.detach().reshape(-1)
            sample = flat[:: max(1, len(flat) // SAMPLES_PER_TENSOR)][:SAMPLES_PER_TENSOR]
            samples.setdefault((tensor.dtype, tensor.device), []).append(sample)
        versions = tuple(-1 if t.is_inference() else t._version for t in tensors)
        return cls(TensorAddresses.from_module(model), versions, tuple(map(torch.cat, samples.values())))

    def is_same_as(self, other: WeightSnapshot) -> bool:
        """Whether the model still computes what it computed then."""
        return (
            self.addresses == other.addresses
            and self.versions == other.versions
            and -1 not in self.versions  # tensors of inference mode, whose writes are not counted
            and all(torch.equal(a, b) for a, b in zip(self.samples, other.samples, strict=True))
        )
