"""A moving average of the trained weights, which often answers better than the last weights do."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmblocks.errors import CheckpointError, ConfigError


class EMA:
    """Exponential moving average of a model's trainable parameters: `average += (1 - decay) * (weight - average)`.

    decay: its final value; it begins lower, (1 + n) / (10 + n) after n updates, so that the average soon leaves the first
        weights.
    Elementwise on each process's own shard, so an average of sharded weights is exactly the average of the whole ones.
    The average has the parameters' dtype; in bfloat16 a decay near 1 would round to no change at all.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"ema={decay}; a decay is at least 0 and below 1, such as 0.999.")
        self.decay = decay
        self.updates = 0
        self._averages = {name: p.detach().clone() for name, p in _list_trainable(model)}

    @torch.no_grad()
    def update_average(self, model: nn.Module) -> None:
        """Add the weights after an optimizer step to the average."""
        self.updates += 1
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, parameter in _list_trainable(model):
            self._averages[name].lerp_(parameter.detach(), weight)

    @contextmanager
    def use_averages(self, model: nn.Module) -> Iterator[None]:
        """Give the model the averaged weights, for evaluation or saving; the trained ones come back afterwards."""
        self._swap_weights(model)
        try:
            yield
        finally:
            self._swap_weights(model)

    @torch.no_grad()
    def _swap_weights(self, model: nn.Module) -> None:
        for name, parameter in _list_trainable(model):
            kept = parameter.detach().clone()
            parameter.copy_(self._averages[name])
            self._averages[name].copy_(kept)

    def state_dict(self) -> dict[str, Tensor]:
        """Averages by parameter name (sharded as the parameters are) and the number of updates, for a run's state."""
        return {**self._averages, "updates": torch.tensor(self.updates)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Resume from `state_dict`. Raises `CheckpointError` when it belongs to other parameters."""
        if strange := sorted(state.keys() ^ {*self._averages, "updates"}):
            raise CheckpointError(
                f"the moving average was kept for other parameters: {', '.join(strange[:5])}; does the stage train the "
                "same parts as when it was saved?"
            )
        self.updates = int(state["updates"])
        for name, average in self._averages.items():
            average.copy_(state[name])


def _list_trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)
