"""A model on disk: a folder of components, safetensors and json only, written whole or not at all, read strictly."""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmblocks import __version__
from mmblocks.components import InstructedProjector, has_capability
from mmblocks.errors import CheckpointError, ConfigError
from mmblocks.json_files import read_object
from mmblocks.model.build import build_from_spec, limit_parameters, set_dtype
from mmblocks.model.onevision import OneVision
from mmblocks.model.quantized import require_no_quantized_layer
from mmblocks.model.spec import ModelSpec
from mmblocks.pretrained import convert_checkpoint_errors, iterate_entries, require_countable_layers
from mmblocks.registry import split_spec
from mmblocks.storage import CHECKSUMS_FILE, list_damage, replace_folder
from mmblocks.tensors import StoredTensors, assign_tensors, leave_weights_empty

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
SPARE, SPARE_AT_LEAST = 20, 2_000
"""How many more parameters than tensors in its files a model may have while it is built: later blocks, trials of parts."""
SOURCE_SETTINGS = ("checkpoint", "text_tokenizer")
"""Settings that say where something is read from."""
LOCAL_PROJECTOR_TOKENIZER = "./projector"
"""Text tokenizer of a projector that is stored in the model's own folder."""


def save(model: OneVision, folder: Path | str, *, dtype: torch.dtype | None = None) -> Path:
    """Write a model as a folder of components, with SHA256SUMS of its files.

    An older model in that place is replaced when this one is whole. dtype: type of the stored weights, by default the
    type they have. Raises `ConfigError` where the folder holds anything else, `StorageError` where the disk refuses.
    """
    with replace_folder(Path(folder)) as fresh:
        write_into(model, fresh, dtype=dtype)
    return Path(folder)


def write_into(model: OneVision, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write the files of a model into an empty folder that `replace_folder` has given."""
    require_no_quantized_layer(model, "saving")
    spec, has_local_tokenizer = model.spec.to_dict(), _has_local_projector_tokenizer(model)
    if has_local_tokenizer:
        spec["projector"] = {**spec["projector"], "text_tokenizer": LOCAL_PROJECTOR_TOKENIZER}
    # What folders of this machine hold is written into the model's own folder.
    spec |= {kind: _drop_local_folders(spec[kind]) for kind in ("encoder", "backbone")}
    origin = {"origin": model.origin} if model.origin else {}
    config = {"mmblocks": __version__, **origin, "model": spec}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in ("encoder", "projector", "learned_tokens"):
        (folder / name).mkdir()
        state = {key: tensor.detach().cpu().contiguous() for key, tensor in getattr(model, name).state_dict().items()}
        stored = {key: t.to(dtype) if dtype and t.is_floating_point() else t for key, t in state.items()}
        save_file(stored, folder / name / WEIGHTS)
    if has_local_tokenizer:
        model.projector.text_tokenizer.save_pretrained(folder / "projector")
    model.backbone.save_to(folder / "backbone", dtype)


def load(
    folder: Path | str, *, dtype: torch.dtype = torch.float32, images: Mapping[str, Any] | None = None
) -> OneVision:
    """Read a model saved by `save`, every tensor of it or none. Raises `CheckpointError` that lists what disagrees.

    Where the folder has SHA256SUMS, its files must be as they were written. images: settings of `ImageReading` instead of
    the stored ones, such as {"alpha": "drop"}.
    """
    folder = Path(folder)
    with ThreadPoolExecutor(1) as beside:  # hashing takes as long as reading, and leaves this thread alone
        damaged = beside.submit(list_damage, folder)
        model = _read_model(folder, dtype, images or {})
        if faults := damaged.result():
            cure = f"If you have changed a file yourself, delete its line in {CHECKSUMS_FILE}."
            raise CheckpointError("\n".join([*faults, f"Copy or fetch the folder again. {cure}"]))
    return set_dtype(model, dtype)


def _read_model(folder: Path, dtype: torch.dtype, images: Mapping[str, Any]) -> OneVision:
    stored = read_spec(folder)
    spec = replace(stored, images=stored.images.with_changes(images))
    model = _build_fitting_model(localise_spec(spec, folder), folder)
    model.spec = _localise_projector_tokenizer(spec, folder)
    model.origin = str(read_object(folder / CONFIG).get("origin", ""))
    for name in ("encoder", "projector", "learned_tokens"):
        assign_tensors(getattr(model, name), StoredTensors([folder / name / WEIGHTS]), dtype)
    with _report_bad_settings(folder / "backbone"):
        model.backbone.load_from(folder / "backbone", dtype)
    return model


def _build_fitting_model(spec: ModelSpec, folder: Path) -> OneVision:
    """A model to be filled. Its parts are tried on meta first, so that sizes that are not those of the files take no memory."""
    with _report_bad_settings(folder / CONFIG):
        files = {name: folder / name / WEIGHTS for name in ("encoder", "projector", "learned_tokens")}
        stored = {name: StoredTensors([file]).shapes for name, file in files.items()}
        most = SPARE * sum(len(shapes) for shapes in stored.values()) + SPARE_AT_LEAST
        with torch.device("meta"), limit_parameters(most):
            planned = build_from_spec(spec)
        for name, file in files.items():
            _require_same_tensors(planned.get_submodule(name), file, stored[name])
        with leave_weights_empty():
            return build_from_spec(spec, backbone_on_meta=True)


@contextmanager
def _report_bad_settings(path: Path) -> Iterator[None]:
    """Turn what speaks against a file's settings, and whatever other packages raise of them, into `CheckpointError`."""
    try:
        with convert_checkpoint_errors(path):
            yield
    except ConfigError as cause:
        raise CheckpointError(f"{path}: {cause}") from cause


def is_saved_model(folder: Path) -> bool:
    """Whether a folder holds a model that `save` has written, from its config.json alone."""
    return (folder / CONFIG).is_file() and {"mmblocks", "model"} <= read_object(folder / CONFIG).keys()


def read_spec(folder: Path) -> ModelSpec:
    """The composition stored in a model's folder. Raises `CheckpointError` for a config.json that holds anything else."""
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a model saved by mmblocks: it has no {CONFIG}.")
    model = read_object(path).get("model")
    if not isinstance(model, dict):
        raise CheckpointError(
            f"{path} holds no model of mmblocks; the file is truncated or was not written by mmblocks."
        )
    if (folder / "marks").is_dir():
        raise CheckpointError(
            f"{folder} was saved by an earlier mmblocks, with learned tokens in marks/; train or convert the model again."
        )
    require_countable_layers(model, path)
    for key, value in iterate_entries(model):
        is_outside = isinstance(value, str) and (Path(value).is_absolute() or {"..", "~"} & {*Path(value).parts})
        if key in SOURCE_SETTINGS and is_outside:
            raise CheckpointError(
                f"{path}: {key}={value!r} is outside of the model's folder, and a saved model names hub ids and its own "
                "folder only; write a hub id, or null."
            )
    try:
        spec = ModelSpec.from_dict(model)
        for _, component in spec.list_slots().values():
            split_spec(component)
        return spec
    except (ConfigError, TypeError, ValueError) as cause:
        raise CheckpointError(
            f"{path} cannot be read; it was changed, or written by another mmblocks:\n{cause}"
        ) from cause


def _require_same_tensors(module: nn.Module, path: Path, stored: Mapping[str, Tensor]) -> None:
    """The shapes and kinds of a file's tensors are exactly those of a module."""
    wanted, found = module.state_dict(), dict(stored)
    faults = list_disagreements(wanted, found)
    faults += [
        f"type: {name} holds {'whole numbers' if tensor.is_floating_point() else 'fractions'}"
        for name, tensor in wanted.items()
        if name in found and found[name].is_floating_point() != tensor.is_floating_point()
    ]
    if faults:
        raise CheckpointError(f"{path} does not fit the model:\n  " + "\n  ".join(faults))


def list_disagreements(wanted: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    """What stands between two sets of named tensors: missing, extra and differently shaped keys, one line each."""
    faults = [f"missing: {key} {tuple(wanted[key].shape)}" for key in sorted(wanted.keys() - stored.keys())]
    faults += [f"extra: {key} {tuple(stored[key].shape)}" for key in sorted(stored.keys() - wanted.keys())]
    return faults + [
        f"shape: {key} is {tuple(stored[key].shape)} in the file, {tuple(wanted[key].shape)} in the model"
        for key in sorted(wanted.keys() & stored.keys())
        if wanted[key].shape != stored[key].shape
    ]


def _has_local_projector_tokenizer(model: OneVision) -> bool:
    """Whether the projector reads the question with a text tokenizer that only this machine has."""
    source = model.spec.to_dict()["projector"].get("text_tokenizer")
    return (
        has_capability(model.projector, InstructedProjector)
        and source is not None
        and (Path(source).is_absolute() or Path(source).is_dir())
    )


def _drop_local_folders(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {k: _drop_local_folders(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_drop_local_folders(v) for v in value]
    return None if key in SOURCE_SETTINGS and Path(str(value)).is_absolute() else value


def localise_spec(spec: ModelSpec, folder: Path) -> ModelSpec:
    """The same model with its language model and text tokenizers read from the folder instead of a hub."""
    name, settings = split_spec(spec.backbone)
    backbone = {"name": name, **settings, "checkpoint": str(folder / "backbone")}
    has_tokenizer = (folder / "backbone" / "tokenizer_config.json").is_file()
    if has_tokenizer:
        backbone["text_tokenizer"] = str(folder / "backbone")
    return replace(_localise_projector_tokenizer(spec, folder), backbone=backbone)


def _localise_projector_tokenizer(spec: ModelSpec, folder: Path) -> ModelSpec:
    """The same model with the projector's text tokenizer where the folder holds it."""
    name, settings = split_spec(spec.projector)
    if settings.get("text_tokenizer") != LOCAL_PROJECTOR_TOKENIZER:
        return spec
    return replace(spec, projector={"name": name, **settings, "text_tokenizer": str((folder / "projector").resolve())})
