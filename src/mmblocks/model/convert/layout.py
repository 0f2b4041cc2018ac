"""What every checkpoint layout offers: to recognise a folder, to read it as a model of ours, to write one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mmblocks.errors import ConfigError
from mmblocks.pretrained import convert_checkpoint_errors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmblocks.model.convert.probe import Probe
    from mmblocks.model.convert.weights import MatchedTensors
    from mmblocks.model.onevision import OneVision
    from mmblocks.model.spec import ModelSpec

Runner = Callable[["OneVision", "Probe", "Tensor"], "Tensor"]
"""(the same model in our layout, which may be without weights, a probe, row numbers) to logits (rows, vocabulary)."""


class CheckpointLayout(ABC):
    """One layout. `mmblocks.model.convert.LAYOUTS` names the module of each; its `LAYOUT` is an instance.

    about: what the layout is, in a few words: "transformers' llava_next". supports_video: whether its own code takes
    videos; a model keeps its other abilities there. can_run: whether the layout's own code can be run here.
    """

    about: str
    supports_video = True
    can_run = False

    @abstractmethod
    def can_read(self, folder: Path) -> bool:
        """Whether the folder is in this layout, from its file names and json alone; no tensor is read."""

    @abstractmethod
    def read_spec(self, folder: Path, template: str | None = None) -> ModelSpec:
        """The composition of a checkpoint; no value of a tensor is read. Raises what `read_model` does of settings."""

    @abstractmethod
    def read_model(self, folder: Path, dtype: torch.dtype, template: str | None) -> tuple[OneVision, MatchedTensors]:
        """The model and how each tensor was accounted for. template: a chat template in place of the checkpoint's own."""

    def import_model(
        self, folder: Path, *, dtype: torch.dtype, template: str | None = None
    ) -> tuple[OneVision, MatchedTensors]:
        """`read_model`, with the folder named in every `ConfigError` and `CheckpointError`."""
        with name_in_errors(folder):
            return self.read_model(folder, dtype, template)

    def find_weights_folder(self, folder: Path) -> Path:
        """The folder that holds most of the weights: another one for an adapter."""
        return folder

    @abstractmethod
    def reasons_against_export(self, model: OneVision) -> list[str]:
        """Everything about a model that the layout cannot express; empty when it can be written."""

    @abstractmethod
    def export_model(
        self, model: OneVision, folder: Path, *, dtype: torch.dtype | None = None, max_shard_size: str = "5GB"
    ) -> Path:
        """Write the folder whole or not at all. Raises `ConfigError` listing `reasons_against_export`."""

    def make_runner(self, folder: Path, dtype: torch.dtype) -> Runner:
        """Load the checkpoint in its own code, with weights of this type; only where `can_run`."""
        raise NotImplementedError(f"the code of {self.about} cannot be run here")


@contextmanager
def name_in_errors(folder: Path) -> Iterator[None]:
    """Name the checkpoint in every error about it, whatever Python raises for settings that make no sense."""
    try:
        with convert_checkpoint_errors(folder):
            yield
    except ConfigError as cause:
        if str(folder) in str(cause):
            raise
        raise ConfigError(f"{folder}: {cause}") from cause
