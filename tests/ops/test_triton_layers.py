"""The Triton kernels of a decoder layer without a GPU: run by Triton's interpreter, and compiled for an H100 or H200.

Triton reads TRITON_INTERPRET when it is imported, so this file is also the program that the interpreter runs.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from transformers.models.gemma import modeling_gemma
from transformers.models.llama import modeling_llama
from transformers.models.olmo2 import modeling_olmo2

from mmblocks.ops.gated_product import multiply_gated
from mmblocks.ops.gated_product.selftest import run_selftest as run_gated_product_selftest
from mmblocks.ops.rms_norm import rms_norm
from mmblocks.ops.rms_norm.selftest import run_selftest as run_rms_norm_selftest
from mmblocks.ops.rotary import rotate
from mmblocks.ops.rotary.selftest import run_selftest as run_rotary_selftest
from mmblocks.ops.selftest import compute_value_and_gradients

SELFTESTS = (run_rms_norm_selftest, run_gated_product_selftest, run_rotary_selftest)
TOLERANCES = {
    torch.float32: 1e-6,  # sums in another order
    torch.bfloat16: 2**-6,  # the interpreter cuts numbers off at 8 bits where torch rounds them, twice in a row
}
NORMS = [
    (modeling_llama.LlamaRMSNorm, "rounded", "variance_epsilon"),
    (modeling_olmo2.Olmo2RMSNorm, "wide", "variance_epsilon"),
    (modeling_gemma.GemmaRMSNorm, "one_plus", "eps"),
]
ROTARY_FUNCTIONS = [modeling_llama.apply_rotary_pos_emb, modeling_olmo2.apply_rotary_pos_emb]


# In the interpreter -------------------------------------------------------------------------------------------------


def report() -> Iterator[tuple[str, float, float]]:
    """What is compared, how far apart it is and how far it may be."""
    for run_selftest in SELFTESTS:
        for result in run_selftest("cpu"):
            assert result.error is not None, result.reasons
            if result.backend == "triton":
                yield f"{result.op}: {result.case}", result.error, result.tolerance
    torch.manual_seed(0)
    for dtype, tolerance in TOLERANCES.items():
        for name, ours, own, inputs in list_transformers_pairs(dtype):
            for got, want in zip(
                compute_value_and_gradients(ours, inputs), compute_value_and_gradients(own, inputs), strict=True
            ):
                assert got.dtype == want.dtype
                yield f"{name}, {dtype}", difference(got, want), tolerance
    yield from report_of_types_and_bits()


def list_transformers_pairs(dtype):
    """name, our op, transformers' own code, inputs with gaps between their rows."""
    for make, style, epsilon in NORMS:
        norm = make(259).to(dtype)
        x, weight = torch.randn(2, 5, 300)[..., 3:262].to(dtype), torch.randn(259).to(dtype)

        def run_own(x, weight, norm=norm):
            return torch.func.functional_call(norm, {"weight": weight}, x)

        eps = getattr(norm, epsilon)

        def run_ours(x, weight, style=style, eps=eps):
            return rms_norm(x, weight, eps=eps, style=style)

        yield make.__name__, run_ours, run_own, [x, weight]
    gate, up = torch.randn(2, 5, 2 * 130).to(dtype).chunk(2, dim=-1)
    yield "silu", multiply_gated, lambda gate, up: torch.nn.functional.silu(gate) * up, [gate, up]
    q, k = (torch.randn(2, 5, heads, 24).to(dtype).transpose(1, 2) for heads in (6, 2))
    cos, sin = torch.randn(2, 1, 5, 24).to(dtype)
    for own in ROTARY_FUNCTIONS:
        pair = [lambda q, k, run=run: torch.cat(run(q, k, cos, sin), dim=1) for run in (rotate, own)]
        yield "rotary", *pair, [q, k]


def report_of_types_and_bits() -> Iterator[tuple[str, float, float]]:
    x, weight = torch.randn(2100, 8, dtype=torch.bfloat16), torch.randn(8)
    llama = modeling_llama.LlamaRMSNorm(8)
    llama.weight.data = weight
    got = rms_norm(x, weight, eps=llama.variance_epsilon)
    assert got.dtype == llama(x).dtype == torch.float32
    yield "float32 weights on bfloat16 rows", difference(got, llama(x)), TOLERANCES[torch.bfloat16]
    twice = [compute_value_and_gradients(lambda x, w: rms_norm(x, w, eps=1e-6), [x, weight]) for _ in range(2)]
    yield "bits of a second run", max(map(difference, *twice)), 0.0


def difference(got, want):
    return float((got.double() - want.double()).abs().max() / want.double().abs().max().clamp(min=1e-9))


def test_the_kernels_compute_what_float64_and_transformers_do():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert len(found) == (108 + 72 + 40) / 2 + 2 * 3 * (3 + 1 + 2) + 2
    assert [line for line in found if not line[1] <= line[2]] == []


# On a CPU and on a GPU ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run_selftest", SELFTESTS)
def test_the_references_agree_with_float64(run_selftest):
    results = list(run_selftest("cpu"))
    assert [result for result in results if not result.is_acceptable] == []
    assert {result.backend for result in results if result.error is not None} == {"reference"}


@pytest.mark.gpu
@pytest.mark.parametrize("run_selftest", SELFTESTS)
def test_every_way_agrees_with_float64_on_a_gpu(run_selftest):
    results = list(run_selftest("cuda"))
    assert [result for result in results if not result.is_acceptable] == []
    assert {result.backend for result in results if result.error is not None} == {"triton", "reference"}


# Compiled for sm_90 -------------------------------------------------------------------------------------------------

WIDTH = 3584
NORM_BLOCK = {"ROWS": 1, "CHANNELS": 4096}
KERNELS = [
    ("rms_norm", "normalise_rows", {"ROUNDS_FIRST": True, "OFFSET": 0.0, **NORM_BLOCK}, 8),
    ("rms_norm", "normalise_gradient", {"ROUNDS_FIRST": True, "OFFSET": 0.0, "LEARNS": True, **NORM_BLOCK}, 8),
    ("rms_norm", "normalise_gradient", {"ROUNDS_FIRST": False, "OFFSET": 1.0, "LEARNS": False, **NORM_BLOCK}, 8),
    ("gated_product", "multiply_gated", {"ACTIVATION": "silu", "CHANNELS": 1024}, 4),
    ("gated_product", "multiply_gated_gradient", {"ACTIVATION": "silu", "CHANNELS": 1024}, 4),
    ("gated_product", "multiply_gated_gradient", {"ACTIVATION": "gelu_tanh", "CHANNELS": 1024}, 4),
    ("rotary", "turn_heads", {"BACK": False, "HEADS": 16, "HALF": 64}, 4),
    ("rotary", "turn_heads", {"BACK": True, "HEADS": 16, "HALF": 64}, 4),
]
FLOAT32_POINTERS, FLOATS = ("rstd", "partial"), ("eps",)
POINTERS = ("x", "weight", "out", "grad", "x_grad", "gate", "up", "gate_grad", "up_grad", "cos", "sin")


def compiled(folder, name, constants, warps, dtype):
    """A kernel's machine code for widths that are multiples of 16, without a device."""
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(f"mmblocks.ops.{folder}.kernels"), name)
    names = kernel.arg_names
    types = {
        **dict.fromkeys(names, "i32"),
        **dict.fromkeys(POINTERS, f"*{dtype}"),
        **dict.fromkeys(FLOAT32_POINTERS, "*fp32"),
        **dict.fromkeys(FLOATS, "fp32"),
    }
    signature = {n: "constexpr" if n in constants else types[n] for n in names}
    aligned = {n for n in names if n not in constants} - {"n", "programs", "heads", "tokens", *FLOATS}
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in aligned}
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, "enable_fp_fusion": False}
    ).asm["cubin"]


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize(("folder", "name", "constants", "warps"), KERNELS)
def test_compiled_for_sm_90_they_move_16_bytes_a_thread_and_spill_nothing(
    folder, name, constants, warps, dtype, tmp_path
):
    import triton

    file = tmp_path / "kernel.cubin"
    file.write_bytes(compiled(folder, name, constants, warps, dtype))
    tool = triton.knobs.nvidia.cuobjdump.path
    instructions, usage = (
        subprocess.check_output([tool, option, file], text=True) for option in ("-sass", "-res-usage")
    )
    stores = set(re.findall(r"STG\.\S+", instructions))
    assert stores - {"STG.E"} == {"STG.E.128"}  # a norm also stores a number for each row
    assert "LDG.E.128" in re.findall(r"LDG\.\S+", instructions)
    assert re.findall(r"\b(?:LDL|STL|ATOM|RED)\b\S*", instructions) == []
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    assert registers <= 128
    assert stack == 0


if __name__ == "__main__":
    print(json.dumps(list(report())))
