from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmblocks.assets import resolve_source
from mmblocks.batch import Instructions
from mmblocks.components import projectors
from mmblocks.errors import ConfigError
from mmblocks.pretrained import read_tokenizer
from mmblocks.projectors._queries import LearnedQueries, require_counts, require_heads
from mmblocks.projectors.qformer import TINY

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class InstructedBody(nn.Module):
    """Cells and the words asked about them to queries: (views, h, w, in_dim) to (views, 1, queries, dim)."""

    def __init__(self, in_dim: int, queries: int, dim: int, qformer: nn.Module) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(0.02 * torch.randn(1, queries, dim))
        self.ln_vision = nn.LayerNorm(in_dim)
        self.qformer = qformer

    def forward(self, x: Tensor, instructions: Instructions | None = None) -> Tensor:
        asked = Instructions.make_empty(len(x)).to(x.device) if instructions is None else instructions
        queries = self.query_tokens.expand(len(x), -1, -1)
        seen = self.qformer(
            input_ids=asked.ids,
            attention_mask=_mask(queries, asked),
            query_embeds=queries,
            encoder_hidden_states=self.ln_vision(x).flatten(1, 2),
        )
        return seen.last_hidden_state[:, : queries.shape[1]].unsqueeze(1)


def _mask(queries: Tensor, asked: Instructions) -> Tensor | None:
    """Which of queries and words are real; None where nothing was asked, so that nothing needs to be masked."""
    if asked.ids.shape[1] == 0:
        return None
    return torch.cat([asked.mask.new_ones(queries.shape[:2]), asked.mask], dim=1)


class SkippedFeedForward(nn.Module):
    """Stands for the last block's feed-forward of the words: nobody reads what it would write."""

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        return input_tensor


@projectors.register(
    "instruct_qformer",
    source="https://arxiv.org/abs/2305.06500",
    tiny={**TINY, "vocab_size": 640, "max_text_tokens": 32, "text_tokenizer": "mmblocks:tinyworld_text"},
    verified_against="transformers InstructBlipForConditionalGeneration",
)
class InstructQFormer(LearnedQueries):
    """InstructBLIP's Q-Former: the words of the question attend beside the queries, so that these look for what is asked.

    `text_tokenizer` (hub id, folder or "mmblocks:NAME") writes these words; a question of more than `max_text_tokens`
    loses its beginning, as in InstructBLIP. No words are allowed too (captioning without a prompt).

    Tensor names below `body` are the published ones. What a published checkpoint has and this has not: the last block's
    feed-forward of the words (`qformer.encoder.layer.11.intermediate` and `.output`), whose result is dropped there.
    """

    needs_text = True

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
        vocab_size: int = 30523,
        max_text_tokens: int = 512,
        text_tokenizer: str = "google-bert/bert-base-uncased",
        dropout: float = 0.0,
    ) -> None:
        counts = {"vocab_size": vocab_size, "max_text_tokens": max_text_tokens}
        require_counts(
            "instruct_qformer", queries=queries, depth=depth, mlp_dim=mlp_dim, cross_every=cross_every, **counts
        )
        require_heads("instruct_qformer", dim, heads)
        super().__init__(queries)
        from transformers import InstructBlipQFormerConfig, InstructBlipQFormerModel

        config = InstructBlipQFormerConfig(
            hidden_size=dim,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            intermediate_size=mlp_dim,
            cross_attention_frequency=cross_every,
            encoder_hidden_size=in_dim,
            vocab_size=vocab_size,
            max_position_embeddings=max_text_tokens,
            pad_token_id=None,  # padding is masked, and the row of id 0 is a word like others
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
        qformer = InstructBlipQFormerModel(config)
        qformer.encoder.layer[-1].intermediate = nn.Identity()
        qformer.encoder.layer[-1].output = SkippedFeedForward()
        self.vocab_size = vocab_size
        self.max_text_tokens = max_text_tokens
        self.tokenizer_source = text_tokenizer
        self.body = InstructedBody(in_dim, queries, dim, qformer)
        self.head = nn.Linear(dim, out_dim)

    def forward(self, x: Tensor, instructions: Instructions | None = None) -> Tensor:
        return self.head(self.body(x, instructions))

    @cached_property
    def text_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the question; it cuts from the left. Raises `ConfigError` when it writes unknown ids."""
        tokenizer = read_tokenizer(resolve_source(self.tokenizer_source), truncation_side="left")
        if len(tokenizer) > self.vocab_size:
            raise ConfigError(
                f"projector 'instruct_qformer': {self.tokenizer_source} writes {len(tokenizer)} ids and "
                f"vocab_size={self.vocab_size} are embedded; write vocab_size={len(tokenizer)} or more.",
                settings=["vocab_size"],
            )
        return tokenizer
