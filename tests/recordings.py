"""Recordings of operations, which stand for CUDA graphs on the CPU: they run the same operations on the same tensors."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recording(TorchDispatchMode):
    """The operations of a run with their tensors. As while a CUDA graph is captured, nothing outside of it changes."""

    def __init__(self):
        super().__init__()
        self.steps = []
        self.changed = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert func._schema.name != "aten::_local_scalar_dense", "the host reads a number of the device"
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.is_write:
                self.changed.setdefault(value.untyped_storage()._cdata, (value, value.clone()))
        out = func(*args, **kwargs)
        self.steps.append((func, args, kwargs, out))
        return out

    def replay(self):
        for func, args, kwargs, out in self.steps:
            again = func(*args, **kwargs)
            if not func.is_view and not func._schema.is_mutable:
                for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor):
                        old.copy_(new)


def record(run, *, warm_ups=0, pool=None):
    for _ in range(warm_ups):
        run()
    with Recording() as recording:
        result = run()
    for tensor, before in recording.changed.values():
        tensor.copy_(before)
    return recording, result
