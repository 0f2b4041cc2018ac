"""Import of a projector alone, as LLaVA's first stage saves it (mm_projector.bin)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmblocks.errors import CheckpointError, ConfigError
from mmblocks.model.checkpoint import list_disagreements, load, save
from mmblocks.model.convert.keys import to_ours, to_theirs
from mmblocks.model.convert.original import projectors as original_projectors
from mmblocks.model.convert.pickled import read_pickled
from mmblocks.model.convert.weights import find_stored_dtype
from mmblocks.model.onevision import OneVision
from mmblocks.tensors import StoredTensors

NEWLINE = "model.image_newline"
STEMS = ("mm_projector.", "image_newline")
PICKLES = (".bin", ".pt", ".pth")


@dataclass(frozen=True, slots=True)
class AdapterReport:
    """Which tensor of the file filled which of ours, and which of ours are not in the file."""

    tensors: Mapping[str, str]
    kept: tuple[str, ...]


def import_adapter(model: OneVision, path: Path | str) -> AdapterReport:
    """Fill a model's projector, and its newline where the file has one, in place; every tensor is used or refused.

    The file is `mm_projector.bin` or a safetensors file with LLaVA's names, with any prefix before "mm_projector.".
    Raises `ConfigError` for a projector that LLaVA does not have, `CheckpointError` listing every tensor that is
    missing, extra or of another shape; the model is unchanged then.
    """
    path = Path(path)
    kind = original_projectors.find_projector_type(model.projector)
    if kind is None:
        raise ConfigError(
            f"projector: {type(model.projector).__name__}; adapters of LLaVA are {original_projectors.KNOWN_TYPES}."
        )
    table = {**original_projectors.make_name_table(kind), "learned_tokens.newline": NEWLINE}
    ours = {to_ours(name, table): tensor for name, tensor in read_adapter(path).items()}
    wanted = {f"projector.{name}": tensor for name, tensor in model.projector.state_dict().items()}
    if "learned_tokens.newline" in ours and "newline" in model.learned_tokens:
        wanted["learned_tokens.newline"] = model.learned_tokens["newline"]
    faults = list_disagreements(
        {to_theirs(name, table): tensor for name, tensor in wanted.items()},
        {to_theirs(name, table): tensor for name, tensor in ours.items()},
    )
    if faults:
        raise CheckpointError(f"{path} does not fit the model's projector:\n  " + "\n  ".join(faults))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in ours:
                parameter.copy_(ours[name])
    keeps_newline = "newline" in model.learned_tokens and "learned_tokens.newline" not in ours
    kept = ("learned_tokens.newline",) if keeps_newline else ()
    return AdapterReport({to_theirs(name, table): name for name in ours}, kept)


def merge_adapter(path: Path | str, folder: Path | str, out: Path | str) -> AdapterReport:
    """`import_adapter` into a model saved by mmblocks, written as another one. `out` must not exist."""
    if Path(out).exists():
        raise ConfigError(f"{out} exists; name a folder that does not.")
    model = load(folder, dtype=find_stored_dtype(Path(folder)))
    report = import_adapter(model, path)
    save(model, out)
    return report


def read_adapter(path: Path) -> Mapping[str, Tensor]:
    """The tensors of an adapter file under LLaVA's names, without the prefixes of LoRA runs and wrappers."""
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; name mm_projector.bin or a safetensors file.")
    if path.suffix not in (*PICKLES, ".safetensors"):
        raise CheckpointError(f"{path}: an adapter is a {', '.join(PICKLES)} or .safetensors file.")
    stored = read_pickled(path) if path.suffix in PICKLES else StoredTensors([path])
    stems = {name: next((stem for stem in STEMS if stem in name), None) for name in stored}
    return {
        name if (stem := stems[name]) is None else f"model.{name[name.index(stem) :]}": tensor
        for name, tensor in stored.items()
    }
