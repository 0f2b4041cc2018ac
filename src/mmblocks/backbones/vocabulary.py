from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def add_vocabulary_rows(lm: PreTrainedModel, rows: int) -> None:
    """Give a language model at least so many token embeddings, in place; each new row is the mean of the others."""
    present = lm.get_input_embeddings().weight.shape[0]
    if rows <= present:
        return
    lm.resize_token_embeddings(rows, mean_resizing=False)  # transformers' own draws them at random
    for layer in (lm.get_input_embeddings(), lm.get_output_embeddings()):
        for table in (layer.weight, getattr(layer, "bias", None)):
            if table is not None:
                table[present:] = table[:present].float().mean(dim=0).to(table.dtype)
