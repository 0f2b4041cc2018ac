"""The gather by torch's embedding bag, forward and backward: one pass over the rows that are read, no copies."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmblocks.batch import GatherTable


def reasons_against(x: Tensor, taps: GatherTable, *, gelu: bool) -> list[str]:
    """None: it runs everywhere, though float16 and bfloat16 are widened first."""
    return []


def gather_rows(x: Tensor, rows: Tensor, weights: Tensor, *, gelu: bool) -> Tensor:
    """(size, d) to (n, d)."""
    if not gelu and _selects(weights):
        return x.index_select(0, rows.squeeze(1))
    wide = _to_sum_dtype(x)
    return _sum_rows(F.gelu(wide) if gelu else wide, rows, weights).to(x.dtype)


def gather_gradient(gradient: Tensor, rows: Tensor, weights: Tensor, before_gelu: Tensor | None) -> Tensor:
    """The gradient of x from the result's, along taps that are turned round."""
    found = _sum_rows(_to_sum_dtype(gradient), rows, weights)
    if before_gelu is not None:
        found = torch.ops.aten.gelu_backward(found, _to_sum_dtype(before_gelu))
    return found.to(gradient.dtype)


def _sum_rows(x: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    # Detached: for a table that wants a gradient, embedding_bag takes another kernel, up to seven times slower on a CPU.
    return F.embedding_bag(rows, x.detach(), per_sample_weights=weights.to(x.dtype), mode="sum")


def _to_sum_dtype(x: Tensor) -> Tensor:
    """In a type to sum in. embedding_bag wants weights in the type of x, and bfloat16 has 8 bits for them."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _selects(weights: Tensor) -> bool:
    """Whether every row of the result is one row of x. Not asked on a device, which would have to be waited for."""
    return weights.shape[1] == 1 and weights.device.type == "cpu" and bool((weights == 1).all())
