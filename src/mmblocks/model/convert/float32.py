"""Computing in float32 with weights that stay in their stored type: each is converted when an operation takes it."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

HALVES = (torch.bfloat16, torch.float16)


class Float32Mode(TorchFunctionMode):
    """`with Float32Mode(): model(...)` computes what `model.float()` would, with the memory of one converted weight.

    For checks of models that fill the memory; every pass converts every weight again.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.embedding or getattr(func, "__name__", "") == "__get__":  # some rows of a table; a property
            return _to_float32(func(*args, **kwargs))
        return func(*_to_float32(args), **_to_float32(kwargs))


def _to_float32(value: object) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in HALVES else value
    if isinstance(value, torch.dtype):
        return torch.float32 if value in HALVES else value
    if isinstance(value, tuple | list) and type(value) in (tuple, list):
        return type(value)(_to_float32(each) for each in value)
    return {key: _to_float32(each) for key, each in value.items()} if type(value) is dict else value
