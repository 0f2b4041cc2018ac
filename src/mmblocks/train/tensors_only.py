"""Reads torch's distributed checkpoints, tensors alone, without running code that a pickle may hold."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

from mmblocks.errors import CheckpointError

METADATA = ".metadata"
_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
ALLOWED_NAMES = {
    *(("torch", name) for name in (*_DTYPES, "Size")),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib._local", "PosixPath"),
    ("pathlib._local", "WindowsPath"),
}
"""Module and name of every object that the metadata of a checkpoint of tensors consists of."""


class TensorsOnlyReader(FileSystemReader):
    """torch's reader; it refuses metadata that name anything but `ALLOWED_NAMES`, before the name is imported."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder

    def read_metadata(self, *args: object, **kwargs: object) -> Metadata:
        """Raises `CheckpointError` that names the file."""
        path = self._folder / METADATA
        try:
            metadata = _Unpickler(io.BytesIO(path.read_bytes())).load()
        except CheckpointError:
            raise
        except Exception as cause:  # whatever a pickle makes of foreign bytes
            raise CheckpointError(f"{path} cannot be read ({type(cause).__name__}: {cause}).") from cause
        if not isinstance(metadata, Metadata):
            raise CheckpointError(f"{path} does not describe a checkpoint of torch.")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class TensorsOnlyPlanner(DefaultLoadPlanner):
    """torch's planner; it refuses values that are not tensors, which would be unpickled."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise CheckpointError(f"{read_item.dest_index.fqn} is no tensor; a state holds tensors only.")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in ALLOWED_NAMES:
            raise CheckpointError(f"the state's {METADATA} names {module}.{name}, which describes no tensor; not read.")
        return super().find_class(module, name)
