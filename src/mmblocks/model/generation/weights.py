"""Whether a model's weights are the same as when something was computed with them.

The question is asked before every answer, so it costs a few microseconds a tensor: modules and tensors are remembered by weak
references, which keep nothing in memory, and no list of parameters is made again.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from mmblocks.compat import find_autocast_dtype
from mmblocks.reprs import format_by_shape

SAMPLES_PER_TENSOR = 64


@dataclass(frozen=True, slots=True, eq=False)
class _ModuleState:
    """A module with its mode (PEFT's adapters can be switched off), its children and the storages of its tensors."""

    module: weakref.ref[nn.Module]
    mode: tuple[Any, ...]
    children: tuple[int, ...]
    tensors: tuple[tuple[weakref.ref[Tensor], StorageWeakRef, int, torch.Size, tuple[int, ...]], ...]
    __repr__ = format_by_shape

    @classmethod
    def from_module(cls, module: nn.Module) -> _ModuleState:
        tensors = tuple(
            (weakref.ref(t), StorageWeakRef(t.untyped_storage()), int(t.storage_offset()), t.shape, t.stride())
            for t in _iterate_own_tensors(module)
        )
        return cls(weakref.ref(module), _read_mode(module), _list_children(module), tensors)

    def has_changed(self) -> bool:
        """Whether the module, its children or the places of its tensors are others now."""
        module = self.module()
        if module is None or _read_mode(module) != self.mode or _list_children(module) != self.children:
            return True
        now = _iterate_own_tensors(module)
        for reference, storage, offset, shape, stride in self.tensors:
            tensor = next(now, None)
            if (
                tensor is None
                or reference() is not tensor
                or tensor.untyped_storage()._cdata != storage.cdata
                or tensor.storage_offset() != offset
                or tensor.shape != shape
                or tensor.stride() != stride
            ):
                return True
        return next(now, None) is not None


def _iterate_own_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers of a module, not those of its children."""
    return (t for t in chain(module._parameters.values(), module._buffers.values()) if t is not None)


def _read_mode(module: nn.Module) -> tuple[Any, ...]:
    return type(module), module.training, vars(module).get("_disable_adapters")


def _list_children(module: nn.Module) -> tuple[int, ...]:
    """Their ids, which no other module has while the weak references of a `TensorAddresses` are alive."""
    return tuple(map(id, module._modules.values()))


@dataclass(frozen=True, slots=True, eq=False)
class TensorAddresses:
    """Where a model's tensors lie in memory, and the modes of its modules and of torch that change what it computes."""

    modules: tuple[_ModuleState, ...]
    device: str
    modes: tuple[Any, ...]

    @classmethod
    def from_module(cls, model: nn.Module) -> TensorAddresses:
        """The addresses of a module's parameters and buffers at this moment."""
        device = next(chain(model.parameters(), model.buffers())).device.type
        return cls(tuple(map(_ModuleState.from_module, model.modules())), device, _read_modes(device))

    def is_same_for(self, model: nn.Module) -> bool:
        """Whether nothing of this has changed, and the model is the one that it was made of."""
        return (
            self.modules[0].module() is model
            and self.modes == _read_modes(self.device)
            and not any(state.has_changed() for state in self.modules)
        )

    def list_tensors(self) -> list[Tensor]:
        """The tensors that are still there, each once."""
        found = (reference() for state in self.modules for reference, *_ in state.tensors)
        return list({id(tensor): tensor for tensor in found if tensor is not None}.values())


def _read_modes(device: str) -> tuple[Any, ...]:
    return find_autocast_dtype(device), torch.is_inference_mode_enabled()


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
    def from_module(cls, model: nn.Module) -> WeightSnapshot:
        """The snapshot of a module at this moment."""
        addresses = TensorAddresses.from_module(model)
        tensors = addresses.list_tensors()
        return cls(addresses, _read_versions(tensors), _sample_numbers(tensors))

    def is_same_for(self, model: nn.Module) -> bool:
        """Whether a model still computes what it computed then."""
        if -1 in self.versions or not self.addresses.is_same_for(model):
            return False
        tensors = self.addresses.list_tensors()
        return self.versions == _read_versions(tensors) and all(
            map(torch.equal, self.samples, _sample_numbers(tensors))
        )


def _read_versions(tensors: list[Tensor]) -> tuple[int, ...]:
    """-1 for a tensor of inference mode, whose writes are not counted."""
    return tuple(-1 if t.is_inference() else t._version for t in tensors)


@torch.no_grad()
def _sample_numbers(tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """Numbers at even distances of every tensor, those of a dtype and a device in one; none of tensors without values."""
    samples: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.is_meta:
            continue
        flat = tensor if tensor.is_contiguous() else tensor.reshape(-1)
        count = min(flat.numel(), SAMPLES_PER_TENSOR)
        step = max(1, flat.numel() // SAMPLES_PER_TENSOR)
        sample = flat.as_strided((count,), (step,), flat.storage_offset())
        samples.setdefault((tensor.dtype, tensor.device), []).append(sample)
    return tuple(map(torch.cat, samples.values()))
