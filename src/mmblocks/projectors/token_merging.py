import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from mmblocks.components import projectors
from mmblocks.errors import ConfigError
from mmblocks.projectors._base import BodyAndHead, require_counts
from mmblocks.projectors.mlp import make_linear_layers
from mmblocks.shapes import Size


def merge_alike(x: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Merge the most alike tokens of each row until `tokens` are left: (n, t, d) to (n, tokens, d) and their sizes.

    Sizes, (n, tokens), count the tokens that each one is the mean of. A round merges half of the tokens at most.
    """
    sizes = x.new_ones(x.shape[:2], dtype=torch.promote_types(x.dtype, torch.float32))
    merged = x.to(sizes.dtype)
    while (surplus := merged.shape[1] - tokens) > 0:
        merged, sizes = merge_one_round(merged, sizes, min(surplus, merged.shape[1] // 2))
    return merged.to(x.dtype), sizes


def merge_one_round(x: Tensor, sizes: Tensor, pairs: int) -> tuple[Tensor, Tensor]:
    """One bipartite matching: `pairs` tokens of even places merge into the most alike tokens of odd places.

    A merged token stands in the odd one's place, and no other moves.
    """
    from_token, into_token = find_closest_pairs(x.detach(), pairs)
    weighted, width = x * sizes.unsqueeze(-1), x.shape[-1]
    moved = weighted.gather(1, repeat(from_token, "n p -> n p d", d=width))
    sums = weighted.scatter_add(1, repeat(into_token, "n p -> n p d", d=width), moved)
    sizes = sizes.scatter_add(1, into_token, sizes.gather(1, from_token))
    gone = torch.zeros_like(sizes, dtype=torch.long).scatter(1, from_token, 1)
    left = gone.argsort(dim=1, stable=True)[:, : x.shape[1] - pairs]
    sizes = sizes.gather(1, left)
    return sums.gather(1, repeat(left, "n t -> n t d", d=width)) / sizes.unsqueeze(-1), sizes


def find_closest_pairs(x: Tensor, pairs: int) -> tuple[Tensor, Tensor]:
    """Places of the even tokens that are most like an odd one (by cosine), and of that odd one: (n, pairs) each."""
    unit = F.normalize(x, dim=-1)
    likeness, closest = (unit[:, ::2] @ unit[:, 1::2].mT).max(dim=-1)
    chosen = likeness.topk(pairs, dim=-1).indices
    return 2 * chosen, 2 * closest.gather(1, chosen) + 1


class MergeTokens(nn.Module):
    """(n, h, w, d) to (n, 1, tokens, d)."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, x: Tensor) -> Tensor:
        merged, _ = merge_alike(rearrange(x, "n h w d -> n (h w) d"), self.tokens)
        return rearrange(merged, "n t d -> n 1 t d")


@projectors.register(
    "token_merging",
    source="https://arxiv.org/abs/2210.09461",
    tiny={"tokens": 4},
    verified_against="none at hand: the paper's matching in plain loops, and its laws",
)
class TokenMerging(BodyAndHead):
    """Merge the most alike patches (ToMe) until `tokens` are left, then an MLP.

    Shape: (n, h, w, in_dim) -> (n, 1, tokens, out_dim). Merged tokens are means over all patches in them. Likeness is
    the cosine of the features, where ToMe inside a ViT takes attention keys; tokens keep the order of their places.
    """

    spatial = False

    def __init__(self, in_dim: int, out_dim: int, tokens: int = 144, depth: int = 2) -> None:
        super().__init__()
        require_counts("token_merging", tokens=tokens)
        self.tokens = tokens
        mlp, self.head = make_linear_layers("token_merging", in_dim, out_dim, depth)
        self.body = nn.Sequential(MergeTokens(tokens), *mlp)

    def out_grid(self, grid: Size) -> Size:
        if grid.area < self.tokens:
            raise ConfigError(
                f"projector 'token_merging': a grid of {grid} has {grid.area} cells, fewer than tokens={self.tokens}; "
                f"write at most tokens={grid.area}.",
                settings=["tokens"],
            )
        return Size(1, self.tokens)
