"""What every layout of checkpoints offers: to recognise a folder, to become a model of ours, to be written from one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mmblocks.errors import ConfigError
from mmblocks.pretrained import convert_checkpoint_errors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmblocks.model.convert.probe import Probe
    from mmblocks.model.convert.weights import MatchedTensors
    from mmblocks.model.onevision import OneVision

Runner = Callable[["OneVision", "Probe", "Tensor"], "Tensor"]
"""(the same model in our layout, which may be without weights, a probe, numbers of its rows) to logits (rows, vocabulary)."""


class CheckpointLayout(Protocol):
    """One layout. `mmblocks.model.convert.DOORS` says in which module each layout's `DOOR` stands."""

    about: str
    """What the layout is, in a few words: "transformers' llava_next"."""
    supports_video: bool
    """Whether its own code takes videos; a model keeps its other abilities there."""

    def can_read(self, folder: Path) -> bool:
        """Whether the folder is in this layout, from its file names and json alone; no tensor is read."""
        ...

    def import_model(
        self, folder: Path, *, dtype: torch.dtype, template: str | None = None
    ) -> tuple[OneVision, MatchedTensors]:
        """The model and how each tensor was accounted for. Raises `ConfigError` or `CheckpointError` with every reason.

        template: a chat template in place of the checkpoint's own.
        """
        ...

    def reasons_against_export(self, model: OneVision) -> list[str]:
        """Everything about a model that the layout cannot express; empty when it can be written."""
        ...

    def export_model(
        self, model: OneVision, folder: Path, *, dtype: torch.dtype | None = None, max_shard_size: str = "5GB"
    ) -> Path:
        """Write the folder whole or not at all. Raises `ConfigError` listing `reasons_against_export`."""
        ...

    @property
    def can_run(self) -> bool:
        """Whether the layout's own code is here to run."""
        ...

    def make_runner(self, folder: Path, dtype: torch.dtype) -> Runner:
        """The checkpoint in its own code, its weights in a type; called only where that is here."""
        ...


@contextmanager
def name_in_errors(folder: Path) -> Iterator[None]:
    """Name the checkpoint in every error about it: settings that make no sense fail in any way that Python has."""
    try:
        with convert_checkpoint_errors(folder):
            yield
    except ConfigError as cause:
        if str(folder) in str(cause):
            raise
        raise ConfigError(f"{folder}: {cause}") from cause


@dataclass(frozen=True, slots=True)
class FunctionLayout:
    """A door made of functions. `run` is left out where the layout's own code is not here."""

    about: str
    can_read: Callable[[Path], bool]
    read_model: Callable[..., Any]
    reasons_against_export: Callable[[OneVision], list[str]]
    export_model: Callable[..., Path]
    load_runner: Callable[[Path, torch.dtype], Runner] | None = None
    supports_video: bool = True

    def import_model(
        self, folder: Path, *, dtype: torch.dtype, template: str | None = None
    ) -> tuple[OneVision, MatchedTensors]:
        with name_in_errors(folder):
            return self.read_model(folder, dtype=dtype, template=template)

    @property
    def can_run(self) -> bool:
        return self.load_runner is not None

    def make_runner(self, folder: Path, dtype: torch.dtype) -> Runner:
        assert self.load_runner is not None, "asked before"
        return self.load_runner(folder, dtype)
