"""The gather by Triton kernels. `kernels` is imported when one is launched."""

import torch
from torch import Tensor

from mmblocks.batch import GatherTable
from mmblocks.ops.triton_backend import Kernel, find_reasons_by_trial, launch_kernel, list_reasons_against_tensors

ROWS = 4
CHANNELS = 256
"""A warp reads 256 channels of two bytes at once, 16 bytes a thread."""
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


def reasons_against(x: Tensor, table: GatherTable, *, gelu: bool) -> list[str]:
    """Why the kernels cannot run for x; with TRITON_INTERPRET=1 they run on the CPU."""
    reasons = list_reasons_against_tensors(x=x)
    if x.stride(-1) != 1:
        reasons.append(f"its kernels need contiguous channels, and those of x are {x.stride(-1)} apart")
    return reasons or find_reasons_by_trial(_run_small_gather, x.device, x.dtype)


def _run_small_gather(device: torch.device, dtype: torch.dtype) -> Tensor:
    x, rows = torch.ones(2, 8, device=device, dtype=dtype), torch.zeros(1, 1, device=device, dtype=torch.int64)
    return gather_rows(x, rows, torch.ones(1, 1, device=device), gelu=True)


def gather_rows(x: Tensor, rows: Tensor, weights: Tensor, *, gelu: bool) -> Tensor:
    """(size, d) to (n, d)."""
    from mmblocks.ops.gather_lerp import kernels

    out = x.new_empty(len(rows), x.shape[1])
    sizes = (*out.shape, x.stride(0), rows.shape[1])
    _launch_kernel(kernels.gather_rows, x, rows.contiguous(), weights.contiguous(), out, *sizes, GELU=gelu, out=out)
    return out


def gather_gradient(gradient: Tensor, rows: Tensor, weights: Tensor, before_gelu: Tensor | None) -> Tensor:
    """The gradient of x from that of the output, along a transposed table."""
    gradient = gradient if gradient.stride(-1) == 1 else gradient.contiguous()
    if before_gelu is None:
        return gather_rows(gradient, rows, weights, gelu=False)
    from mmblocks.ops.gather_lerp import kernels

    out = gradient.new_empty(before_gelu.shape)
    sizes = (*out.shape, gradient.stride(0), before_gelu.stride(0), rows.shape[1])
    table = rows.contiguous(), weights.contiguous()
    _launch_kernel(kernels.gather_gradient_through_gelu, gradient, *table, before_gelu, out, *sizes, out=out)
    return out


def _launch_kernel(kernel: Kernel, *arguments: object, out: Tensor, **modes: bool) -> None:
    grid = (-(-len(out) // ROWS), -(-out.shape[1] // CHANNELS))
    modes["EXACT"] = out.dtype == torch.float32  # rounding to 16 bits hides what the short form is off
    launch_kernel(kernel, grid, out, *arguments, **modes, ROWS=ROWS, CHANNELS=CHANNELS, **OPTIONS)
