"""A language model whose linear layers are frozen and kept in 4 or 8 bits; bitsandbytes quantizes and dequantizes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmblocks._optional import import_optional
from mmblocks.errors import ConfigError
from mmblocks.model.onevision import OneVision

BLOCK, NESTED_BLOCK = 64, 256  # weights per scale, and scales per nested scale: bitsandbytes' defaults


Bits = Literal[4, 8]


@torch.no_grad()
def quantize_backbone(model: OneVision, bits: Bits, device: torch.device | None = None) -> None:
    """Keep the weights of the language model's linear layers in `bits` bits, in place; its output head, its embeddings and all
    other parts stay as they are.

    device: where each layer is moved before it is quantized, one after the other; by default it stays where it is.
    """
    if bits not in (4, 8):
        raise ConfigError(f"bits={bits!r} is neither 4 nor 8.")
    for name in list_linear_layers(model):
        linear = model.backbone.lm.get_submodule(name).to(device)
        replace_modules(model, {name: QuantizedLinear.from_linear(linear, bits)})


def require_no_quantized_layer(model: OneVision, purpose: str) -> None:
    """Raise `ConfigError` for a model whose weights are not whole. purpose: what needs them: "saving"."""
    if any(isinstance(module, QuantizedLinear) for module in model.modules()):
        raise ConfigError(
            f"the model's backbone is kept in few bits, and {purpose} needs its whole weights; load it without bits."
        )


def list_linear_layers(model: OneVision) -> list[str]:
    """Names of the linear layers inside the backbone's language model, its output head apart."""
    lm = model.backbone.lm
    head = lm.get_output_embeddings()
    names = [name for name, module in lm.named_modules() if isinstance(module, nn.Linear) and module is not head]
    if not names:
        raise ConfigError(
            f"backbone {model.backbone.config.model_type!r} has no linear layer (torch.nn.Linear), so it can have no adapters "
            "and no weights of few bits; train 'backbone' instead of 'lora', and load it without bits."
        )
    return names


def replace_modules(model: OneVision, modules: Mapping[str, nn.Module]) -> None:
    """Put modules under these names of the language model."""
    for name, module in modules.items():
        parent, _, last = name.rpartition(".")
        setattr(model.backbone.lm.get_submodule(parent), last, module)


class QuantizedLinear(nn.Linear):
    """A frozen linear layer (in_features to out_features) that dequantizes its weight whenever it is used.

    4 bits: NormalFloat codes whose scales are quantized again (nf4, double quantization,
    https://arxiv.org/abs/2305.14314). 8 bits: integers with a scale per row (https://arxiv.org/abs/2208.07339, without its
    quantized activations). Codes and scales are buffers outside the state dict: they are made again from the weights that a
    stage starts from. Backward keeps codes, not weights.
    """

    def __init__(self, linear: nn.Linear, bits: Bits) -> None:
        nn.Module.__init__(self)
        import bitsandbytes.functional as bnb

        self.in_features, self.out_features, self.bits = linear.in_features, linear.out_features, bits
        self.kind = linear.weight.dtype
        self.bias = linear.bias
        weight = linear.weight.detach()
        if bits == 8:
            codes, scales, _ = bnb.int8_vectorwise_quant(weight.to(torch.float16))
            buffers = {"codes": codes, "scales": scales}
        else:
            state: Any
            codes, state = bnb.quantize_4bit(weight, blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
            buffers = {"codes": codes, "scales": state.absmax, "levels": state.code, "middle": state.offset}
            buffers |= {"nested_scales": state.state2.absmax, "nested_levels": state.state2.code}
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)

    @classmethod
    def from_linear(cls, linear: nn.Linear, bits: Bits) -> QuantizedLinear:
        """The quantized form of a linear layer; its bias stays as it is."""
        import_optional("bitsandbytes", extra="quant", to=f"keeping a backbone in {bits} bits")
        return cls(linear, bits)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(out_features, in_features): the dequantized weight."""
        import bitsandbytes.functional as bnb

        buffers = dict(self.named_buffers(recurse=False))
        if self.bits == 8:
            return bnb.int8_vectorwise_dequant(buffers["codes"], buffers["scales"]).to(self.kind)
        nested = bnb.QuantState(
            absmax=buffers["nested_scales"], blocksize=NESTED_BLOCK, code=buffers["nested_levels"], dtype=torch.float32
        )
        state = bnb.QuantState(
            absmax=buffers["scales"],
            shape=torch.Size((self.out_features * self.in_features,)),
            dtype=self.kind,
            blocksize=BLOCK,
            code=buffers["levels"],
            quant_type="nf4",
            offset=buffers["middle"],
            state2=nested,
        )
        # As one row: on CPUs with AVX-512 bitsandbytes 0.50 takes wrong scales for rows that are no multiple of a block.
        return bnb.dequantize_4bit(buffers["codes"], state).view(self.out_features, self.in_features)

    def forward(self, input: Tensor) -> Tensor:
        return _FrozenLinear.apply(input, self.bias, lambda: self.weight)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}"


class _FrozenLinear(torch.autograd.Function):
    """x @ weight.T + bias; backward dequantizes the weight again instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, read: Callable[[], Tensor]) -> Tensor:
        ctx.read, ctx.kind = read, x.dtype
        return F.linear(x, read().to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return (gradient @ ctx.read().to(gradient.dtype)).to(ctx.kind), None, None
