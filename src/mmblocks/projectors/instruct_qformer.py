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
from mmblocks.projectors._base import require_counts
from mmblocks.projectors._queries import LearnedQueries
from mmblocks.projectors.qformer import TINY, QFormerBody, make_qformer_settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class InstructedBody(QFormerBody):
    """Cells and the words of the question to queries: (views, h, w, in_dim) to (views, 1, queries, dim)."""

    def forward(self, x: Tensor, instructions: Instructions | None = None) -> Tensor:
        if instructions is None:
            instructions = Instructions.make_empty(len(x)).to(x.device)
        mask = None  # without words there is nothing to mask
        if instructions.ids.shape[1]:
            real_queries = instructions.mask.new_ones(len(x), self.query_tokens.shape[1])
            mask = torch.cat([real_queries, instructions.mask], dim=1)
        return self.run_qformer(x, input_ids=instructions.ids, attention_mask=mask)


class SkippedFeedForward(nn.Module):
    """Replaces the last block's feed-forward of the words, whose output is not used."""

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        return input_tensor


@projectors.register(
    "instruct_qformer",
    source="https://arxiv.org/abs/2305.06500",
    tiny={**TINY, "vocab_size": 640, "max_text_tokens": 32, "text_tokenizer": "mmblocks:tinyworld_text"},
    verified_against="transformers InstructBlipForConditionalGeneration",
)
class InstructQFormer(LearnedQueries):
    """InstructBLIP's Q-Former: the words of the question attend together with the queries, which therefore depend on it.

    `text_tokenizer` (hub id, folder or "mmblocks:NAME") encodes these words; a question of more than `max_text_tokens`
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
        require_counts("instruct_qformer", vocab_size=vocab_size, max_text_tokens=max_text_tokens)
        settings = make_qformer_settings(
            "instruct_qformer",
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
        from transformers import InstructBlipQFormerConfig, InstructBlipQFormerModel

        config = InstructBlipQFormerConfig(
            **settings,
            vocab_size=vocab_size,
            max_position_embeddings=max_text_tokens,
            pad_token_id=None,  # padding is masked, and the row of id 0 is a word like others
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
