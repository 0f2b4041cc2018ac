"""Linear layers whose frozen weights are kept in 4 or 8 bits; bitsandbytes makes and reads the codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmblocks._optional import need

BLOCK, NESTED_BLOCK = 64, 256  # weights that share a scale, and scales that share one: bitsandbytes' own


class Quantized(nn.Linear):
    """A frozen linear layer (in_features to out_features) that reads its weight back from codes whenever it is used.

    4 bits: NormalFloat codes whose scales are quantized again (nf4, double quantization,
    https://arxiv.org/abs/2305.14314). 8 bits: whole numbers with a scale per row
    (https://arxiv.org/abs/2208.07339, of which activations here stay as they are). Codes and scales are buffers outside
    the state dict: they are made again from the weights that a stage starts from. Backward keeps codes, not weights.
    """

    def __init__(self, linear: nn.Linear, bits: Literal[4, 8]) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bits = linear.in_features, linear.out_features, bits
        self.kind = linear.weight.dtype
        self.bias = linear.bias
        for name, codes in _codes(linear.weight.detach(), bits).items():
            self.register_buffer(name, codes, persistent=False)

    @classmethod
    def of(cls, linear: nn.Linear, bits: Literal[4, 8]) -> Quantized:
        """The quantized form of a linear layer; its bias stays as it is."""
        need("bitsandbytes", extra="quant", to=f"keeping a backbone in {bits} bits (train.lora.bits)")
        return cls(linear, bits)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(out_features, in_features): what the codes stand for."""
        shape = torch.Size((self.out_features, self.in_features))
        return _read(dict(self.named_buffers(recurse=False)), self.bits, self.kind, shape)

    def forward(self, input: Tensor) -> Tensor:
        return _Frozen.apply(input, self.bias, lambda: self.weight)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}"


class _Frozen(torch.autograd.Function):
    """x @ weight.T + bias whose backward reads the weight again instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, read: Callable[[], Tensor]) -> Tensor:
        ctx.read, ctx.kind = read, x.dtype
        return F.linear(x, read().to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return (gradient @ ctx.read().to(gradient.dtype)).to(ctx.kind), None, None


def _codes(weight: Tensor, bits: int) -> dict[str, Tensor]:
    import bitsandbytes.functional as bnb

    if bits == 8:
        codes, scales, _ = bnb.int8_vectorwise_quant(weight.to(torch.float16))
        return {"codes": codes, "scales": scales}
    state: Any
    codes, state = bnb.quantize_4bit(weight, blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
    return {
        "codes": codes,
        "scales": state.absmax,
        "nested_scales": state.state2.absmax,
        "nested_levels": state.state2.code,
        "middle": state.offset,
        "levels": state.code,
    }


def _read(stored: dict[str, Tensor], bits: int, kind: torch.dtype, shape: torch.Size) -> Tensor:
    import bitsandbytes.functional as bnb

    if bits == 8:
        return bnb.int8_vectorwise_dequant(stored["codes"], stored["scales"]).to(kind)
    nested = bnb.QuantState(
        absmax=stored["nested_scales"], blocksize=NESTED_BLOCK, code=stored["nested_levels"], dtype=torch.float32
    )
    state = bnb.QuantState(
        absmax=stored["scales"],
        shape=shape,
        dtype=kind,
        blocksize=BLOCK,
        code=stored["levels"],
        quant_type="nf4",
        offset=stored["middle"],
        state2=nested,
    )
    return bnb.dequantize_4bit(stored["codes"], state)
