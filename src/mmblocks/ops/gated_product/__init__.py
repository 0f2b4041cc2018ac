"""The gate of a decoder layer's MLP: SwiGLU and GeGLU (Shazeer 2020, arXiv:2002.05202).

That the activation is computed again in backward is the idea of Liger (Hsu et al. 2024, arXiv:2410.10989), that the
product is, of Megatron's selective recomputation (Korthikanti et al. 2022, arXiv:2205.05198); the kernels are our own.
"""

import torch
from torch import Tensor

from mmblocks.ops.gated_product.library import OP, compute_product, recompute_product
from mmblocks.ops.gated_product.reference import ACTIVATIONS, Activation

__all__ = ["ACTIVATIONS", "OP", "Activation", "compute_product", "multiply_gated", "recompute_product"]


def multiply_gated(gate: Tensor, up: Tensor, *, activation: Activation = "silu") -> Tensor:
    """activation(gate) * up, with the activation rounded to the type of gate, as transformers does.

    gate, up: (..., dim), of one shape and type. Returns the same. Differentiable in both, which are kept for backward.
    """
    choose_at_runtime = torch.compiler.is_compiling() or gate.is_meta
    backend = "" if choose_at_runtime else OP.choose_backend(gate, up, activation).name
    return compute_product(gate, up, activation, backend)
