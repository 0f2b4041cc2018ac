"""Feature maps to rows of tokens: one function per rule about newlines. `newline` is one row, shape (d,)."""

import torch
from einops import rearrange, repeat
from torch import Tensor


def to_rows(x: Tensor) -> Tensor:
    """(views, h, w, d) to (views * h * w, d), view by view, row by row."""
    return rearrange(x, "views h w d -> (views h w) d")


def append_newline(rows: Tensor, newline: Tensor) -> Tensor:
    """(n, d) to (n + 1, d): one newline after the last row."""
    return torch.cat([rows, newline.to(rows).unsqueeze(0)])


def append_newline_per_line(x: Tensor, newline: Tensor) -> Tensor:
    """(views, h, w, d) to (views * h * (w + 1), d): a newline after every line of every view."""
    ends = repeat(newline.to(x), "d -> views h 1 d", views=x.shape[0], h=x.shape[1])
    return to_rows(torch.cat([x, ends], dim=2))


def append_newline_per_view(x: Tensor, newline: Tensor) -> Tensor:
    """(views, h, w, d) to (views * (h * w + 1), d): a newline after every view."""
    ends = repeat(newline.to(x), "d -> views 1 d", views=x.shape[0])
    return rearrange(torch.cat([rearrange(x, "views h w d -> views (h w) d"), ends], dim=1), "views n d -> (views n) d")
