"""The gather by torch's embedding bag, forward and backward: one pass over the rows that are read, no copies.

It runs everywhere, though float16 and bfloat16 are widened first.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def gather_rows(x: Tensor, rows: Tensor, weights: Tensor, *, gelu: bool) -> Tensor:
    """(size, d) to (n, d)."""
    # Where every output is one row of x. Not checked on a device, since the host would wait for it.
    is_selection = weights.shape[1] == 1 and weights.device.type == "cpu" and bool((weights == 1).all())
    if is_selection and not gelu:
        return x.index_select(0, rows.squeeze(1))
    wide = _to_sum_dtype(x)
    return _sum_rows(F.gelu(wide) if gelu else wide, rows, weights).to(x.dtype)


def gather_gradient(gradient: Tensor, rows: Tensor, weights: Tensor, before_gelu: Tensor | None) -> Tensor:
    """The gradient of x from that of the output, along a transposed table."""
    x_gradient = _sum_rows(_to_sum_dtype(gradient), rows, weights)
    if before_gelu is not None:
        x_gradient = torch.ops.aten.gelu_backward(x_gradient, _to_sum_dtype(before_gelu))
    return x_gradient.to(gradient.dtype)


def _sum_rows(x: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    # Detached: for an x that wants a gradient, embedding_bag takes another kernel, up to seven times slower on a CPU.
    return F.embedding_bag(rows, x.detach(), per_sample_weights=weights.to(x.dtype), mode="sum")


def _to_sum_dtype(x: Tensor) -> Tensor:
    """In float32 or wider. embedding_bag wants weights in the dtype of x, and bfloat16 has 8 bits for them."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
