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
    from mmblocks.ops.selftest import Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Nothing is changed and nothing is sent."
    parser.add_argument(
        "--selftest",
        action="store_true",
        help="compute every op in every way on small inputs and compare with its reference; exit 1 if one is off",
    )


def run(args: argparse.Namespace) -> int:
    for title, lines in (
        ("packages", packages()),
        ("machine", machine()),
        ("ops", ops()),
        ("last decoder layer computes asked rows only", savings()),
        ("mmblocks", own()),
    ):
        print(f"{title}:")
        for name, value in lines:
            print(f"  {name:24} {value}")
    return _selftest() if args.selftest else 0


def packages() -> Iterator[tuple[str, str]]:
    """Versions of what mmblocks stands on."""
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    yield "mmblocks", __version__
    for name in versions.required_packages():
        yield name, _state(name)
    for name in versions.optional_packages():
        yield name, _state(name) if versions.installed_version(name) else "not installed, optional"


def machine() -> Iterator[tuple[str, str]]:
    """Devices, and which paths they allow."""
    import torch

    from mmblocks.ops.attention.machine import reasons_against_library

    yield "cpu", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    yield "cuda", ", ".join(_gpus()) or f"none (torch is built for CUDA {torch.version.cuda or 'no version'})"
    yield "xformers library", _runs(reasons_against_library(), "loads beside this torch", "does not load")
    yield "video readers", _video_readers()


def ops() -> Iterator[tuple[str, str]]:
    """Every way of every op: whether it runs on this machine, for inputs that it takes."""
    from mmblocks.ops.choice import AUTO, all_ops, asked_for

    for op in all_ops():
        asked = asked_for(op.name)
        yield op.name, "the fastest that takes the inputs" if asked == AUTO else f"{asked} is asked for"
        for way in op.ways:
            yield f"  {way.name}", _runs(way.here(), "runs here", "does not run here")


def savings() -> Iterator[tuple[str, str]]:
    """Families of language models whose last layer need not compute all rows, and what became of each here."""
    from mmblocks.backbones.last_layer import FAMILIES, reason_against_family

    for family in FAMILIES:
        reason = reason_against_family(family)
        yield family, "yes" if reason is None else f"NO, it computes all rows: {reason}"


def own() -> Iterator[tuple[str, str]]:
    """What came with the package."""
    yield "installed in", str(Path(__file__).parents[1])
    yield "bundled model", _bundled_model()


def _runs(reasons: Sequence[str], yes: str, no: str) -> str:
    return f"{no}: {'; '.join(reasons)}" if reasons else yes


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


def _state(package: str) -> str:
    """The version of a package and what it was tested with, or what to do about it."""
    version = versions.installed_version(package)
    if version is None:
        return f"not installed: {versions.pip_line(package)}"
    if broken := versions.import_error(package):
        return f"{version}, BROKEN: {broken}; run: {versions.pip_line(package)}"
    tested = versions.tested_range(package)
    span = f" (tested: {tested[0]} to {tested[1]})" if tested else ""
    return f"{version}{span}" + (" OUTSIDE" if versions.outside_tested(package) else "")


# The self-test ------------------------------------------------------------------------------------------------------


def _selftest() -> int:
    """Print how far each way of each op is from its reference; 1 when one is too far, else 0."""
    import torch

    from mmblocks.ops.selftest import selftest

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    failed = 0
    for device in devices:
        results = selftest(device)
        print(f"self-test on {device}:")
        for name, text in _summaries(results):
            print(f"  {name:28} {text}")
        failed += sum(not result.agrees for result in results)
    print("self-test: every way agrees with its reference" if not failed else f"self-test: {failed} cases are off")
    return int(failed > 0)


def _summaries(results: Sequence[Result]) -> Iterator[tuple[str, str]]:
    """A line for each way, and one for each of its cases that is off."""
    for op, way in dict.fromkeys((result.op, result.way) for result in results):
        cases = [result for result in results if (result.op, result.way) == (op, way)]
        run = [result for result in cases if result.error is not None]
        nearest = max(((r.error or 0.0) / r.tolerance for r in run), default=0.0)
        reasons = "; ".join(dict.fromkeys(reason for result in cases for reason in result.reasons))
        told = f"{len(run)} of {len(cases)} cases run, the worst at {nearest:.0%} of its tolerance"
        yield f"{op} {way}", told if run else f"not run: {reasons}"
        for off in (result for result in cases if not result.agrees):
            yield "  OFF", f"{off.case}: error {off.error}, tolerance {off.tolerance:g}"
