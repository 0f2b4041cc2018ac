"""What all projectors share."""

from torch import Tensor, nn

from mmblocks.errors import ConfigError


class BodyAndHead(nn.Module):
    """A projector whose `head` is its last affine map for each token, or the identity."""

    body: nn.Module
    head: nn.Module
    spatial = True

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def require_counts(name: str, **counts: int) -> None:
    """Refuse settings below 1, with all of them at once."""
    if faults := [f"{setting}={value}" for setting, value in counts.items() if value < 1]:
        bounds = " and ".join(f"{setting} >= 1" for setting, value in counts.items() if value < 1)
        raise ConfigError(f"projector {name!r}: {', '.join(faults)}; write {bounds}.")
