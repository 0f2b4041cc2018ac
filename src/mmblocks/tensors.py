"""Tensors of checkpoint files: names and shapes first, values when they become the weights of a module, each read once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from mmblocks.errors import CheckpointError
from mmblocks.pretrained import INDEX, list_shards

SINGLE = "model.safetensors"
MAPPED_BYTES = 2**28
"""How much is read through one mapping of a file: pages of values that were converted since are freed with it."""


def has_safetensors(folder: Path) -> bool:
    """Whether a folder holds the weights of a whole model as safetensors, in one file or in shards."""
    return any((folder / name).is_file() for name in (SINGLE, INDEX))


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of safetensors files: names and shapes at once, values on access.

    A value is a view of its file until it is converted. Raises `CheckpointError` when a file is missing or damaged.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.shapes: dict[str, Tensor] = {}
        """Names and shapes, as meta tensors; whole numbers are int64, others float32."""
        self._file: dict[str, Path] = {}
        self._mapped: tuple[Path, Any] | None = None
        self._bytes_read = 0
        for file in files:
            with report_unreadable_file(file), safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a dict)
                    stored = tensors.get_slice(name)
                    kind = torch.float32 if "F" in stored.get_dtype() else torch.int64
                    self.shapes[name] = torch.empty(stored.get_shape(), dtype=kind, device="meta")
                    self._file[name] = file

    @classmethod
    def from_folder(cls, folder: Path) -> StoredTensors:
        """The tensors of a checkpoint in one file or in shards."""
        files = list_shards(folder / INDEX) if (folder / INDEX).is_file() else [SINGLE]
        if files == [SINGLE] and not (folder / SINGLE).is_file():
            raise CheckpointError(f"{folder} holds no weights: there is neither {SINGLE} nor {INDEX}.")
        return cls(folder / file for file in files)

    def __getitem__(self, name: str) -> Tensor:
        file = self._file[name]
        with report_unreadable_file(file):
            if self._mapped is None or self._mapped[0] != file or self._bytes_read > MAPPED_BYTES:
                self._mapped, self._bytes_read = (file, safe_open(file, framework="pt")), 0
            value: Tensor = self._mapped[1].get_tensor(name)
        self._bytes_read += value.nbytes
        return value

    def __contains__(self, name: object) -> bool:
        return name in self.shapes  # without a value being read

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


@contextmanager
def report_unreadable_file(path: Path) -> Iterator[None]:
    """Raise whatever reading a safetensors file raises as `CheckpointError`."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; the folder is not a whole model.")
    try:
        yield
    except Exception as cause:  # of safetensors' own, and of Python's for types and sizes that torch does not have
        raise CheckpointError(f"{path} cannot be read ({cause}); the file is truncated or damaged.") from cause


@contextmanager
def leave_weights_empty() -> Iterator[None]:
    """Modules that are built while the block runs have weights on meta, which take no memory and are not initialised.

    Buffers are real: no checkpoint holds those that are computed from settings. `assign_tensors` fills the weights. torch's
    generator is left as it stands.
    """
    from transformers.initialization import no_init_weights

    def move_to_meta(module: nn.Module, name: str, weight: object) -> Any:
        if not isinstance(weight, nn.Parameter) or weight.is_meta:  # a tied weight stays the same object
            return None
        return nn.Parameter(weight.to("meta"), requires_grad=weight.requires_grad)

    hook = register_module_parameter_registration_hook(move_to_meta)
    try:
        with no_init_weights(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        hook.remove()


def assign_tensors(module: nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Make stored tensors the weights of a module, which may be on meta. Weights get this type; buffers keep theirs.

    Names and shapes must have been compared; a name that `tensors` lacks is left as it is.
    """
    weights = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    state = {
        name: tensors[name].to(dtype if name in weights and here.is_floating_point() else here.dtype)
        for name, here in module.state_dict().items()
        if name in tensors
    }
    module.load_state_dict(state, strict=False, assign=True)
