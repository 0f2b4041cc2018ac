"""The gate in Triton: a program computes some channels of one row, in float32 inside.

Importing this needs triton; with TRITON_INTERPRET=1 set before that, the kernels run on the CPU.

gate, up, grad: (n, d), rows `*_stride` elements apart. out, gate_grad, up_grad: (n, d), contiguous.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
# (the body of a kernel is Triton, not Python)
import triton
import triton.language as tl


@triton.jit
def multiply_gated(
    gate, up, out, d, gate_stride, up_stride, ACTIVATION: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """out = activation(gate), rounded to its type, times up."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < d
    x = tl.load(gate + row * gate_stride + channel, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(up + row * up_stride + channel, mask=inside, other=0.0).to(tl.float32)
    value, _ = _activate(x, ACTIVATION)
    value = value.to(gate.dtype.element_ty).to(tl.float32)
    tl.store(out + row * d + channel, (value * factor).to(out.dtype.element_ty), mask=inside)


@triton.jit
def multiply_gated_gradient(
    grad, gate, up, gate_grad, up_grad, d, grad_stride, gate_stride, up_stride,
    ACTIVATION: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Gradients of gate and up; the activation is computed again."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < d
    pulled = tl.load(grad + row * grad_stride + channel, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(gate + row * gate_stride + channel, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(up + row * up_stride + channel, mask=inside, other=0.0).to(tl.float32)
    value, slope = _activate(x, ACTIVATION)
    change = pulled * factor * slope
    tl.store(gate_grad + row * d + channel, change.to(gate_grad.dtype.element_ty), mask=inside)
    tl.store(up_grad + row * d + channel, (pulled * value).to(up_grad.dtype.element_ty), mask=inside)


@triton.jit
def _activate(x, ACTIVATION: tl.constexpr):
    """The activation and its slope."""
    if ACTIVATION == "silu":
        share = tl.sigmoid(x)
        value = x * share
        slope = share * (1.0 + x * (1.0 - share))
    elif ACTIVATION == "gelu":
        share = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
        value = x * share
        slope = share + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    else:
        # (1 + tanh(z)) / 2 is sigmoid(2 z), with z = sqrt(2 / pi) * (x + 0.044715 * x ** 3).
        share = tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
        value = x * share
        slope = share + x * share * (1.0 - share) * 1.5957691216057308 * (1.0 + 0.134145 * x * x)
    return value, slope
