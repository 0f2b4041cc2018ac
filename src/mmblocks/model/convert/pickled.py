"""Pickled weights, read by torch's restricted unpickler: tensors and plain containers, never code."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmblocks.errors import CheckpointError
from mmblocks.pretrained import list_shards

PICKLE_INDEX = "pytorch_model.bin.index.json"


def read_pickled(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """The named tensors of a pickled file; on "meta" without their values. Raises `CheckpointError` when it is damaged, needs code, or holds other things."""
    try:
        loaded: Any = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as cause:
        raise CheckpointError(
            f"{path} cannot be read: it is damaged, or a pickle that asks for code to be run, which mmblocks never "
            "does. Load it where you trust it and save its tensors as safetensors."
        ) from cause
    except (OSError, RuntimeError, EOFError, ValueError) as cause:
        raise CheckpointError(f"{path} cannot be read ({cause}); the file is truncated or damaged.") from cause
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in loaded.items()
    ):
        raise CheckpointError(f"{path} holds {type(loaded).__name__}, not tensors by name.")
    return {name: tensor.contiguous() for name, tensor in loaded.items()}


def read_pickled_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint in pytorch_model.bin or its shards."""
    index = folder / PICKLE_INDEX
    files = list_shards(index) if index.is_file() else ["pytorch_model.bin"]
    if missing := [file for file in files if not (folder / file).is_file()]:
        raise CheckpointError(f"{folder}: weights are missing: {', '.join(missing)}.")
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= read_pickled(folder / file)
    return tensors
