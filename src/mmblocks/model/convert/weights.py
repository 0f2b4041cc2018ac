"""Tensors of a foreign checkpoint: matched by name, every one accounted for, and only then loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmblocks.errors import CheckpointError
from mmblocks.model.checkpoint import list_disagreements
from mmblocks.model.convert.keys import NameTable, find_unused_reason, to_ours, to_theirs
from mmblocks.model.convert.pickled import read_pickled, read_pickled_folder
from mmblocks.model.onevision import OneVision
from mmblocks.reprs import format_by_shape
from mmblocks.tensors import StoredTensors, assign_tensors, has_safetensors

if TYPE_CHECKING:
    pass

LM_HEAD = "backbone.lm.lm_head.weight"
_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16"}
"""What safetensors calls the types of half the size of float32."""
EMBEDDINGS = "backbone.lm.model.embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class MatchedTensors:
    """Tensors under our names, the layout they came in, and why each tensor left out is not needed (their names).

    chat: the chat template of the model and why it was chosen.
    """

    layout: str
    tensors: Mapping[str, Tensor]
    unused: Mapping[str, str]
    chat: str = ""
    __repr__ = format_by_shape


def open_tensors(folder: Path) -> Mapping[str, Tensor]:
    """The tensors of a checkpoint: of its safetensors, or of its pickles where it has none."""
    is_pickled = not has_safetensors(folder) and has_weights(folder)
    return read_pickled_folder(folder) if is_pickled else StoredTensors.from_folder(folder)


def has_weights(folder: Path) -> bool:
    """Whether a folder holds the weights of a whole model, and not only an adapter's."""
    return has_safetensors(folder) or any(folder.glob("pytorch_model*.bin"))


def find_stored_dtype(folder: Path) -> torch.dtype:
    """The type that holds every floating-point number of a checkpoint. Damaged files are skipped; readers report them."""
    kinds: set[str] = set()
    files = sorted(folder.rglob("*.safetensors"))
    for file in files:
        with suppress(SafetensorError), safe_open(file, framework="pt") as tensors:
            kinds.update(tensors.get_slice(name).get_dtype() for name in tensors.keys())  # noqa: SIM118 (not a dict)
    for file in () if files else sorted(folder.rglob("pytorch_model*.bin")):
        with suppress(CheckpointError):
            tensors = read_pickled(file, "meta").values()
            kinds.update(_NAMES.get(tensor.dtype, "F32") for tensor in tensors if tensor.is_floating_point())
    floats = {kind for kind in kinds if "F" in kind}
    return next((dtype for dtype, name in _NAMES.items() if floats == {name}), torch.float32)


def measure_gigabytes(folder: Path, dtype: torch.dtype | None = None) -> float:
    """The size of a checkpoint's weights, in the type they have or another one."""
    size = sum(file.stat().st_size for kind in ("safetensors", "bin") for file in folder.rglob(f"*.{kind}")) / 1e9
    return size if dtype is None else size * dtype.itemsize / find_stored_dtype(folder).itemsize


def match_tensors(
    model: OneVision,
    stored: Mapping[str, Tensor],
    layouts: Mapping[str, NameTable],
    where: Path,
    may_remain: Mapping[str, str] | None = None,
) -> MatchedTensors:
    """Pair the model's tensors with a checkpoint's, in the layout that matches most names.

    Raises `CheckpointError` listing every tensor that is missing, extra, doubled or of another shape; shapes are
    compared before any value is read.
    """
    shapes = stored.shapes if isinstance(stored, StoredTensors) else stored
    wanted, is_tied = dict(model.state_dict()), model.backbone.config.tie_word_embeddings
    if is_tied and not {to_theirs(LM_HEAD, table) for table in layouts.values()} & stored.keys():
        wanted.pop(LM_HEAD, None)  # a tied language head may be missing in the checkpoint
    tower = getattr(model.encoder, "vision_model", None)
    blocks = len(tower.encoder.layers) if tower is not None else 0
    layout = max(layouts, key=lambda name: len(wanted.keys() & {to_ours(key, layouts[name]) for key in stored}))
    table = layouts[layout]
    ours = {key: to_ours(key, table) for key in stored}
    unused = {
        key: reason
        for key, name in ours.items()
        if name not in wanted and (reason := find_unused_reason(name, blocks, may_remain))
    }
    used = {key: name for key, name in ours.items() if key not in unused}
    faults = [f"doubled: {name} has {n} sources" for name, n in Counter(used.values()).items() if n > 1]
    faults += list_disagreements(
        {to_theirs(name, table): tensor for name, tensor in wanted.items()},
        {to_theirs(name, table): shapes[key] for key, name in used.items()},
    )
    theirs = {name: key for key, name in used.items()}
    both = [stored[theirs[name]] for name in (LM_HEAD, EMBEDDINGS) if name in theirs] if is_tied and not faults else []
    if len(both) == 2 and not torch.equal(*both):
        faults = ["untied: the config ties the language head to the token embeddings, but their values differ"]
    if faults:
        raise CheckpointError(f"{where} (layout: {layout}) does not fit its config:\n  " + "\n  ".join(faults))
    return MatchedTensors(layout, RenamedTensors(theirs, stored), unused)


def load_matched(model: OneVision, matched: MatchedTensors, dtype: torch.dtype, where: Path) -> None:
    """Fill a model, whose weights may be on meta, with matched tensors."""
    for part in ("encoder", "projector", "learned_tokens"):
        assign_tensors(getattr(model, part), RenamedTensors.with_prefix(f"{part}.", matched.tensors), dtype)
    model.backbone.load_tensors(RenamedTensors.with_prefix("backbone.lm.", matched.tensors), dtype)
    model.backbone.load_generation_config(where)


class RenamedTensors(Mapping[str, Tensor]):
    """Tensors under other names, read when they are asked for. names: the stored name of each."""

    def __init__(self, names: Mapping[str, str], stored: Mapping[str, Tensor]) -> None:
        self._names, self._stored = names, stored

    @classmethod
    def with_prefix(cls, prefix: str, stored: Mapping[str, Tensor]) -> RenamedTensors:
        """Those whose names begin with `prefix`, by the rest of their names."""
        return cls({name.removeprefix(prefix): name for name in stored if name.startswith(prefix)}, stored)

    def __getitem__(self, name: str) -> Tensor:
        return self._stored[self._names[name]]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
