"""`mmblocks convert FROM TO`: a checkpoint in another layout, checked by running both before it is kept."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mmblocks.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmblocks.model.convert import Kind
    from mmblocks.model.convert.probe import Probe
    from mmblocks.model.onevision import OneVision


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FROM", type=Path, help="folder of the checkpoint to read")
    parser.add_argument("target", metavar="TO", type=Path, help="folder to write; it must not exist")
    parser.add_argument(
        "--to",
        choices=("mmblocks", "llava_onevision"),
        help="layout to write (default: mmblocks, or llava_onevision for a model saved by mmblocks)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="type of the written weights (default: as they are stored)",
    )
    parser.add_argument(
        "--no-check", action="store_true", help="keep the result without running both (for models beyond memory)"
    )


def run(arguments: argparse.Namespace) -> int:
    from mmblocks.model.checkpoint import replaced_whole
    from mmblocks.model.convert import ABOUT, detect, quiet_transformers

    if arguments.target.exists():
        raise ConfigError(f"{arguments.target} exists; name a folder that does not.")
    quiet_transformers()
    kind = detect(arguments.source)
    to: Kind = arguments.to or ("llava_onevision" if kind == "mmblocks" else "mmblocks")
    print(f"found    {ABOUT[kind]} in {arguments.source}")
    with replaced_whole(arguments.target) as fresh:
        model = _read(kind, arguments.source, arguments.dtype)
        _write(model, to, fresh)
        print(f"written  {ABOUT[to]}")
        if not arguments.no_check:
            _check(model, kind, arguments.source, to, fresh, exact=arguments.dtype is None)
    print(f"kept     {arguments.target}")
    return 0


def _read(kind: Kind, folder: Path, dtype_name: str | None) -> OneVision:
    import torch

    from mmblocks.model.checkpoint import load
    from mmblocks.model.convert.llava import import_original_with_report
    from mmblocks.model.convert.llava_onevision import import_hf_with_report

    dtype: torch.dtype = getattr(torch, dtype_name) if dtype_name else _stored_dtype(folder)
    if kind == "mmblocks":
        return load(folder, dtype=dtype)
    read = import_hf_with_report if kind == "llava_onevision" else import_original_with_report
    model, found = read(folder, dtype=dtype)
    print(f"layout   {found.layout}: {len(found.tensors)} tensors read as {str(dtype).removeprefix('torch.')}")
    for reason, count in Counter(found.unused.values()).items():
        print(f"unused   {count} tensors: {reason}")
    return model


def _stored_dtype(folder: Path) -> torch.dtype:
    """The type that holds every value of a checkpoint. Damaged files are left to the reader, which names them."""
    import torch
    from safetensors import SafetensorError, safe_open

    found: set[str] = set()
    for file in sorted(folder.rglob("*.safetensors")):
        with suppress(SafetensorError), safe_open(file, framework="pt") as tensors:
            found.update(tensors.get_slice(name).get_dtype() for name in tensors.keys())  # noqa: SIM118 (not a dict)
    return {frozenset({"BF16"}): torch.bfloat16, frozenset({"F16"}): torch.float16}.get(frozenset(found), torch.float32)


def _write(model: OneVision, to: Kind, folder: Path) -> None:
    from mmblocks.model.checkpoint import save
    from mmblocks.model.convert.llava_onevision import export_hf

    if to == "mmblocks":
        save(model, folder)
    else:
        export_hf(model, folder)


def _check(model: OneVision, kind: Kind, source: Path, to: Kind, written: Path, *, exact: bool) -> None:
    """Run the source and the result on probes and refuse a result that differs by more than `TOLERANCE`.

    exact: the weights kept their type; otherwise the model in memory, rounded as what was written, is compared.
    """
    from mmblocks.model.convert.probe import TOLERANCE, probes

    if kind == "llava":
        print("checking against the model as read; LLaVA's own code is not here to run")
    ours = model.float()
    before = _runner(kind if exact else "llava", source, ours)
    after = _runner(to, written, ours)
    differences: list[float] = []
    for probe in probes(ours):
        differences.append((before(probe) - after(probe)).abs().max().item())
        _say(probe, differences[-1])
    if not all(difference <= TOLERANCE for difference in differences):
        raise CheckpointError(
            f"the written model's logits differ by {max(differences):.2g} (at most {TOLERANCE:g} is let pass); "
            "nothing was kept."
        )


def _say(probe: Probe, difference: float) -> None:
    kinds = Counter(shape.kind for shape in probe.shapes)
    what = ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in kinds.items()) or "text"
    print(f"checked  {what}: {len(probe.rows)} rows, largest difference of logits {difference:.1e}")


def _runner(kind: Kind, folder: Path, model: OneVision) -> Callable[[Probe], Tensor]:
    """A function from probe to logits: the checkpoint in its own code where that is here, else the imported model."""
    from mmblocks.model.checkpoint import load
    from mmblocks.model.convert.probe import load_transformers, our_logits, transformers_logits

    if kind == "llava_onevision":
        theirs = load_transformers(folder)
        return lambda probe: transformers_logits(theirs, model, probe)
    ours = load(folder) if kind == "mmblocks" else model
    return lambda probe: our_logits(ours, probe)
