"""The gate by Triton kernels. `kernels` is imported when one is launched."""

import torch
from torch import Tensor

from mmblocks.ops.gated_product.reference import Activation
from mmblocks.ops.triton_backend import find_reasons_by_trial, launch_kernel, list_reasons_against_tensors, to_rows

CHANNELS = 1024
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}  # as torch rounds, which multiplies and adds apart


def reasons_against(gate: Tensor, up: Tensor, activation: Activation) -> list[str]:
    """Why the kernels cannot run for these tensors."""
    reasons = list_reasons_against_tensors(gate=gate, up=up)
    if gate.dtype != up.dtype:
        reasons.append("its kernels take gate and up of one type")
    return reasons or find_reasons_by_trial(_run_small_case, gate.device, gate.dtype)


def _run_small_case(device: torch.device, dtype: torch.dtype) -> Tensor:
    x = torch.ones(1, 8, device=device, dtype=dtype)
    return forward(x, x, "silu")


def forward(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """activation(gate), rounded to its type, times up."""
    from mmblocks.ops.gated_product import kernels

    out = gate.new_empty(gate.shape)
    rows, factors = to_rows(gate), to_rows(up)
    n, d = rows.shape
    launch_kernel(
        kernels.multiply_gated, (n, -(-d // CHANNELS)), out,
        rows, factors, out, d, rows.stride(0), factors.stride(0),
        ACTIVATION=activation, CHANNELS=CHANNELS, **OPTIONS,
    )  # fmt: skip
    return out


def backward(grad: Tensor, gate: Tensor, up: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up."""
    from mmblocks.ops.gated_product import kernels

    pulled, rows, factors = to_rows(grad), to_rows(gate), to_rows(up)
    gate_grad, up_grad = gate.new_empty(gate.shape), up.new_empty(up.shape)
    n, d = rows.shape
    launch_kernel(
        kernels.multiply_gated_gradient, (n, -(-d // CHANNELS)), gate_grad,
        pulled, rows, factors, gate_grad, up_grad, d, pulled.stride(0), rows.stride(0), factors.stride(0),
        ACTIVATION=activation, CHANNELS=CHANNELS, **OPTIONS,
    )  # fmt: skip
    return gate_grad, up_grad
