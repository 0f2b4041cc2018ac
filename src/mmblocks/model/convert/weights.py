"""Tensors of a foreign checkpoint: read whole, matched by name, every one accounted for, and only then loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmblocks.errors import CheckpointError
from mmblocks.model.build import set_dtype
from mmblocks.model.checkpoint import list_disagreements
from mmblocks.model.convert.keys import NameTable, find_unused_reason, to_ours, to_theirs
from mmblocks.model.onevision import OneVision
from mmblocks.pretrained import INDEX, list_shards
from mmblocks.reprs import format_by_shape

SINGLE = "model.safetensors"
LM_HEAD = "backbone.lm.lm_head.weight"
EMBEDDINGS = "backbone.lm.model.embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class MatchedTensors:
    """Tensors under our names, the layout they came in, and why each tensor left out is not needed (their names).

    chat: the chat template of the model and why it was taken.
    """

    layout: str
    tensors: Mapping[str, Tensor]
    unused: Mapping[str, str]
    chat: str = ""
    __repr__ = format_by_shape


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a checkpoint, in one file or in shards: names and shapes at once, values when they are asked for.

    Raises `CheckpointError` when a file is missing or cut.
    """

    def __init__(self, folder: Path) -> None:
        self.shapes: dict[str, Tensor] = {}
        """Names and shapes, as tensors without memory."""
        self._file: dict[str, Path] = {}
        for file in _list_files(folder):
            with _open_file(folder / file) as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a dict)
                    self.shapes[name] = torch.empty(tensors.get_slice(name).get_shape(), device="meta")
                    self._file[name] = folder / file

    def __getitem__(self, name: str) -> Tensor:
        with _open_file(self._file[name]) as tensors:
            return tensors.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def read_weights(folder: Path) -> StoredTensors:
    """The tensors of a checkpoint. Raises `CheckpointError` when a file is missing or cut."""
    return StoredTensors(folder)


def find_stored_dtype(folder: Path) -> torch.dtype:
    """The type that holds every number of a checkpoint but integers. Damaged files are left to the reader, which names
    them.
    """
    found: set[str] = set()
    for file in sorted(folder.rglob("*.safetensors")):
        with suppress(SafetensorError), safe_open(file, framework="pt") as tensors:
            found.update(tensors.get_slice(name).get_dtype() for name in tensors.keys())  # noqa: SIM118 (not a dict)
    floats = frozenset(kind for kind in found if "F" in kind)
    return {frozenset({"BF16"}): torch.bfloat16, frozenset({"F16"}): torch.float16}.get(floats, torch.float32)


def measure_gigabytes(folder: Path, dtype: torch.dtype | None = None) -> float:
    """What a checkpoint's weights take, in the type they have or another one."""
    size = sum(file.stat().st_size for kind in ("safetensors", "bin") for file in folder.rglob(f"*.{kind}")) / 1e9
    return size if dtype is None else size * dtype.itemsize / find_stored_dtype(folder).itemsize


@contextmanager
def _open_file(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as tensors:
            yield tensors
    except SafetensorError as cause:
        raise CheckpointError(f"{path} cannot be read ({cause}); the file is cut or damaged.") from cause


def _list_files(folder: Path) -> list[str]:
    index = folder / INDEX
    if index.is_file():
        return list_shards(index)
    if (folder / SINGLE).is_file():
        return [SINGLE]
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    if pickled:
        raise CheckpointError(f"{folder} holds pickled weights ({', '.join(pickled)}); only safetensors are read.")
    raise CheckpointError(f"{folder} holds no weights: there is neither {SINGLE} nor {INDEX}.")


def match_tensors(
    model: OneVision,
    stored: Mapping[str, Tensor],
    layouts: Mapping[str, NameTable],
    where: Path,
    may_remain: Mapping[str, str] | None = None,
) -> MatchedTensors:
    """Pair the model's tensors with a checkpoint's, in the layout that names most of them.

    Raises `CheckpointError` listing every tensor that is missing, extra, doubled or of another shape; shapes are
    compared before any value is read.
    """
    shapes = stored.shapes if isinstance(stored, StoredTensors) else stored
    wanted = _list_wanted_tensors(model, stored, layouts)
    layout = max(layouts, key=lambda name: len(wanted.keys() & {to_ours(key, layouts[name]) for key in stored}))
    table = layouts[layout]
    ours = {key: to_ours(key, table) for key in stored}
    unused = {
        key: reason
        for key, name in ours.items()
        if name not in wanted and (reason := find_unused_reason(name, _encoder_blocks(model), may_remain))
    }
    used = {key: name for key, name in ours.items() if key not in unused}
    faults = [f"doubled: {name} has {n} sources" for name, n in Counter(used.values()).items() if n > 1]
    faults += list_disagreements(
        {to_theirs(name, table): tensor for name, tensor in wanted.items()},
        {to_theirs(name, table): shapes[key] for key, name in used.items()},
    )
    faults = faults or _check_tied_head(model, stored, {name: key for key, name in used.items()})
    if faults:
        raise CheckpointError(f"{where} (layout: {layout}) does not fit its config:\n  " + "\n  ".join(faults))
    return MatchedTensors(layout, {name: stored[key] for key, name in used.items()}, unused)


def _list_wanted_tensors(
    model: OneVision, stored: Mapping[str, Tensor], layouts: Mapping[str, NameTable]
) -> dict[str, Tensor]:
    """The model's tensors; a tied language head is only wanted where the checkpoint holds it."""
    wanted = dict(model.state_dict())
    heads = {to_theirs(LM_HEAD, table) for table in layouts.values()}
    if model.backbone.config.tie_word_embeddings and not heads & stored.keys():
        wanted.pop(LM_HEAD, None)
    return wanted


def _check_tied_head(model: OneVision, stored: Mapping[str, Tensor], theirs: Mapping[str, str]) -> list[str]:
    if not model.backbone.config.tie_word_embeddings or LM_HEAD not in theirs or EMBEDDINGS not in theirs:
        return []
    if torch.equal(stored[theirs[LM_HEAD]], stored[theirs[EMBEDDINGS]]):
        return []
    return ["untied: the config ties the language head to the token embeddings, but their values differ"]


def _encoder_blocks(model: OneVision) -> int:
    tower = getattr(model.encoder, "vision_model", None)
    return len(tower.encoder.layers) if tower is not None else 0


def load_matched(model: OneVision, found: MatchedTensors, text_config: Any, dtype: torch.dtype, where: Path) -> None:
    """Fill a model, whose backbone may be on meta, with matched tensors."""
    for part in ("encoder", "projector", "learned_tokens"):
        getattr(model, part).load_state_dict(_select_prefix(f"{part}.", found.tensors))
    model.backbone.load_tensors(text_config, _select_prefix("backbone.lm.", found.tensors), str(where), dtype)
    model.backbone.load_generation_config(where)
    set_dtype(model, dtype)


def _select_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
