import torch.nn.functional as F
from torch import Tensor, nn

from mmblocks.components import projectors
from mmblocks.errors import ConfigError
from mmblocks.projectors.mlp import PerToken


class SwiGLU(nn.Module):
    """silu(gate(x)) * up(x)."""

    def __init__(self, in_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(in_dim, hidden_dim)
        self.up = nn.Linear(in_dim, hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.gate(x)) * self.up(x)


@projectors.register(
    "gated", source="https://arxiv.org/abs/2002.05202", tiny={"expansion": 2.0}, verified_against="timm SwiGLU"
)
class Gated(PerToken):
    """SwiGLU per patch, down(silu(gate(x)) * up(x)), `expansion` times in_dim wide inside.

    Shape: (..., in_dim) -> (..., out_dim). The maps have biases, which the paper leaves out.
    """

    def __init__(self, in_dim: int, out_dim: int, expansion: float = 4.0) -> None:
        super().__init__()
        hidden_dim = round(in_dim * expansion)
        if hidden_dim < 1:
            raise ConfigError(
                f"projector 'gated': expansion={expansion} leaves none of {in_dim} channels; write {1 / in_dim} or more.",
                settings=["expansion"],
            )
        self.body = SwiGLU(in_dim, hidden_dim)
        self.head = nn.Linear(hidden_dim, out_dim)
