"""The norm in Triton: a program takes whole rows, several at once where they are short.

Sums are made in float32. Weight gradients are partial sums of a few programs, which torch adds up: no atomics, and the
same inputs always give the same bits. Importing this needs triton; with TRITON_INTERPRET=1 set before that, the kernels
run on the CPU.

x, grad: (n, d), rows `stride` elements apart. out, x_grad: (n, d), contiguous. rstd: (n,). partial: (programs, d).
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
# (the body of a kernel is Triton, not Python)
import triton
import triton.language as tl


@triton.jit
def normalise_rows(
    x, weight, out, rstd, n, d, stride, eps,
    ROUNDS_FIRST: tl.constexpr, OFFSET: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """out[i] = (x[i] * rstd[i]) * (weight + OFFSET), with rstd[i] = 1 / sqrt(mean of x[i] ** 2 + eps)."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, CHANNELS)
    inside = (i < n)[:, None] & (channel < d)[None, :]
    at = i.to(tl.int64)[:, None]
    value = tl.load(x + at * stride + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 1) / d + eps)
    tl.store(rstd + i, scale, mask=i < n)
    value = value * scale[:, None]
    if ROUNDS_FIRST:
        value = value.to(x.dtype.element_ty).to(tl.float32)
    factor = tl.load(weight + channel, mask=channel < d, other=0.0).to(tl.float32) + OFFSET
    tl.store(out + at * d + channel[None, :], (value * factor[None, :]).to(out.dtype.element_ty), mask=inside)


@triton.jit
def normalise_gradient(
    grad, x, weight, rstd, x_grad, partial, n, d, grad_stride, stride, programs,
    ROUNDS_FIRST: tl.constexpr, OFFSET: tl.constexpr, LEARNS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Gradients of x, and of the weight as partial sums over the rows of each program."""
    program = tl.program_id(0)
    channel = tl.arange(0, CHANNELS)
    factor = tl.load(weight + channel, mask=channel < d, other=0.0).to(tl.float32) + OFFSET
    total = tl.zeros((CHANNELS,), dtype=tl.float32)
    for first in tl.range(program * ROWS, n, programs * ROWS):
        i = first + tl.arange(0, ROWS)
        inside = (i < n)[:, None] & (channel < d)[None, :]
        at = i.to(tl.int64)[:, None]
        pulled = tl.load(grad + at * grad_stride + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(rstd + i, mask=i < n, other=0.0)
        value = tl.load(x + at * stride + channel[None, :], mask=inside, other=0.0).to(tl.float32) * scale[:, None]
        scaled = pulled * factor[None, :]
        along = tl.sum(scaled * value, 1) / d
        change = scale[:, None] * (scaled - value * along[:, None])
        tl.store(x_grad + at * d + channel[None, :], change.to(x_grad.dtype.element_ty), mask=inside)
        if LEARNS:
            if ROUNDS_FIRST:
                value = value.to(x.dtype.element_ty).to(tl.float32)
            total += tl.sum(pulled * value, 0)
    if LEARNS:
        tl.store(partial + program.to(tl.int64) * d + channel, total, mask=channel < d)
