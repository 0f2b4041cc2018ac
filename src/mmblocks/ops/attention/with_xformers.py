"""Packed attention by xformers' memory-efficient attention, with its block-diagonal masks.

FlashAttention-2 for half precision, CUTLASS for float32 and for older devices. The masks are made of the packing's own
tensor: xformers only checks the Python lists that they also carry, and to make these the host would wait for the device.
Their class is private to xformers: another version than `WRITTEN_FOR` may have another, which is a reason against it.
"""

import ctypes
import json
import logging
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmblocks.ops.attention.call import PackedCall, read_compute_capability, reasons_against_features
from mmblocks.ops.attention.varlen import reasons_against_flash_inputs
from mmblocks.reprs import format_dtype

TOLERANCES = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 5e-3}
"""As of varlen; CUTLASS multiplies float32 in TF32, with a mantissa of 10 bits."""
LSE_ALIGNMENT = 32
"""CUTLASS rounds the number of each sequence's logarithms up to a multiple of this."""
WRITTEN_FOR = "0.0.35"
RUNTIME_WHEEL = "nvidia-cuda-runtime-cu{major}"


def reasons_against(call: PackedCall) -> list[str]:
    """Empty when FlashAttention-2 or CUTLASS takes it; otherwise the reasons against each."""
    if call.q.device.type != "cuda":
        return [f"it is for CUDA, and the tensors are on {call.q.device.type}", *reasons_against_features(call)]
    if reasons := list_unavailable_reasons():
        return reasons
    if call.learns and torch.are_deterministic_algorithms_enabled():
        return ["torch.use_deterministic_algorithms is on, and the sums of its backward have no fixed order"]
    flash, cutlass = _reasons_against_flash(call), _reasons_against_cutlass(call)
    return [f"{'; '.join(flash)} (FlashAttention-2)", f"{'; '.join(cutlass)} (CUTLASS)"] if flash and cutlass else []


def forward(call: PackedCall) -> tuple[Tensor, Tensor]:
    """(tokens, heads, value_dim), and (heads, tokens) logarithms of the sums of exponentials."""
    flash = not _reasons_against_flash(call)
    q, k, v = (x.unsqueeze(0) for x in (_group_queries(call) if flash else _repeat_keys(call)))
    operator = import_fmha().flash.FwOp if flash else import_fmha().cutlass.FwOp
    out, lse = import_fmha().memory_efficient_attention_forward_requires_grad(
        q, k, v, _make_mask(call), scale=call.scale, op=operator
    )
    if flash:
        lse = lse.reshape(call.q.shape[1], -1)
    else:
        sequence, position = _find_positions(call)
        lse = lse[sequence, :, position].t()
    return out.reshape(*call.q.shape[:2], -1).contiguous(), lse.contiguous()


def backward(call: PackedCall, grad: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    flash = not _reasons_against_flash(call)
    operator = import_fmha().flash.BwOp if flash else import_fmha().cutlass.BwOp
    q, k, v = (x.unsqueeze(0) for x in _repeat_keys(call))
    if flash:
        lse = lse.unsqueeze(0)
    else:
        longest = -(-call.max_q // LSE_ALIGNMENT) * LSE_ALIGNMENT
        sequence, position = _find_positions(call)
        padded = lse.new_full((len(call.ends_q) - 1, len(lse), longest), torch.inf)
        padded[sequence, :, position] = lse.t()
        lse = padded
    dq, dk, dv = import_fmha().memory_efficient_attention_backward(
        grad.contiguous().unsqueeze(0), out.unsqueeze(0), lse, q, k, v, _make_mask(call), scale=call.scale, op=operator
    )
    return dq.squeeze(0).contiguous(), _sum_groups(dk, call), _sum_groups(dv, call)


# Requirements -------------------------------------------------------------------------------------------------------


def _reasons_against_flash(call: PackedCall) -> list[str]:
    here = read_compute_capability()
    early = here is not None and here < (8, 0)
    return reasons_against_flash_inputs(call) + (["it needs compute capability 8.0"] if early else [])


def _reasons_against_cutlass(call: PackedCall) -> list[str]:
    reasons = reasons_against_features(call)
    aligned = 4 if call.q.dtype == torch.float32 else 8
    if call.q.dtype not in TOLERANCES:
        reasons.append(f"it takes float16, bfloat16 and float32, not {format_dtype(call.q.dtype)}")
    if call.q.shape[-1] % aligned:
        reasons.append(f"head_dim={call.q.shape[-1]} is no multiple of {aligned}")
    if call.window_left is not None and call.learns:
        reasons.append("its backward has no window")
    if (here := read_compute_capability()) is not None and not (7, 5) <= here <= (9, 0):
        reasons.append(f"it is for compute capability 7.5 to 9.0, and this is {here[0]}.{here[1]}")
    return reasons


# Masks --------------------------------------------------------------------------------------------------------------


def _make_mask(call: PackedCall) -> Any:
    """Block-diagonal; causal ones put the last query of a sequence at its last key."""
    masks = import_fmha().attn_bias
    mask = masks.BlockDiagonalMask(
        _make_seqlen_info(call.ends_q, call.max_q), _make_seqlen_info(call.ends_k, call.max_k)
    )
    if not call.causal:
        return mask
    if call.window_left is None:
        return mask.make_causal_from_bottomright()
    return mask.make_local_attention_from_bottomright(call.window_left + 1)


def _make_seqlen_info(ends: Tensor, longest: int) -> Any:
    return import_fmha().attn_bias._SeqLenInfo(seqstart=ends, max_seqlen=longest, min_seqlen=-1, seqstart_py=[])


# Heads --------------------------------------------------------------------------------------------------------------


def _group_queries(call: PackedCall) -> list[Tensor]:
    """(tokens, kv_heads, groups, d): the heads of a group share keys, which are not copied."""
    if call.group_size == 1:
        return [_align_heads(x) for x in (call.q, call.k, call.v)]
    q = _align_heads(call.q).unflatten(1, (-1, call.group_size))
    return [q, *(_align_heads(x).unsqueeze(2).expand(-1, -1, call.group_size, -1) for x in (call.k, call.v))]


def _repeat_keys(call: PackedCall) -> list[Tensor]:
    """(tokens, heads, d): keys copied for each head of a group, as backward and CUTLASS need it."""
    keys = (
        (call.k, call.v)
        if call.group_size == 1
        else (x.repeat_interleave(call.group_size, 1) for x in (call.k, call.v))
    )
    return [_align_heads(x) for x in (call.q, *keys)]


def _align_heads(x: Tensor) -> Tensor:
    """Heads that begin at multiples of 8 numbers and have contiguous channels."""
    return x if x.stride(-1) == 1 and not x.stride(-2) % 8 else x.contiguous()


def _sum_groups(grad: Tensor, call: PackedCall) -> Tensor:
    """(1, tokens, heads, d) to (tokens, kv_heads, d)."""
    grad = grad.squeeze(0)
    return (grad if call.group_size == 1 else grad.unflatten(1, (-1, call.group_size)).sum(2)).contiguous()


def _find_positions(call: PackedCall) -> tuple[Tensor, Tensor]:
    """For each token the number of its sequence and its position in it, without the host knowing lengths.

    CUTLASS keeps logarithms as (sequences, heads, longest); everything else here is (heads, tokens).
    """
    token = torch.arange(len(call.q), device=call.q.device, dtype=call.ends_q.dtype)
    sequence = torch.searchsorted(call.ends_q, token, right=True) - 1
    return sequence, token - call.ends_q[sequence]


# This machine -------------------------------------------------------------------------------------------------------


@cache
def list_unavailable_reasons() -> list[str]:
    """Why xformers' operators cannot run here; empty when a small one just did."""
    if read_compute_capability() is None:
        return ["its operators are for CUDA, and torch sees no CUDA device"]
    if reasons := reasons_against_library():
        return reasons
    probe = torch.zeros(1, 8, 1, 64, device="cuda", dtype=torch.float16)
    try:
        import_fmha().memory_efficient_attention_forward(probe, probe, probe)
    except (NotImplementedError, RuntimeError, ValueError) as cause:
        return [f"no operator takes a probe of float16 on {torch.cuda.get_device_name()}: {_take_first_line(cause)}"]
    return []


@cache
def reasons_against_library() -> list[str]:
    """Why xformers' compiled part cannot be loaded beside this torch; without it xformers refuses every operator."""
    try:
        import_fmha()
    except ImportError as cause:
        return [f"it cannot be imported ({cause})"]
    from xformers import _cpp_lib

    if (fault := getattr(_cpp_lib, "_cpp_library_load_exception", None)) is None:
        return _reasons_against_masks()
    return [explain_missing_runtime() or f"its compiled part cannot be loaded: {_take_first_line(fault)}"]


@cache
def import_fmha() -> Any:
    """xformers' attention, imported without a word. Raises `ImportError` where it is not installed.

    Its wheels are linked to the CUDA runtime they were built with. A torch for another CUDA does not bring that, so it
    is loaded first; xformers' own kernels are few, and those that attention calls are torch's.
    """
    logging.getLogger("xformers").setLevel(logging.ERROR)  # its warning of a missing runtime is a reason here
    if find_spec("xformers") is None:
        raise ImportError("xformers is not installed; it is for Linux on x86-64: pip install xformers")
    if (major := find_foreign_cuda_major()) is not None:
        for library in (f"libcudart.so.{major}", *_find_in_wheel(major)):
            try:
                ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
                break
            except OSError:
                continue
    from xformers.ops import fmha

    return fmha


def _reasons_against_masks() -> list[str]:
    """Why masks cannot be made of tensors: their parts are private to xformers, and another version may have others."""
    ends = torch.tensor([0, 1], dtype=torch.int32)
    token = torch.zeros(1, 1, 8)
    call = PackedCall(token, token, token, ends, ends, 1, 1, causal=True, scale=1.0)
    try:
        for one in (call, replace(call, causal=False), replace(call, max_k=2, window=1)):
            _make_mask(one)
    except (AttributeError, TypeError, ValueError) as cause:
        return [f"its masks are not those of xformers {WRITTEN_FOR} ({_take_first_line(cause)})"]
    return []


def find_foreign_cuda_major() -> int | None:
    """Major version of the CUDA that xformers was built with, as its wheel states it; None where torch has the same."""
    spec = find_spec("xformers")
    if spec is None or spec.origin is None:
        return None
    try:
        stated = json.loads((Path(spec.origin).parent / "cpp_lib.json").read_text(encoding="utf-8"))
        major = int(stated["version"]["cuda"]) // 100
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if torch.version.cuda and int(torch.version.cuda.partition(".")[0]) == major else major


def explain_missing_runtime() -> str | None:
    """What to install, where the CUDA runtime of xformers is missing."""
    major = find_foreign_cuda_major()
    if major is None or _find_in_wheel(major):
        return None
    return (
        f"it was built for CUDA {major} and torch for CUDA {torch.version.cuda}; it needs libcudart.so.{major} beside "
        f"that of torch: pip install {RUNTIME_WHEEL.format(major=major)}"
    )


def _find_in_wheel(major: int) -> list[str]:
    """The runtime in NVIDIA's wheel, if that is installed."""
    try:
        installed = files(RUNTIME_WHEEL.format(major=major)) or []
    except PackageNotFoundError:
        return []
    return [str(file.locate()) for file in installed if file.name == f"libcudart.so.{major}"]


def _take_first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
