"""What all backends in Triton have in common: the machines and types that they run on, and one trial of a kernel."""

import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor

from mmblocks.compat import suppress_warning_errors
from mmblocks.ops.choice import AUTO, REFERENCE, Backend, accept_all_inputs, find_requested_backend
from mmblocks.reprs import format_dtype

TYPES = (torch.float32, torch.bfloat16, torch.float16)


def find_device_type() -> str:
    """The CPU where Triton interprets kernels in Python; it reads the variable once, when it is imported."""
    return "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


class Implementation(Protocol):
    """A module that computes an op."""

    @property
    def forward(self) -> Callable[..., Any]: ...

    @property
    def backward(self) -> Callable[..., Any]: ...


class KernelImplementation(Implementation, Protocol):
    """One that launches kernels in Triton."""

    @property
    def reasons_against(self) -> Callable[..., list[str]]: ...


def list_backends(kernels: KernelImplementation, reference: Implementation) -> list[Backend]:
    """The backends of an op with kernels in Triton and a reference."""
    return [
        Backend(
            "triton", kernels.forward, kernels.reasons_against, list_unavailable_reasons, run_backward=kernels.backward
        ),
        Backend(REFERENCE, reference.forward, accept_all_inputs, run_backward=reference.backward),
    ]


def list_unavailable_reasons() -> list[str]:
    """Why kernels cannot run on this machine at all."""
    reasons = []
    if find_spec("triton") is None:
        reasons.append("triton is not installed; it comes with torch for CUDA on Linux, or by `pip install triton`")
    if find_device_type() == "cuda" and not torch.cuda.is_available():
        reasons.append("its kernels run on cuda, and torch sees no CUDA device")
    return reasons


def may_run_kernels(*ops: str) -> bool:
    """Whether kernels of ops with these names can run on this machine, or the user names a backend for one of them.

    The ops need not be imported.
    """
    named = any(find_requested_backend(op) not in (AUTO, REFERENCE) for op in ops)
    return named or not list_unavailable_reasons()


def list_reasons_against_tensors(**tensors: Tensor) -> list[str]:
    """Why kernels cannot take these tensors, all on one device; with TRITON_INTERPRET=1 they run on the CPU."""
    reasons = [
        f"its kernels take float32, bfloat16 and float16, and {name} is {format_dtype(x.dtype)}"
        for name, x in tensors.items()
        if x.dtype not in TYPES
    ]
    name, x = next(iter(tensors.items()))
    if x.device.type != (device_type := find_device_type()):
        reasons.append(f"its kernels run on {device_type}, and {name} is on {x.device.type}")
    return reasons


@cache
@suppress_warning_errors()
def find_reasons_by_trial(
    run: Callable[[torch.device, torch.dtype], Tensor], device: torch.device, dtype: torch.dtype
) -> list[str]:
    """Why a kernel cannot run here. A small case is run once: Triton also needs a C compiler and a GPU that it knows."""
    if reasons := list_unavailable_reasons():
        return reasons
    try:
        run(device, dtype).tolist()
    except Exception as cause:
        return [f"a small case failed on {device} ({type(cause).__name__}: {str(cause).partition(chr(10))[0]})"]
    return []


class Kernel(Protocol):
    """A function of a file `kernels`: `kernel[grid](...)` launches it."""

    def __getitem__(self, grid: tuple[int, ...], /) -> Callable[..., object]: ...


def launch_kernel(kernel: Kernel, grid: tuple[int, ...], out: Tensor, *arguments: object, **modes: object) -> None:
    """Run a kernel on the device of `out`, one of the arguments; Triton itself launches on the current device."""
    with torch.cuda.device_of(out):
        kernel[grid](*arguments, **modes)


def to_rows(x: Tensor) -> Tensor:
    """(..., dim) to (rows, dim) with channels side by side; a copy where strides do not allow a view."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()
