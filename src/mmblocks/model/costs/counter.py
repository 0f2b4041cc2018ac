"""FLOPs of a run on the meta device, counted by torch once per operator and inputs: a model's blocks repeat them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from mmblocks.compat import make_flop_counter

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def count_flops(run: Callable[[], object]) -> Counter[str]:
    """FLOPs of a run on the meta device by operator."""
    with torch.device("meta"), make_flop_counter() as counter, _OperatorCache(counter) as remembered:
        run()
    return remembered.sum_flops()


class _OperatorCache(TorchDispatchMode):
    """Inside, an operator that was run on such inputs before is not run again: its results have only shapes.

    torch finds most shapes in Python, in up to milliseconds. Views and operators that write into their inputs are run.
    """

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()
        self._counter = counter
        self._results: dict[Hashable, tuple[object, Counter[str]]] = {}
        self._repeated: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = kwargs or {}
        key = None if _has_aliases(func) else _make_key((func, args, kwargs))
        if key is None:
            return func(*args, **kwargs)
        if key not in self._results:
            return self._run(key, func, args, kwargs)
        layouts, flops = self._results[key]
        self._repeated.update(flops)
        return _make_empty(layouts)

    def _run(self, key: Hashable, func: OpOverload, args: tuple, kwargs: dict) -> object:
        before = self._read_counter()
        made = func(*args, **kwargs)
        self._results[key] = _to_layouts(made), self._read_counter() - before
        return made

    def _read_counter(self) -> Counter[str]:
        return Counter({str(operator): n for operator, n in self._counter.get_flop_counts().get("Global", {}).items()})

    def sum_flops(self) -> Counter[str]:
        """What was counted, and the same for what was repeated."""
        return self._read_counter() + self._repeated


@cache
def _has_aliases(func: OpOverload) -> bool:
    """Whether results are views of inputs, or inputs are written to."""
    schema = func._schema
    return any(value.alias_info is not None for value in (*schema.arguments, *schema.returns))


def _make_key(value: object) -> Hashable:
    """What an operator's result depends on, apart from numbers in tensors; None where that cannot be compared."""
    if isinstance(value, Tensor):
        return Tensor, value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, dict):
        value = tuple(value.items())
    if isinstance(value, list | tuple):
        keys = tuple(map(_make_key, value))
        return None if None in keys else (tuple, keys)
    try:
        hash(value)
    except TypeError:
        return None
    return type(value), value  # 1, 1.0 and True are equal


def _to_layouts(value: object) -> object:
    if isinstance(value, Tensor):
        return _TensorLayout((value.shape, value.stride(), value.dtype, value.device))
    return tuple(map(_to_layouts, value)) if isinstance(value, list | tuple) else value


def _make_empty(layouts: object) -> object:
    if isinstance(layouts, _TensorLayout):
        size, stride, dtype, device = layouts
        return torch.empty_strided(size, stride, dtype=dtype, device=device)
    return tuple(map(_make_empty, layouts)) if isinstance(layouts, tuple) else layouts


class _TensorLayout(tuple):
    """Size, strides, type and device of a tensor."""
