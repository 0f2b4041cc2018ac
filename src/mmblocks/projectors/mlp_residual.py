from torch import Tensor, nn

from mmblocks.components import projectors
from mmblocks.projectors._base import require_counts
from mmblocks.projectors.mlp import PerToken, make_linear_layers


class ResidualBlock(nn.Module):
    """y + Linear(GELU(Linear(y))) with y = LayerNorm(x): the residual is the normalised x, as in LLaVA's code."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pre_norm = nn.LayerNorm(dim)
        self.proj = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.pre_norm(x)
        return normed + self.proj(normed)


@projectors.register(
    "mlp_residual", source="https://github.com/LLaVA-VL/LLaVA-NeXT", verified_against="LLaVA-NeXT (golden modules)"
)
class ResidualMLP(PerToken):
    """An MLP followed by residual blocks: LLaVA's mlpNx_resMx_gelu, N being `depth` and M `blocks`.

    Shape: (..., in_dim) -> (..., out_dim). Layers of `body` have the numbers that they have in the original's weights.
    """

    def __init__(self, in_dim: int, out_dim: int, depth: int = 2, blocks: int = 2) -> None:
        super().__init__()
        require_counts("mlp_residual", blocks=blocks)
        layers, last = make_linear_layers("mlp_residual", in_dim, out_dim, depth)
        self.body = nn.Sequential(*layers, last, *(ResidualBlock(out_dim) for _ in range(blocks)))
        self.head = nn.Identity()
