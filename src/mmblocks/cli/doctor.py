"""Versions, devices and fast paths of this machine, for a bug report or a first look."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mmblocks import __version__
from mmblocks.errors import CheckpointError

PACKAGES = (
    "torch",
    "transformers",
    "timm",
    "einops",
    "safetensors",
    "pillow",
    "hydra-core",
    "xformers",
    "decord",
    "av",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Nothing is changed and nothing is sent."


def run(args: argparse.Namespace) -> int:
    for title, lines in (("packages", packages()), ("machine", machine()), ("mmblocks", own())):
        print(f"{title}:")
        for name, value in lines:
            print(f"  {name:18} {value}")
    return 0


def packages() -> Iterator[tuple[str, str]]:
    """Versions of what mmblocks stands on."""
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    yield "mmblocks", __version__
    for name in PACKAGES:
        yield name, _version(name) or "not installed"


def machine() -> Iterator[tuple[str, str]]:
    """Devices, and which paths they allow."""
    import torch

    from mmblocks.ops.attention.machine import reasons_against_xformers

    yield "cpu", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    yield "cuda", ", ".join(_gpus()) or f"none (torch is built for CUDA {torch.version.cuda or 'no version'})"
    reasons = reasons_against_xformers()
    yield "xformers operators", f"do not run here: {'; '.join(reasons)}" if reasons else "run here"
    yield "attention", "per sequence, by torch's scaled_dot_product_attention"
    yield "video readers", _video_readers()


def own() -> Iterator[tuple[str, str]]:
    """What came with the package."""
    yield "installed in", str(Path(__file__).parents[1])
    yield "bundled model", _bundled_model()


def _bundled_model() -> str:
    from mmblocks.assets import tiny_model

    try:
        return str(tiny_model())
    except CheckpointError as missing:
        return str(missing)


def _gpus() -> Iterator[str]:
    import torch

    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        yield f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB, bf16 {torch.cuda.is_bf16_supported()})"


def _video_readers() -> str:
    found = [name for name in ("decord", "av") if importlib.util.find_spec(name)]
    return ", then ".join(found) or "none: clips given as arrays only; pip install av"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
