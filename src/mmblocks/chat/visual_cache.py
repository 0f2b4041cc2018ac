"""Visual rows, each visual encoded once while it is in the cache."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmblocks.chat.prompts import ChatPrompt
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor, Sample
from mmblocks.model.onevision import OneVision


class VisualCache:
    """Rows of visuals by their keys (see `ChatPrompt`); the least recently used are dropped above `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rows: OrderedDict[str, Tensor] = OrderedDict()

    def find_rows(self, key: str) -> Tensor | None:
        """(rows, dim), or None."""
        if key in self._rows:
            self._rows.move_to_end(key)
        return self._rows.get(key)

    def store_rows(self, key: str, rows: Tensor) -> None:
        """Rows that alone are too large are not kept."""
        if rows.nbytes <= self._max_bytes:
            self._rows[key] = rows.clone()  # rows are a piece of what was encoded together, which is not to be held
        while sum(kept.nbytes for kept in self._rows.values()) > self._max_bytes:
            self._rows.popitem(last=False)

    def clear(self) -> None:
        """Keep nothing."""
        self._rows.clear()


def encode_visuals(
    model: OneVision, processor: Processor, wanted: Sequence[tuple[ChatPrompt, Sequence[int]]], seen: VisualCache
) -> dict[str, Tensor]:
    """By key, the rows of some visuals of each prompt. Those not seen before are encoded together, each once."""
    found: dict[str, Tensor] = {}
    samples: list[Sample] = []
    new: list[tuple[str, int]] = []
    for prompt, numbers in wanted:
        unseen = []
        for i in numbers:
            key = prompt.keys[i]
            known = found.get(key, seen.find_rows(key))
            if known is not None:
                found[key] = known
            elif key not in dict(new):
                new.append((key, prompt.row_counts[i]))
                unseen.append(i)
        samples += [prompt.open_visuals(processor, unseen)] if unseen else []
    if samples:
        rows = model.compute_visual_tokens(collate(samples).to(model.device))
        for (key, _), part in zip(new, rows.split([count for _, count in new]), strict=True):
            found[key] = part
            seen.store_rows(key, part)
    return found


def embed_prompt(model: OneVision, prompt: ChatPrompt, rows: Mapping[str, Tensor], kept: int = 0) -> Tensor:
    """(tokens - kept, dim): the rows of a prompt behind the first `kept`, visual ones out of `rows`."""
    x = model.backbone.embed_tokens(prompt.encoded.input_ids[kept:].to(model.device))
    for i in prompt.find_visuals_behind(kept):
        places = prompt.row_positions[i]
        first = int(torch.searchsorted(places, kept))
        x = x.index_copy(0, (places[first:] - kept).to(x.device), rows[prompt.keys[i]][first:].to(x.dtype))
    return x
