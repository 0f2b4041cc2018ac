"""A model on disk: a folder of components, safetensors and json only, written whole or not at all, read strictly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmblocks import __version__
from mmblocks.components import needs_text
from mmblocks.errors import CheckpointError
from mmblocks.model.build import wire, with_dtype
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import ModelSpec
from mmblocks.registry import split
from mmblocks.storage import SUMS, damage, replaced_whole

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
WORDS_BESIDE = "./projector"
"""Text tokenizer of a projector that is stored in the model's own folder."""


def save(model: OneVision, folder: Path | str, *, dtype: torch.dtype | None = None) -> Path:
    """Write a model as a folder of components, with SHA256SUMS of its files.

    An older model in that place is replaced when this one is whole. dtype: type of the stored weights, by default the
    type they have. Raises `ConfigError` where the folder holds anything else, `StorageError` where the disk refuses.
    """
    with replaced_whole(Path(folder)) as fresh:
        write_into(model, fresh, dtype=dtype)
    return Path(folder)


def write_into(model: OneVision, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write the files of a model into an empty folder that `replaced_whole` has given."""
    config = {"mmblocks": __version__, "model": _portable(model)}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in ("encoder", "projector", "marks"):
        (folder / name).mkdir()
        save_file(_stored(getattr(model, name), dtype), folder / name / WEIGHTS)
    if _reads_words_from_a_folder(model):
        model.projector.text_tokenizer.save_pretrained(folder / "projector")
    model.backbone.save_to(folder / "backbone", dtype)


def load(
    folder: Path | str, *, dtype: torch.dtype = torch.float32, images: Mapping[str, Any] | None = None
) -> OneVision:
    """Read a model saved by `save`, every tensor of it or none. Raises `CheckpointError` that lists what disagrees.

    Where the folder has SHA256SUMS, its files must be as they were written. images: settings of `ImageReading` instead of the stored ones, such as {"alpha": "drop"}.
    """
    folder = Path(folder)
    with ThreadPoolExecutor(1) as beside:  # hashing takes as long as reading, and leaves this thread alone
        damaged = beside.submit(damage, folder)
        model = _read(folder, dtype, images or {})
        _require_undamaged(damaged.result())
    return with_dtype(model, dtype)


def _read(folder: Path, dtype: torch.dtype, images: Mapping[str, Any]) -> OneVision:
    stored = read_spec(folder)
    spec = replace(stored, images=stored.images.changed(images))
    own_backbone = at_home(spec, folder)
    model = wire(own_backbone, backbone_on_meta=True)
    model.spec = _with_own_words(spec, folder)
    for name in ("encoder", "projector", "marks"):
        load_strictly(getattr(model, name), folder / name / WEIGHTS)
    model.backbone.load_from(folder / "backbone", dtype)
    return model


def _require_undamaged(damaged: list[str]) -> None:
    if damaged:
        raise CheckpointError(
            "\n".join(damaged)
            + f"\nCopy or fetch the folder again. If you have changed a file yourself, delete its line "
            f"in {SUMS}."
        )


def read_spec(folder: Path) -> ModelSpec:
    """The composition stored in a model's folder."""
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a model saved by mmblocks: it has no {CONFIG}.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return ModelSpec.of(raw["model"])
    except (json.JSONDecodeError, KeyError, TypeError) as cause:
        raise CheckpointError(
            f"{path} cannot be read ({cause}); the file is cut or was not written by mmblocks."
        ) from cause


def load_strictly(module: nn.Module, path: Path) -> None:
    """Fill a module from a safetensors file that has exactly its tensors."""
    stored = read_tensors(path)
    if faults := disagreements(module.state_dict(), stored):
        raise CheckpointError(f"{path} does not fit the model:\n  " + "\n  ".join(faults))
    module.load_state_dict(stored)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises `CheckpointError` when it is missing or cut."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; the folder is not a whole model.")
    try:
        return load_file(path)
    except SafetensorError as cause:
        raise CheckpointError(f"{path} cannot be read ({cause}); the file is cut or damaged.") from cause


def disagreements(wanted: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    """What stands between two sets of named tensors: missing, extra and differently shaped keys, one line each."""
    faults = [f"missing: {key} {tuple(wanted[key].shape)}" for key in sorted(wanted.keys() - stored.keys())]
    faults += [f"extra: {key} {tuple(stored[key].shape)}" for key in sorted(stored.keys() - wanted.keys())]
    return faults + [
        f"shape: {key} is {tuple(stored[key].shape)} in the file, {tuple(wanted[key].shape)} in the model"
        for key in sorted(wanted.keys() & stored.keys())
        if wanted[key].shape != stored[key].shape
    ]


def _portable(model: OneVision) -> dict[str, Any]:
    """A model's spec without folders of this machine: what they held is inside the model's own folder."""
    plain = model.spec.plain()
    if _reads_words_from_a_folder(model):
        plain["projector"] = {**plain["projector"], "text_tokenizer": WORDS_BESIDE}
    return plain | {kind: _without_folders(plain[kind]) for kind in ("encoder", "backbone")}


def _reads_words_from_a_folder(model: OneVision) -> bool:
    """Whether the projector reads the question with a text tokenizer that only this machine has."""
    source = model.spec.plain()["projector"].get("text_tokenizer")
    return needs_text(model.projector) and source is not None and (Path(source).is_absolute() or Path(source).is_dir())


def _without_folders(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {k: _without_folders(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_folders(v) for v in value]
    return None if key in ("checkpoint", "text_tokenizer") and Path(str(value)).is_absolute() else value


def _stored(module: nn.Module, dtype: torch.dtype | None) -> dict[str, Tensor]:
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    return {n: t.to(dtype) if dtype and t.is_floating_point() else t for n, t in state.items()}


def at_home(spec: ModelSpec, folder: Path) -> ModelSpec:
    """The same model with its language model and text tokenizers read from the folder instead of a hub."""
    backbone = {**dict(spec.backbone), "checkpoint": str(folder / "backbone")}  # type: ignore[arg-type]
    has_tokenizer = (folder / "backbone" / "tokenizer_config.json").is_file()
    if has_tokenizer:
        backbone["text_tokenizer"] = str(folder / "backbone")
    return replace(_with_own_words(spec, folder), backbone=backbone)


def _with_own_words(spec: ModelSpec, folder: Path) -> ModelSpec:
    """The same model with the projector's text tokenizer where the folder holds it."""
    name, settings = split(spec.projector)
    if settings.get("text_tokenizer") != WORDS_BESIDE:
        return spec
    return replace(spec, projector={"name": name, **settings, "text_tokenizer": str((folder / "projector").resolve())})
