import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmblocks.components import projectors
from mmblocks.errors import ConfigError
from mmblocks.projectors._base import require_counts
from mmblocks.projectors._queries import LearnedQueries


class PerceiverAttention(nn.Module):
    """Latents attend to media and latents alike, each normed on its own; no biases."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_media = nn.LayerNorm(dim)
        self.norm_latents = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * head_dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, dim, bias=False)

    def forward(self, media: Tensor, latents: Tensor) -> Tensor:
        own = self.norm_latents(latents)
        read = torch.cat([self.norm_media(media), own], dim=1)
        q = rearrange(self.to_q(own), "v n (heads d) -> v heads n d", heads=self.heads)
        k, v = rearrange(self.to_kv(read), "v n (two heads d) -> two v heads n d", two=2, heads=self.heads)
        return self.to_out(rearrange(F.scaled_dot_product_attention(q, k, v), "v heads n d -> v n (heads d)"))


class PerceiverBody(nn.Module):
    """Attention and feed-forward, `depth` times, each added to the latents; a LayerNorm at the end."""

    def __init__(self, dim: int, queries: int, depth: int, heads: int, head_dim: int, ff_mult: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(queries, dim))
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(dim, heads, head_dim), _make_feed_forward(dim, ff_mult)])
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        media = x.flatten(1, 2)
        latents = self.latents.expand(len(x), -1, -1)
        for attention, feed_forward in self.layers:  # type: ignore[misc]
            latents = latents + attention(media, latents)
            latents = latents + feed_forward(latents)
        return self.norm(latents).unsqueeze(1)


def _make_feed_forward(dim: int, mult: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(dim), nn.Linear(dim, dim * mult, bias=False), nn.GELU(), nn.Linear(dim * mult, dim, bias=False)
    )


@projectors.register(
    "perceiver",
    source="https://arxiv.org/abs/2204.14198",
    tiny={"queries": 4, "depth": 2, "heads": 2, "head_dim": 8, "ff_mult": 2},
    verified_against="LLaVA-NeXT (golden modules)",
)
class Perceiver(LearnedQueries):
    """Flamingo's perceiver resampler as LLaVA-NeXT has it, of the encoder's width, and one linear map behind it.

    One image at a time: no time embeddings. Tensor names below `body` are those of the original's `perceiver`.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        queries: int = 32,
        depth: int = 3,
        heads: int = 8,
        head_dim: int = 64,
        ff_mult: int = 4,
    ) -> None:
        require_counts("perceiver", queries=queries, depth=depth, heads=heads, head_dim=head_dim, ff_mult=ff_mult)
        super().__init__(queries)
        self.body = PerceiverBody(in_dim, queries, depth, heads, head_dim, ff_mult)
        self.head = nn.Linear(in_dim, out_dim)


class ConnectorBody(nn.Module):
    """Idefics2's connector: a gated MLP per cell to the LLM's width, then perceiver layers at that width."""

    def __init__(self, modality_projection: nn.Module, perceiver_resampler: nn.Module) -> None:
        super().__init__()
        self.modality_projection = modality_projection
        self.perceiver_resampler: nn.Module = perceiver_resampler

    def forward(self, x: Tensor) -> Tensor:
        media = self.modality_projection(x.flatten(1, 2))
        resampler = self.perceiver_resampler
        latents = resampler.latents.expand(len(x), -1, -1)  # type: ignore[operator]
        for layer in resampler.layers:  # type: ignore[union-attr]
            latents = layer(latents, media)  # every cell is real, so no mask is made
        return resampler.norm(latents).unsqueeze(1)  # type: ignore[operator]


@projectors.register(
    "idefics2_perceiver",
    source="https://arxiv.org/abs/2405.02246",
    tiny={"queries": 4, "depth": 2, "heads": 2, "head_dim": 8, "kv_heads": 1, "mlp_dim": 24},
    verified_against="transformers Idefics2Connector",
)
class Idefics2Perceiver(LearnedQueries):
    """Idefics2's connector: a gated MLP to the LLM's width, then a perceiver resampler that ends in a norm.

    Its last step is no affine map, so `head` is the identity. Latents are drawn from a normal distribution: the ones of
    transformers would keep all of them alike. Tensor names below `body` are those of transformers' `connector`.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        queries: int = 64,
        depth: int = 3,
        heads: int = 16,
        head_dim: int = 96,
        kv_heads: int = 4,
        mlp_dim: int = 14336,
    ) -> None:
        counts = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
        require_counts("idefics2_perceiver", queries=queries, depth=depth, mlp_dim=mlp_dim, **counts)
        if heads % kv_heads:
            raise ConfigError(
                f"projector 'idefics2_perceiver': heads={heads} cannot be shared out among kv_heads={kv_heads}; "
                f"write a divisor of {heads}.",
                settings=["heads", "kv_heads"],
            )
        super().__init__(queries)
        from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig
        from transformers.models.idefics2.modeling_idefics2 import Idefics2MLP, Idefics2PerceiverResampler

        config = Idefics2PerceiverConfig(
            hidden_size=out_dim,
            resampler_n_latents=queries,
            resampler_depth=depth,
            resampler_n_heads=heads,
            resampler_head_dim=head_dim,
            num_key_value_heads=kv_heads,
        )
        resampler = Idefics2PerceiverResampler(config)
        nn.init.normal_(resampler.latents)
        self.body = ConnectorBody(Idefics2MLP(in_dim, mlp_dim, out_dim, config.hidden_act), resampler)
        self.head = nn.Identity()
