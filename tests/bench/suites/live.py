"""The fullest moment of a forward and a backward pass on the meta device: every storage counted while it is alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmblocks.model.costs.activations import FusedAttention


def count_peak_bytes(model: nn.Module, step: Callable[[], Tensor]) -> int:
    """Bytes at the fullest moment of a step and of the backward pass of what it returns, weights and gradients included.

    Nothing is computed. Attention takes what fused kernels take: no scores, in backward a gradient for each input.
    """
    model.zero_grad(set_to_none=True)
    live = _Live()
    for tensor in (*model.parameters(), *model.buffers()):
        live.note(tensor)
    with live, _fuse_attention(), torch.enable_grad():
        step().backward()
    model.zero_grad(set_to_none=True)
    return live.most


class _Live(TorchDispatchMode):
    """Adds up the storages that operators make, until they are gone."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: object, types: object, args: object = (), kwargs: object = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self.note(leaf)
        return made

    def note(self, tensor: Tensor) -> None:
        """Count a tensor's storage from now on, once."""
        storage = tensor.untyped_storage()
        if (key := storage._cdata) in self.known:
            return
        self.known.add(key)
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._forget_storage, key, size)

    def _forget_storage(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


@contextmanager
def _fuse_attention() -> Iterator[None]:
    """torch's attention on the meta device would make all scores. A mode would not reach what backward computes again."""
    own = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda q, k, v, *_, **__: FusedAttention.apply(q, k, v, None)
    try:
        yield
    finally:
        F.scaled_dot_product_attention = own
