"""The `repr` of objects with tensors: dtype and shape. Values would fill a screen and wait for the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeGuard

if TYPE_CHECKING:
    from torch import Tensor


class Dataclass(Protocol):
    """An instance of any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def format_by_shape(self: Dataclass) -> str:
    """The `__repr__` of a dataclass with tensors: `Packing(cu_seqlens=int32 (3,), max_seqlen=4)`."""
    shown = (f"{field.name}={_format_value(getattr(self, field.name))}" for field in fields(self) if field.repr)
    return f"{type(self).__name__}({', '.join(shown)})"


def format_dtype(dtype: object) -> str:
    """A dtype of torch without "torch."."""
    return str(dtype).removeprefix("torch.")


def _format_value(value: object) -> str:
    if _is_tensor(value):
        return f"{format_dtype(value.dtype)} {tuple(value.shape)}"
    if isinstance(value, list | tuple) and type(value) in (list, tuple) and any(map(_is_tensor, value)):
        return f"[{', '.join(map(_format_value, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_format_value(item)}" for key, item in value.items()) + "}"
    return repr(value)


def _is_tensor(value: object) -> TypeGuard[Tensor]:
    return hasattr(value, "dtype") and hasattr(value, "shape")
