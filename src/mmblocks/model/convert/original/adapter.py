"""A projector alone, as LLaVA's first stage leaves it (mm_projector.bin), put into a model of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmblocks.errors import CheckpointError, ConfigError
from mmblocks.model.checkpoint import disagreements, load, read_tensors, save
from mmblocks.model.convert.keys import Table, to_ours, to_theirs
from mmblocks.model.convert.original import projectors as original_projectors
from mmblocks.model.convert.original.pickled import read_pickled
from mmblocks.model.convert.weights import stored_dtype
from mmblocks.model.onevision import OneVision

NEWLINE = "model.image_newline"
STEMS = ("mm_projector.", "image_newline")
PICKLES = (".bin", ".pt", ".pth")


@dataclass(frozen=True, slots=True)
class Taken:
    """Which tensor of the file filled which of ours, and which of ours the file does not speak of."""

    tensors: Mapping[str, str]
    kept: tuple[str, ...]


def import_adapter(model: OneVision, path: Path | str) -> Taken:
    """Fill a model's projector, and its newline where the file has one, in place; every tensor is used or refused.

    The file is `mm_projector.bin` or a safetensors file with LLaVA's names; what stands before "mm_projector." in them
    does not matter. Raises `ConfigError` for a projector that LLaVA does not have, `CheckpointError` listing every
    tensor that is missing, extra or of another shape; the model is untouched then.
    """
    path = Path(path)
    kind = original_projectors.type_of(model.projector)
    if kind is None:
        raise ConfigError(
            f"projector: {type(model.projector).__name__}; adapters of LLaVA are {original_projectors.KNOWN}."
        )
    stored = {_shortened(name): tensor for name, tensor in _read(path).items()}
    table = {**original_projectors.names_of(kind), "marks.newline": NEWLINE}
    ours = {to_ours(name, table): tensor for name, tensor in stored.items()}
    _require_all(model, ours, table, path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in ours:
                parameter.copy_(ours[name])
    kept = ("marks.newline",) if "newline" in model.marks and "marks.newline" not in ours else ()
    return Taken({to_theirs(name, table): name for name in ours}, kept)


def merge_adapter(path: Path | str, folder: Path | str, out: Path | str) -> Taken:
    """`import_adapter` into a model saved by mmblocks, written as another one. `out` must not exist."""
    if Path(out).exists():
        raise ConfigError(f"{out} exists; name a folder that does not.")
    model = load(folder, dtype=stored_dtype(Path(folder)))
    taken = import_adapter(model, path)
    save(model, out)
    return taken


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; name mm_projector.bin or a safetensors file.")
    if path.suffix in PICKLES:
        return read_pickled(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: an adapter is a {', '.join(PICKLES)} or .safetensors file.")
    return read_tensors(path)


def _shortened(name: str) -> str:
    """A name from its stem on; LoRA runs and wrappers put their own prefixes in front."""
    stem = next((stem for stem in STEMS if stem in name), None)
    return f"model.{name[name.index(stem) :]}" if stem is not None else name


def _require_all(model: OneVision, ours: Mapping[str, Tensor], table: Table, path: Path) -> None:
    wanted = {f"projector.{name}": tensor for name, tensor in model.projector.state_dict().items()}
    if "marks.newline" in ours and "newline" in model.marks:
        wanted["marks.newline"] = model.marks["newline"]
    faults = disagreements(
        {to_theirs(name, table): tensor for name, tensor in wanted.items()},
        {to_theirs(name, table): tensor for name, tensor in ours.items()},
    )
    if faults:
        raise CheckpointError(f"{path} does not fit the model's projector:\n  " + "\n  ".join(faults))
