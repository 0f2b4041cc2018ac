"""Answers: the backbone's own `generate` on embeddings that hold text and visual tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmblocks.batch import Batch
from mmblocks.model.onevision import OneVision


@dataclass(frozen=True, slots=True)
class Decoding:
    """How answers are drawn. temperature 0 is greedy; above it, tokens are sampled within `top_p` and `top_k`."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    def arguments(self) -> dict[str, Any]:
        """The same in transformers' words."""
        if self.temperature == 0:
            return {"max_new_tokens": self.max_new_tokens, "do_sample": False}
        return {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": True,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
        }


@torch.no_grad()
def generate(
    model: OneVision, batch: Batch, decoding: Decoding | None = None, *, streamer: Any = None
) -> list[list[int]]:
    """New token ids for every packed prompt, without the stop token.

    `streamer` is one of transformers' streamers (batches of one prompt only).
    """
    decoding = decoding or Decoding()
    stop = Stop.of(model)
    prompts, mask = left_padded(model.embed(batch), batch.packing.lengths)
    with torch.random.fork_rng(enabled=decoding.seed is not None):
        if decoding.seed is not None:
            torch.manual_seed(decoding.seed)
        new = model.backbone.lm.generate(
            inputs_embeds=prompts,
            attention_mask=mask,
            streamer=streamer,
            **stop.arguments(model.backbone.text_tokenizer),
            **decoding.arguments(),
        )
    return [until(row, stop.tokens) for row in new.tolist()]


@dataclass(frozen=True, slots=True)
class Stop:
    """What ends an answer: single tokens, and texts that the tokenizer writes with several."""

    tokens: tuple[int, ...]
    texts: tuple[str, ...]

    @classmethod
    def of(cls, model: OneVision) -> Stop:
        """The stop texts of a model's chat template, as its text tokenizer writes them."""
        tokenizer = model.backbone.text_tokenizer
        ids = {text: tokenizer.encode(text, add_special_tokens=False) for text in model.template.stop}
        tokens = tuple(i[0] for i in ids.values() if len(i) == 1)
        return cls(tokens, tuple(text for text, i in ids.items() if len(i) != 1))

    def arguments(self, tokenizer: Any) -> dict[str, Any]:
        """The same in transformers' words."""
        end = {"eos_token_id": list(self.tokens) or None, "pad_token_id": self.tokens[0] if self.tokens else 0}
        return end | ({"stop_strings": list(self.texts), "tokenizer": tokenizer} if self.texts else {})


def left_padded(packed: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Packed rows (tokens, dim) as (prompts, longest, dim) with zeros in front, and the mask of what is real."""
    prompts = pad_sequence(list(packed.split(list(lengths))), batch_first=True, padding_side="left")
    sizes = torch.tensor(lengths, device=packed.device)
    behind = torch.arange(prompts.shape[1], 0, -1, device=packed.device)
    return prompts, (behind[None, :] <= sizes[:, None]).long()


def until(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """Ids before the first stop token."""
    ends = [i for i, token in enumerate(ids) if token in stop_ids]
    return list(ids[: ends[0]]) if ends else list(ids)
