"""What this machine offers to attention, found by trying it."""

from __future__ import annotations

import logging


def reasons_against_xformers() -> list[str]:
    """Why xformers' operators cannot run here; empty when a small one just did."""
    import torch

    if not torch.cuda.is_available():
        return ["its operators are for CUDA, and torch sees no CUDA device"]
    logging.getLogger("xformers").setLevel(logging.ERROR)  # it warns about extensions that torch's own kernels replace
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError as cause:
        return [f"it cannot be imported ({cause})"]
    probe = torch.zeros(1, 8, 1, 64, device="cuda", dtype=torch.float16)
    try:
        memory_efficient_attention(probe, probe, probe)
    except (NotImplementedError, RuntimeError) as cause:
        return [f"no operator takes a probe of float16 on {torch.cuda.get_device_name()}: {_first_line(cause)}"]
    return []


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
