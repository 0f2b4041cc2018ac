"""What this machine offers to attention, found by trying it."""

from __future__ import annotations

import ctypes
import json
import logging
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

RUNTIME_WHEEL = "nvidia-cuda-runtime-cu{major}"


@cache
def read_compute_capability() -> tuple[int, int] | None:
    """Compute capability of the current CUDA device, None without one."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


@cache
def reasons_against_flash() -> list[str]:
    """Why torch's own FlashAttention cannot run here."""
    here = read_compute_capability()
    if here is None:
        return ["torch sees no CUDA device"]
    if here < (8, 0):
        return [f"it needs compute capability 8.0, and this is {here[0]}.{here[1]}"]
    if not torch.backends.cuda.is_flash_attention_available():
        return [f"torch {torch.__version__} was built without FlashAttention"]
    return []


@cache
def reasons_against_xformers() -> list[str]:
    """Why xformers' operators cannot run here; empty when a small one just did."""
    if read_compute_capability() is None:
        return ["its operators are for CUDA, and torch sees no CUDA device"]
    try:
        operators = import_fmha()
    except ImportError as cause:
        return [f"it cannot be imported ({cause})"]
    if reasons := reasons_against_library():
        return reasons
    probe = torch.zeros(1, 8, 1, 64, device="cuda", dtype=torch.float16)
    try:
        operators.memory_efficient_attention_forward(probe, probe, probe)
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

    if (fault := _cpp_lib._cpp_library_load_exception) is None:
        return []
    return [_explain_missing_runtime() or f"its compiled part cannot be loaded: {_take_first_line(fault)}"]


@cache
def import_fmha() -> Any:
    """xformers' attention, imported without a word. Raises `ImportError` where it is not installed.

    Its wheels are linked to the CUDA runtime they were built with. A torch for another CUDA does not bring that, so it
    is loaded first; xformers' own kernels are few, and what attention calls are torch's.
    """
    logger = logging.getLogger("xformers")
    logger.setLevel(logging.ERROR)  # it warns about a missing runtime, of which `reasons_against_library` tells
    if find_spec("xformers") is None:
        raise ImportError("xformers is not installed; it is for Linux on x86-64: pip install xformers")
    _load_runtime()
    from xformers.ops import fmha

    return fmha


# The CUDA runtime that xformers was built with ----------------------------------------------------------------------


def _load_runtime() -> None:
    major = _read_xformers_cuda_major()
    if major is None or major == _read_torch_cuda_major():
        return
    for place in (f"libcudart.so.{major}", *_find_in_wheel(major)):
        try:
            ctypes.CDLL(place, mode=ctypes.RTLD_GLOBAL)
            return
        except OSError:
            continue


def _explain_missing_runtime() -> str | None:
    """What to install, where a runtime is missing."""
    major = _read_xformers_cuda_major()
    if major is None or major == _read_torch_cuda_major() or list(_find_in_wheel(major)):
        return None
    wheel = RUNTIME_WHEEL.format(major=major)
    return (
        f"it was built for CUDA {major} and torch for CUDA {torch.version.cuda}; it needs libcudart.so.{major} beside "
        f"that of torch: pip install {wheel}"
    )


def _read_xformers_cuda_major() -> int | None:
    """Major version of the CUDA that xformers was built with, as its wheel says."""
    spec = find_spec("xformers")
    if spec is None or spec.origin is None:
        return None
    try:
        said = json.loads((Path(spec.origin).parent / "cpp_lib.json").read_text(encoding="utf-8"))
        return int(said["version"]["cuda"]) // 100
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_torch_cuda_major() -> int | None:
    return int(torch.version.cuda.partition(".")[0]) if torch.version.cuda else None


def _find_in_wheel(major: int) -> list[str]:
    """The runtime in the wheel that NVIDIA makes of it, if that is installed."""
    try:
        found = files(RUNTIME_WHEEL.format(major=major)) or []
    except PackageNotFoundError:
        return []
    return [str(file.locate()) for file in found if file.name == f"libcudart.so.{major}"]


def _take_first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
