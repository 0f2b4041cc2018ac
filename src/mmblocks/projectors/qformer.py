from typing import Any

import torch
from torch import Tensor, nn

from mmblocks.components import projectors
from mmblocks.projectors._base import require_counts
from mmblocks.projectors._queries import LearnedQueries, require_heads

TINY = {"queries": 4, "dim": 16, "depth": 2, "heads": 2, "mlp_dim": 24}


class QFormerBody(nn.Module):
    """Cells through LayerNorm to a Q-Former's queries: (views, h, w, in_dim) to (views, 1, queries, dim)."""

    def __init__(self, in_dim: int, queries: int, dim: int, qformer: nn.Module) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(0.02 * torch.randn(1, queries, dim))
        self.ln_vision = nn.LayerNorm(in_dim)
        self.qformer = qformer

    def forward(self, x: Tensor) -> Tensor:
        return self.run_qformer(x)

    def run_qformer(self, x: Tensor, **text: Tensor | None) -> Tensor:
        queries = self.query_tokens.expand(len(x), -1, -1)
        cells = self.ln_vision(x).flatten(1, 2)
        states = self.qformer(query_embeds=queries, encoder_hidden_states=cells, **text).last_hidden_state
        return states[:, : queries.shape[1]].unsqueeze(1)


def make_qformer_settings(
    name: str,
    in_dim: int,
    *,
    queries: int,
    dim: int,
    depth: int,
    heads: int,
    mlp_dim: int,
    cross_every: int,
    dropout: float,
) -> dict[str, Any]:
    """What the configs of both Q-Formers of transformers have in common. Raises `ConfigError` for sizes that fit none."""
    require_counts(name, queries=queries, depth=depth, mlp_dim=mlp_dim, cross_every=cross_every)
    require_heads(name, dim, heads)
    return {
        "hidden_size": dim,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": mlp_dim,
        "cross_attention_frequency": cross_every,
        "encoder_hidden_size": in_dim,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }


@projectors.register(
    "qformer",
    source="https://arxiv.org/abs/2301.12597",
    tiny=TINY,
    verified_against="transformers Blip2ForConditionalGeneration; LLaVA-NeXT (golden modules)",
)
class QFormer(LearnedQueries):
    """BLIP-2's Q-Former: learned queries attend to each other and, every `cross_every` blocks, to the cells.

    Cells pass a LayerNorm first, with torch's own epsilon as in BLIP-2; transformers counts that norm to its vision
    model (post_layernorm). The text branch is not built. Queries are drawn with a deviation of 0.02 as in the original:
    the zeros of transformers would keep all queries alike. Tensor names below `body` are the published ones.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        queries: int = 32,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_dim: int = 3072,
        cross_every: int = 2,
        dropout: float = 0.0,
    ) -> None:
        settings = make_qformer_settings(
            "qformer",
            in_dim,
            queries=queries,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_dim=mlp_dim,
            cross_every=cross_every,
            dropout=dropout,
        )
        super().__init__(queries)
        from transformers import Blip2QFormerConfig, Blip2QFormerModel

        config = Blip2QFormerConfig(**settings)
        self.body = QFormerBody(in_dim, queries, dim, Blip2QFormerModel(config))
        self.head = nn.Linear(dim, out_dim)


projectors.preset("qformer_llava_next", of="qformer", cross_every=3)
