from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from mmblocks.batch import Batch
from mmblocks.model.onevision import LossOutput, OneVision
from mmblocks.train.objectives import objectives


@objectives.register("answers", source="https://arxiv.org/abs/2304.08485")
class Answers:
    """Next-token cross entropy of every labelled row."""

    pairs: ClassVar[bool] = False
    reference: None = None

    def prepare_model(self, model: OneVision, another: Callable[[], OneVision]) -> None:
        """Nothing is needed of the starting model."""

    def count_loss_terms(self, batch: Batch) -> int:
        """Labelled rows."""
        return batch.num_labelled

    def __call__(self, model: OneVision, batch: Batch) -> LossOutput:
        return model(batch)
