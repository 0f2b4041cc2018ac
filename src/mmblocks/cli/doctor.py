"""Versions, devices and fast paths of this machine, for a bug report or a first look."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmblocks import __version__, versions
from mmblocks.errors import CheckpointError

if TYPE_CHECKING:
    from mmblocks.ops.selftest import BackendResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Nothing is sent, and nothing is changed but the file of --tune-attention."
    parser.add_argument(
        "--selftest",
        action="store_true",
        help="run every backend of every op on small inputs and compare with its reference; exit 1 if one is off",
    )
    parser.add_argument(
        "--tune-attention",
        metavar="FILE",
        help="time the attention backends on this machine and write their order, which MMBLOCKS_ATTENTION_TABLE=FILE reads",
    )


def run(args: argparse.Namespace) -> int:
    for title, lines in (
        ("packages", list_packages()),
        ("machine", describe_machine()),
        ("ops", list_backends()),
        ("last decoder layer computes asked rows only", list_last_layer_savings()),
        ("mmblocks", describe_installation()),
    ):
        print(f"{title}:")
        for name, value in lines:
            print(f"  {name:24} {value}")
    if args.tune_attention:
        _tune_attention(Path(args.tune_attention))
    return _run_selftest() if args.selftest else 0


def list_packages() -> Iterator[tuple[str, str]]:
    """Versions of what mmblocks stands on."""
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    yield "mmblocks", __version__
    for name in versions.list_required_packages():
        yield name, _describe_package(name)
    for name in versions.list_optional_packages():
        yield name, _describe_package(name) if versions.find_installed_version(name) else "not installed, optional"


def describe_machine() -> Iterator[tuple[str, str]]:
    """Devices, and which paths they allow."""
    import torch

    from mmblocks.ops.attention.with_xformers import reasons_against_library

    yield "cpu", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    yield "cuda", ", ".join(_gpus()) or f"none (torch is built for CUDA {torch.version.cuda or 'no version'})"
    yield "xformers library", _format_reasons(reasons_against_library(), "loads beside this torch", "does not load")
    yield "video readers", _video_readers()


def list_backends() -> Iterator[tuple[str, str]]:
    """Every backend of every op: whether it runs on this machine, for inputs that it takes."""
    from mmblocks.ops.choice import AUTO, find_requested_backend, list_ops

    for op in list_ops():
        chosen = find_requested_backend(op.name)
        yield op.name, "the fastest that takes the inputs" if chosen == AUTO else f"{chosen} is chosen"
        for backend in op.backends:
            yield f"  {backend.name}", _format_reasons(backend.unavailable_reasons(), "runs here", "does not run here")


def list_last_layer_savings() -> Iterator[tuple[str, str]]:
    """Families of language models whose last layer need not compute all rows, and what became of each here."""
    from mmblocks.backbones.last_layer import FAMILIES, find_reason_against_family

    for family in FAMILIES:
        reason = find_reason_against_family(family)
        yield family, "yes" if reason is None else f"NO, it computes all rows: {reason}"


def describe_installation() -> Iterator[tuple[str, str]]:
    """What came with the package."""
    yield "installed in", str(Path(__file__).parents[1])
    yield "bundled model", _bundled_model()


def _format_reasons(reasons: Sequence[str], yes: str, no: str) -> str:
    return f"{no}: {'; '.join(reasons)}" if reasons else yes


def _bundled_model() -> str:
    from mmblocks.assets import find_tiny_model

    try:
        return str(find_tiny_model())
    except CheckpointError as missing:
        return str(missing)


def _gpus() -> Iterator[str]:
    import torch

    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        yield f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB, bf16 {torch.cuda.is_bf16_supported()})"


def _video_readers() -> str:
    found = [name for name in ("decord", "av") if importlib.util.find_spec(name)]
    return ", then ".join(found) or "none: videos given as arrays only; pip install av"


def _describe_package(package: str) -> str:
    """The version of a package and what it was tested with, or what to do about it."""
    version = versions.find_installed_version(package)
    if version is None:
        return f"not installed: {versions.format_pip_command(package)}"
    if broken := versions.find_import_error(package):
        return f"{version}, BROKEN: {broken}; run: {versions.format_pip_command(package)}"
    tested = versions.find_tested_range(package)
    span = f" (tested: {tested[0]} to {tested[1]})" if tested else ""
    return f"{version}{span}" + (" OUTSIDE" if versions.describe_untested_version(package) else "")


def _tune_attention(path: Path) -> None:
    """Write the order of the attention backends on the first CUDA device, or else on the CPU, and print it."""
    import torch

    from mmblocks.ops.attention.order import SETTING
    from mmblocks.ops.attention.tune import measure_orders, write_orders

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"attention on {device}:")
    for row in write_orders(path, measure_orders(device, tiny=device.type == "cpu"), device):
        mode = f"{'causal' if row['causal'] else 'full'}, {'forward and backward' if row['learns'] else 'forward'}"
        print(f"  {row['op']} head_dim {row['head_dim']}, {mode}: {', '.join(row['order'])}")
    print(f"written; set {SETTING}={path} to use it")


# The self-test ------------------------------------------------------------------------------------------------------


def _run_selftest() -> int:
    """Print how far each way of each op is from its reference; 1 when one is too far, else 0."""
    import torch

    from mmblocks.ops.selftest import run_selftests

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    failed = 0
    for device in devices:
        results = run_selftests(device)
        print(f"self-test on {device}:")
        for name, text in _summarize_results(results):
            print(f"  {name:28} {text}")
        failed += sum(not result.is_acceptable for result in results)
    print("self-test: every way agrees with its reference" if not failed else f"self-test: {failed} cases are off")
    return int(failed > 0)


def _summarize_results(results: Sequence[BackendResult]) -> Iterator[tuple[str, str]]:
    """A line for each way, and one for each of its cases that is off."""
    for op, backend in dict.fromkeys((result.op, result.backend) for result in results):
        cases = [result for result in results if (result.op, result.backend) == (op, backend)]
        run = [result for result in cases if result.error is not None]
        nearest = max(((r.error or 0.0) / r.tolerance for r in run), default=0.0)
        reasons = "; ".join(dict.fromkeys(reason for result in cases for reason in result.reasons))
        told = f"{len(run)} of {len(cases)} cases run, the worst at {nearest:.0%} of its tolerance"
        yield f"{op} {backend}", told if run else f"not run: {reasons}"
        for off in (result for result in cases if not result.is_acceptable):
            yield "  OFF", f"{off.case}: error {off.error}, tolerance {off.tolerance:g}"
