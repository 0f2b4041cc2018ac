from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def add_vocabulary_rows(lm: PreTrainedModel, rows: int) -> None:
    """Give a language model at least so many token embeddings, in place; each new row is the mean of the others."""
    present = len(next(lm.get_input_embeddings().parameters()))
    if rows <= present:
        return
    lm.resize_token_embeddings(rows, mean_resizing=False)  # transformers' own draws them at random
    for layer in (lm.get_input_embeddings(), lm.get_output_embeddings()):
        for table in layer.parameters() if layer is not None else ():
            table[present:] = table[:present].float().mean(dim=0).to(table.dtype)
