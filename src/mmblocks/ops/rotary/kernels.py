"""Rotary position embedding in Triton: a program turns some heads of one token.

Importing this needs triton; with TRITON_INTERPRET=1 set before that, the kernel runs on the CPU.

x, out: (sequences, heads, tokens, 2 * half) by their strides, channels side by side. cos, sin: (sequences, tokens,
2 * half) by their strides, channels side by side.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
# (the body of a kernel is Triton, not Python)
import triton
import triton.language as tl


@triton.jit
def turn_heads(
    x, cos, sin, out, heads, tokens, half,
    x_sequence, x_head, x_token, out_sequence, out_head, out_token, cos_sequence, cos_token, sin_sequence, sin_token,
    BACK: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """x * cos + turned x * sin, each product rounded to the wider type of both factors; BACK: the transpose of it."""
    sequence = (tl.program_id(0) // tokens).to(tl.int64)
    token = (tl.program_id(0) % tokens).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS)).to(tl.int64)
    channel = tl.arange(0, HALF)
    has_channel = channel < half
    inside = (head < heads)[:, None] & has_channel[None, :]
    at_cos = cos + sequence * cos_sequence + token * cos_token + channel
    at_sin = sin + sequence * sin_sequence + token * sin_token + channel
    cos_first = tl.load(at_cos, mask=has_channel, other=0.0).to(tl.float32)[None, :]
    cos_second = tl.load(at_cos + half, mask=has_channel, other=0.0).to(tl.float32)[None, :]
    sin_first = tl.load(at_sin, mask=has_channel, other=0.0).to(tl.float32)[None, :]
    sin_second = tl.load(at_sin + half, mask=has_channel, other=0.0).to(tl.float32)[None, :]
    at_x = x + sequence * x_sequence + token * x_token + head[:, None] * x_head + channel[None, :]
    first = tl.load(at_x, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at_x + half, mask=inside, other=0.0).to(tl.float32)
    if BACK:
        first_out = first * cos_first + second * sin_second
        second_out = second * cos_second - first * sin_first
    else:
        first_out = _round(first * cos_first, x, cos) - _round(second * sin_first, x, cos)
        second_out = _round(second * cos_second, x, cos) + _round(first * sin_second, x, cos)
    at_out = out + sequence * out_sequence + token * out_token + head[:, None] * out_head + channel[None, :]
    tl.store(at_out, first_out.to(out.dtype.element_ty), mask=inside)
    tl.store(at_out + half, second_out.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _round(value, x, cos):
    """To the type of x where cos has the same one, else not."""
    if x.dtype.element_ty == cos.dtype.element_ty:
        return value.to(x.dtype.element_ty).to(tl.float32)
    return value
