from collections.abc import Sequence
from typing import ClassVar

from mmblocks.batch import Batch
from mmblocks.model.onevision import LossOutput, OneVision
from mmblocks.train.objectives import FrozenModelLoader, objectives


@objectives.register("answers", source="https://arxiv.org/abs/2304.08485")
class Answers:
    """Next-token cross entropy of every labelled row."""

    needs_pairs: ClassVar[bool] = False
    model_methods: ClassVar[Sequence[str]] = ()

    def needs_reference(self, model: OneVision) -> bool:
        return False

    def prepare_model(self, model: OneVision, load_frozen: FrozenModelLoader) -> None:
        """Nothing is needed of the starting model."""

    def count_loss_terms(self, batch: Batch) -> int:
        """Labelled rows."""
        return batch.num_labelled

    def __call__(self, model: OneVision, batch: Batch) -> LossOutput:
        return model(batch)
