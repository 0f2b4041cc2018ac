"""The gather in Triton: a program computes a few rows of a few hundred channels.

Both directions gather, so there are no atomics, and the same inputs always give the same bits. Importing this needs
triton; with TRITON_INTERPRET=1 set before that, the kernels run on the CPU.

x, out, gradient, before: (rows, d), rows `stride` elements apart. rows, weights: (n, terms), contiguous.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
# (the body of a kernel is Triton, not Python)
import triton
import triton.language as tl

UNROLLED = tl.constexpr(4)
"""Rows that are read at once; a bilinear sample reads four."""


@triton.jit
def gather_rows(
    x, rows, weights, out, n, d, stride, terms,
    GELU: tl.constexpr, EXACT: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """out[i] = sum over j of weights[i, j] * x[rows[i, j]], or of gelu(x)."""
    i, channel, inside = _locate_block(n, d, ROWS, CHANNELS)
    total = _sum_weighted_rows(x, rows, weights, i, channel, inside, n, d, stride, terms, GELU, EXACT, ROWS, CHANNELS)
    tl.store(out + i.to(tl.int64)[:, None] * d + channel[None, :], total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def gather_gradient_through_gelu(
    gradient, rows, weights, before, out, n, d, stride, before_stride, terms,
    EXACT: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """out[i] = gelu'(before[i]) * sum over j of weights[i, j] * gradient[rows[i, j]]."""
    i, channel, inside = _locate_block(n, d, ROWS, CHANNELS)
    total = _sum_weighted_rows(
        gradient, rows, weights, i, channel, inside, n, d, stride, terms, False, EXACT, ROWS, CHANNELS
    )  # fmt: skip
    at = before + i.to(tl.int64)[:, None] * before_stride + channel[None, :]
    value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    # The slope of gelu: Phi(x) + x * phi(x).
    total *= _compute_normal_cdf(value, EXACT) + value * 0.3989422804014327 * tl.exp(-0.5 * value * value)
    tl.store(out + i.to(tl.int64)[:, None] * d + channel[None, :], total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _locate_block(n, d, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """This program's rows and channels, and which of them exist. Neighbours share rows of x, so rows run first."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    return i, channel, (i < n)[:, None] & (channel < d)[None, :]


@triton.jit
def _sum_weighted_rows(
    x, rows, weights, i, channel, inside, n, d, stride, terms,
    GELU: tl.constexpr, EXACT: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    total = tl.zeros((ROWS, CHANNELS), dtype=tl.float32)
    first = i.to(tl.int64) * terms
    for j in tl.range(0, terms, loop_unroll_factor=UNROLLED):
        row = tl.load(rows + first + j, mask=i < n, other=0)
        weight = tl.load(weights + first + j, mask=i < n, other=0.0)
        read = inside & (weight != 0)[:, None]
        value = tl.load(x + row[:, None] * stride + channel[None, :], mask=read, other=0.0).to(tl.float32)
        if GELU:
            value *= _compute_normal_cdf(value, EXACT)
        total += weight[:, None] * value
    return total


@triton.jit
def _compute_normal_cdf(x, EXACT: tl.constexpr):
    """Phi(x), by erf or by Abramowitz and Stegun 7.1.26, which is off by 1e-7 at most and takes fewer instructions."""
    if EXACT:
        return 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
    t = 1.0 / (1.0 + 0.3275911 * 0.7071067811865476 * tl.abs(x))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail = 0.5 * series * tl.exp(-0.5 * x * x)
    return tl.where(x < 0, tail, 1.0 - tail)
