"""The norm by Triton kernels. `kernels` is imported when one is launched."""

import torch
from torch import Tensor

from mmblocks.ops.rms_norm.call import Style, find_output_dtype
from mmblocks.ops.triton_backend import find_reasons_by_trial, launch_kernel, list_reasons_against_tensors, to_rows

MAX_WIDTH = 32_768
"""Channels of a row that a program holds in its registers."""
BLOCK_ELEMENTS = 2048
"""Rows shorter than this are taken several at once."""
MAX_PROGRAMS = 1024
"""Programs of the backward pass, each of which keeps a sum of weight gradients: some for every multiprocessor."""


def reasons_against(x: Tensor, weight: Tensor, eps: float, style: Style) -> list[str]:
    """Why the kernels cannot run for these rows."""
    reasons = list_reasons_against_tensors(x=x, weight=weight)
    if x.shape[-1] > MAX_WIDTH:
        reasons.append(f"its kernels take at most {MAX_WIDTH} channels, and x has {x.shape[-1]}")
    return reasons or find_reasons_by_trial(_run_small_case, x.device, x.dtype)


def _run_small_case(device: torch.device, dtype: torch.dtype) -> Tensor:
    x = torch.ones(1, 8, device=device, dtype=dtype)
    return forward(x, x[0], 1e-6, "wide")[0]


def forward(x: Tensor, weight: Tensor, eps: float, style: Style) -> tuple[Tensor, Tensor]:
    """(..., dim) to the normalised rows (..., dim) and the reciprocal root mean square of each (rows,)."""
    from mmblocks.ops.rms_norm import kernels

    rows = to_rows(x)
    n, d = rows.shape
    out = x.new_empty(x.shape, dtype=find_output_dtype(x, weight, style))
    rstd = x.new_empty(n, dtype=torch.float32)
    sizes = choose_block(d)
    launch_kernel(
        kernels.normalise_rows, (-(-n // sizes["ROWS"]),), out,
        rows, weight.contiguous(), out, rstd, n, d, rows.stride(0), eps, **find_modes(style), **sizes,
    )  # fmt: skip
    return out, rstd


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor, style: Style, learns: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the weight; learns: whether the latter is wanted, else it is anything."""
    from mmblocks.ops.rms_norm import kernels

    rows, pulled = to_rows(x), to_rows(grad)
    n, d = rows.shape
    sizes = choose_block(d)
    programs = min(-(-n // sizes["ROWS"]), MAX_PROGRAMS)
    x_grad = x.new_empty(x.shape)
    partial = rstd.new_empty(programs if learns else 0, d)
    launch_kernel(
        kernels.normalise_gradient, (programs,), x_grad,
        pulled, rows, weight.contiguous(), rstd, x_grad, partial, n, d, pulled.stride(0), rows.stride(0), programs,
        **find_modes(style), LEARNS=learns, **sizes,
    )  # fmt: skip
    return x_grad, partial.sum(0).to(weight.dtype) if learns else weight.new_empty(weight.shape)


def find_modes(style: Style) -> dict[str, bool | float]:
    """Settings of the kernels for which they are compiled."""
    return {"ROUNDS_FIRST": style == "rounded", "OFFSET": 1.0 if style == "one_plus" else 0.0}


def choose_block(d: int) -> dict[str, int]:
    """Rows and channels of a program, powers of 2, and its warps; numbers are rounded as torch does, which adds apart."""
    channels = 1 << max(d - 1, 0).bit_length()
    rows = max(BLOCK_ELEMENTS // channels, 1)
    warps = min(max(rows * channels // 512, 4), 16)
    return {"ROWS": rows, "CHANNELS": channels, "num_warps": warps, "enable_fp_fusion": False}
