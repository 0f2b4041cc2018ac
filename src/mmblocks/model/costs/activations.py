"""Bytes that a forward pass keeps for backward: every storage that autograd saves, counted once. Nothing is computed."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True, slots=True)
class ActivationMemory:
    """Bytes that a forward pass keeps for backward.

    saved: all that autograd saves. entering: what is saved outside of the repeated blocks, and what enters them. block:
    the most that one block saves beside that.
    """

    saved: int
    entering: int
    block: int

    def count_peak_bytes(self, gradient_checkpointing: bool) -> int:
        """At the fullest moment: everything, or with `gradient_checkpointing` what enters the blocks and the inside of one."""
        return self.entering + self.block if gradient_checkpointing else self.saved


def count_activations(model: nn.Module, blocks: Sequence[nn.Module], run: Callable[[], object]) -> ActivationMemory:
    """What a model keeps for backward in a run, on the meta device or a real one, and what of it in `blocks`.

    Weights are not counted. On the meta device attention keeps what fused kernels keep: queries, keys, values, output and
    one float32 per query and head. Layers of language models keep what they keep on CUDA.
    """
    counter = _ActivationCounter(model)
    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(counter.enter_block, with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(counter.leave_block).remove)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(counter.record_saved, lambda tensor: tensor))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_FusedAttentionOnMeta())
        run()
    return counter.to_activation_memory()


class _ActivationCounter:
    """Storages that autograd saves, by where: outside of blocks or in which of them."""

    def __init__(self, model: nn.Module) -> None:
        own = chain(model.parameters(), model.buffers())
        self.weights = {t.untyped_storage()._cdata: t.untyped_storage() for t in own}
        self.outside: dict[int, int] = {}
        self.inputs: dict[int, int] = {}
        self.blocks: list[dict[int, int]] = []
        self.inside = False
        self.alive: list[Tensor] = []

    def enter_block(self, block: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        entering = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.inside = torch.is_grad_enabled()
        self.blocks.append({})
        if any(t.requires_grad for t in chain(entering, block.parameters())):
            for tensor in entering:
                self._record_storage(tensor, self.inputs)

    def leave_block(self, *_: object) -> None:
        self.inside = False

    def record_saved(self, tensor: Tensor) -> Tensor:
        self._record_storage(tensor, self.blocks[-1] if self.inside else self.outside)
        return tensor

    def _record_storage(self, tensor: Tensor, storages: dict[int, int]) -> None:
        if (key := tensor.untyped_storage()._cdata) not in self.weights:
            self.alive.append(tensor)  # or the next storage could get the same key
            storages[key] = tensor.untyped_storage().nbytes()

    def to_activation_memory(self) -> ActivationMemory:
        entering = {**self.outside, **self.inputs}
        saved = {**self.outside, **{key: size for block in self.blocks for key, size in block.items()}}
        beside = (sum(size for key, size in block.items() if key not in entering) for block in self.blocks)
        return ActivationMemory(sum(saved.values()), sum(entering.values()), max(beside, default=0))


class _FusedAttentionOnMeta(TorchFunctionMode):
    """torch's attention on the meta device would keep all scores; this keeps what the fused kernels keep."""

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if func is F.scaled_dot_product_attention and args[0].is_meta:
            mask = (kwargs or {}).get("attn_mask")
            return FusedAttention.apply(*args[:3], None if mask is None else mask.to(args[0].dtype))  # added to scores
        return func(*args, **(kwargs or {}))


class FusedAttention(torch.autograd.Function):
    """Attention of (..., heads, rows, channels) that computes nothing, and keeps and makes what a fused kernel would."""

    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        heads, rows = q.shape[-3:-1]
        out = q.new_empty(*q.shape[:-3], rows, heads, v.shape[-1]).transpose(-3, -2)  # as the kernels lay it out
        scales = q.new_empty(q.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, scales, *([] if mask is None else [mask]))
        return out

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *_ = ctx.saved_tensors  # type: ignore[attr-defined]
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None
