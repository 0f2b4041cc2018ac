from torch import nn

from mmblocks.components import projectors
from mmblocks.errors import ConfigError
from mmblocks.projectors._base import BodyAndHead
from mmblocks.shapes import Size


class PerToken(BodyAndHead):
    """A projector that maps every cell by itself, so the grid stays as it is."""

    per_token = True

    def out_grid(self, grid: Size) -> Size:
        return grid


def make_linear_layers(name: str, in_dim: int, out_dim: int, depth: int) -> tuple[nn.Sequential, nn.Linear]:
    """Body and head of `depth` linear layers with GELU between them; every layer after the first is out_dim wide."""
    if depth < 1:
        raise ConfigError(
            f"projector {name!r}: depth={depth}; it needs at least one linear layer, so depth >= 1.", settings=["depth"]
        )
    widths = [in_dim, *[out_dim] * (depth - 1)]
    layers: list[nn.Module] = []
    for width in widths[:-1]:
        layers += [nn.Linear(width, out_dim), nn.GELU()]
    return nn.Sequential(*layers), nn.Linear(widths[-1], out_dim)


@projectors.register(
    "mlp", source="https://arxiv.org/abs/2310.03744", tiny={"depth": 2}, verified_against="LLaVA-NeXT (golden modules)"
)
class MLP(PerToken):
    """Linear layers with GELU between them: LLaVA-1.5's and OneVision's connector at depth 2.

    Shape: (..., in_dim) -> (..., out_dim). Every layer after the first is out_dim wide (mlpNx_gelu in LLaVA).
    """

    def __init__(self, in_dim: int, out_dim: int, depth: int = 2) -> None:
        super().__init__()
        self.body, self.head = make_linear_layers("mlp", in_dim, out_dim, depth)


@projectors.register(
    "linear", source="https://arxiv.org/abs/2304.08485", verified_against="LLaVA-NeXT (golden modules)"
)
class Linear(PerToken):
    """One linear map per patch: LLaVA's first connector.   Shape: (..., in_dim) -> (..., out_dim)."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.body = nn.Identity()
        self.head = nn.Linear(in_dim, out_dim)


@projectors.register(
    "identity", source="https://github.com/LLaVA-VL/LLaVA-NeXT", verified_against="LLaVA-NeXT (golden modules)"
)
class Identity(PerToken):
    """Pass features on unchanged; encoder and LLM must have the same width."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        if in_dim != out_dim:
            raise ConfigError(
                f"projector 'identity': the encoder gives {in_dim} channels and the backbone takes {out_dim}; use 'linear' or 'mlp'."
            )
        self.body = nn.Identity()
        self.head = nn.Identity()
