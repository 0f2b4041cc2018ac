"""How families of language models apply the weight of their norm."""

from typing import Literal, get_args

import torch
from torch import Tensor

Style = Literal["rounded", "wide", "one_plus"]
"""rounded: rows are rounded to their type, then multiplied by the weight (Llama, Qwen). wide: multiplied in float32, then
rounded (OLMo 2, gpt-oss). one_plus: the same by 1 + weight (Gemma)."""
STYLES: tuple[Style, ...] = get_args(Style)


def find_output_dtype(x: Tensor, weight: Tensor, style: Style) -> torch.dtype:
    """That of x, or where rows are rounded first the wider of both, as in a product of them."""
    return torch.promote_types(x.dtype, weight.dtype) if style == "rounded" else x.dtype
