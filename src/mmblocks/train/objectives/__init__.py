"""What a stage minimises. An objective turns a model and a packed batch into a sum and says what it is divided by."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Protocol

from mmblocks.batch import Batch
from mmblocks.conversation import PreferencePair
from mmblocks.data.mixing.mixture import Draw, Mixture
from mmblocks.errors import ConfigError, DataError
from mmblocks.model.onevision import LossOutput, OneVision
from mmblocks.registry import Registry

MAX_RECORDS = 100
"""Records of a source that are read to find one that shows what the source holds."""


class FrozenModelLoader(Protocol):
    """How an objective gets one more model."""

    def __call__(self, folder: Path | None = None) -> OneVision:
        """Load one more model, frozen, in evaluation mode and sharded as the trained one: the model saved in `folder`, or
        by default the model that the stage starts from.
        """
        ...


class Objective(Protocol):
    """Built from settings alone; `prepare_model` gives it the model.

    A step minimises the sum of `LossOutput.total` over the micro-batches and processes, divided by the sum of `count_loss_terms`.
    """

    needs_pairs: ClassVar[bool]
    """Whether it compares two answers: sources hold `PreferencePair`s, a batch holds [preferred, other, preferred, ...]."""

    model_methods: ClassVar[Sequence[str]]
    """Methods of `OneVision` that it calls beside the forward pass, such as `compute_logits`. A sharded model gathers its
    weights for these calls; a method that is not named here fails with "mixed torch.Tensor and DTensor".
    """

    def needs_reference(self, model: OneVision) -> bool:
        """Whether a second, frozen model stays in memory. `model`: as the stage trains it, possibly on the meta device."""
        ...

    def prepare_model(self, model: OneVision, load_frozen: FrozenModelLoader) -> None:
        """Called once before a stage trains or resumes. `model` holds the stage's starting weights, its parts frozen or not."""
        ...

    def count_loss_terms(self, batch: Batch) -> int:
        """What a batch adds to the divisor, known before the forward pass."""
        ...

    def __call__(self, model: OneVision, batch: Batch) -> LossOutput:
        """The sum to minimise. `LossOutput.num_terms` is `count_loss_terms(batch)`; `LossOutput.metrics` are sums over the same terms."""
        ...


objectives: Registry[Any] = Registry("objective", "mmblocks.train.objectives")


def require_items(objective: Objective, mixture: Mixture) -> None:
    """Raise `ConfigError` naming the sources that hold conversations where pairs are compared, or the reverse."""
    wrong = []
    for number, name in enumerate(mixture.names):
        for record in range(min(len(mixture.sources[number]), MAX_RECORDS)):
            with suppress(DataError):  # what becomes of broken records is not decided here
                if isinstance(mixture[Draw(number, record)], PreferencePair) is not objective.needs_pairs:
                    wrong.append(f"data.{name}: {describe_item_mismatch(objective)}")
                break
    if wrong:
        raise ConfigError("\n".join(wrong))


def describe_item_mismatch(objective: Objective) -> str:
    """What is wrong with a source that holds the other kind of item."""
    if objective.needs_pairs:
        return (
            "this source holds conversations, and the objective compares pairs of answers; give records a 'chosen' and a "
            "'rejected' answer, or write objective: answers."
        )
    return "this source holds pairs of answers, of which the objective would also learn the rejected ones; write objective: dpo."
