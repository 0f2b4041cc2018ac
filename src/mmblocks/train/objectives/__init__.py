"""What a stage minimises. An objective turns a model and a packed batch into a sum and says what it is divided by."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar, Protocol

from mmblocks.batch import Batch
from mmblocks.conversation import Item, PreferencePair
from mmblocks.data.mixing.mixture import Draw, Mixture
from mmblocks.errors import ConfigError, DataError
from mmblocks.model.onevision import LossOutput, OneVision
from mmblocks.registry import Registry

MAX_RECORDS = 100
"""Records of a source that are read to find one that says what it holds."""


class Objective(Protocol):
    """Built from settings alone; `start` gives it the model.

    It calls the model as `model(batch)` or `model.compute_row_losses(batch)`, the two ways that a sharded model knows. A step
    minimises the sum of `LossOutput.total` over the micro-batches and processes, divided by the sum of `count`.
    """

    pairs: ClassVar[bool]
    """Whether it compares two answers: sources hold `Pair`s, and a batch holds [preferred, other, preferred, ...]."""

    reference: OneVision | None
    """A frozen model that runs beside the one that learns, made by `start`; it is to be sharded as that one is."""

    def prepare_model(self, model: OneVision, another: Callable[[], OneVision]) -> None:
        """Called once before a stage learns, with what learns chosen and the weights that the stage starts from, also
        when a run is resumed. `another` makes one more such model, sharded as the first is.
        """
        ...

    def count_loss_terms(self, batch: Batch) -> int:
        """What a batch adds to the divisor, known before the model has run."""
        ...

    def __call__(self, model: OneVision, batch: Batch) -> LossOutput:
        """The sum to minimise; `LossOutput.num_terms` is `count(batch)`, `LossOutput.metrics` are sums over the same."""
        ...


objectives: Registry[Any] = Registry("objective", "mmblocks.train.objectives")


def require_items(objective: Objective, mixture: Mixture) -> None:
    """Raise `ConfigError` naming the sources that hold conversations where pairs are compared, or the reverse."""
    firsts = ((name, _find_first_readable(mixture, number)) for number, name in enumerate(mixture.names))
    wrong = [
        name for name, item in firsts if item is not None and isinstance(item, PreferencePair) is not objective.pairs
    ]
    if wrong:
        raise ConfigError("\n".join(f"data.{name}: {item_mismatch(objective)}" for name in wrong))


def _find_first_readable(mixture: Mixture, source: int) -> Item | None:
    """The first item of a source that is not broken; what becomes of broken ones is not decided here."""
    for record in range(min(len(mixture.sources[source]), MAX_RECORDS)):
        with suppress(DataError):
            return mixture[Draw(source, record)]
    return None


def item_mismatch(objective: Objective) -> str:
    """What is wrong with a source that holds the other kind of item."""
    if objective.pairs:
        return (
            "this source holds conversations, and the objective compares pairs of answers; give records a 'chosen' and a "
            "'rejected' answer, or write objective: answers."
        )
    return "this source holds pairs of answers, of which the objective would also learn the rejected ones; write objective: dpo."
