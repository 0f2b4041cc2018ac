"""What every layout of checkpoints offers: to recognise a folder, to become a model of ours, to be written from one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mmblocks.errors import ConfigError
from mmblocks.pretrained import reading

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmblocks.model.convert.probe import Probe
    from mmblocks.model.convert.weights import Matched
    from mmblocks.model.onevision import OneVision

Runner = Callable[["OneVision", "Probe", "Tensor"], "Tensor"]
"""(the same model in our layout, which may be without weights, a probe, numbers of its rows) to logits (rows, vocabulary)."""


class Door(Protocol):
    """One layout. `mmblocks.model.convert.DOORS` says in which module each layout's `DOOR` stands."""

    about: str
    """What the layout is, in a few words: "transformers' llava_next"."""
    clips: bool
    """Whether its own code takes clips; a model keeps its other abilities there."""

    def reads(self, folder: Path) -> bool:
        """Whether the folder is in this layout, from its file names and json alone; no tensor is read."""
        ...

    def import_(self, folder: Path, *, dtype: torch.dtype, template: str | None = None) -> tuple[OneVision, Matched]:
        """The model and how each tensor was accounted for. Raises `ConfigError` or `CheckpointError` with every reason.

        template: a chat template in place of the checkpoint's own.
        """
        ...

    def reasons_against_export(self, model: OneVision) -> list[str]:
        """Everything about a model that the layout cannot express; empty when it can be written."""
        ...

    def export(
        self, model: OneVision, folder: Path, *, dtype: torch.dtype | None = None, max_shard_size: str = "5GB"
    ) -> Path:
        """Write the folder whole or not at all. Raises `ConfigError` listing `reasons_against_export`."""
        ...

    @property
    def runs(self) -> bool:
        """Whether the layout's own code is here to run."""
        ...

    def runner(self, folder: Path, dtype: torch.dtype) -> Runner:
        """The checkpoint in its own code, its weights in a type; called only where that is here."""
        ...


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Name the checkpoint in every error about it: settings that make no sense fail in any way that Python has."""
    try:
        with reading(folder):
            yield
    except ConfigError as cause:
        if str(folder) in str(cause):
            raise
        raise ConfigError(f"{folder}: {cause}") from cause


@dataclass(frozen=True, slots=True)
class Layout:
    """A door made of functions. `run` is left out where the layout's own code is not here."""

    about: str
    reads: Callable[[Path], bool]
    read: Callable[..., Any]
    reasons_against_export: Callable[[OneVision], list[str]]
    export: Callable[..., Path]
    run: Callable[[Path, torch.dtype], Runner] | None = None
    clips: bool = True

    def import_(self, folder: Path, *, dtype: torch.dtype, template: str | None = None) -> tuple[OneVision, Matched]:
        with naming(folder):
            return self.read(folder, dtype=dtype, template=template)

    @property
    def runs(self) -> bool:
        return self.run is not None

    def runner(self, folder: Path, dtype: torch.dtype) -> Runner:
        assert self.run is not None, "asked before"
        return self.run(folder, dtype)
