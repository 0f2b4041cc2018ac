"""What a model keeps between questions: keys and values of what it read and wrote, and rows of what it was shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmblocks.chat.prompts import Looks, Prompt
from mmblocks.chat.visuals import SeenVisuals, embedded, rows_of
from mmblocks.conversation import Conversation
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import ConfigError
from mmblocks.model.generate import Decoding, Stop
from mmblocks.model.generation.step import Step, turns_positions_alike
from mmblocks.model.generation.store import KVStore
from mmblocks.model.generation.weights import Weights
from mmblocks.model.generation.writing import prepare, read, write
from mmblocks.model.onevision import OneVision
from mmblocks.settings import fields_of

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Reuse:
    """How much is kept between questions, in bytes on the model's device; 0 keeps nothing.

    kv_bytes: keys and values of the conversation; 2 GiB are some 37 thousand tokens of a 7B model in bfloat16.
    visual_bytes: visual rows of pictures and clips seen before, for when they are shown again.
    """

    kv_bytes: int = 2 * GIB
    visual_bytes: int = GIB // 2

    def __post_init__(self) -> None:
        wrong = any(s.reasons_against(getattr(self, s.name)) for s in fields_of(Reuse).values())
        if wrong or self.kv_bytes < 0 or self.visual_bytes < 0:
            raise ConfigError(f"chat: {self}; a limit is a number of bytes, 0 to keep nothing.")


class Memory:
    """One conversation as a model knows it. It is right at any time: what it holds behind an error is not used.

    A picture or clip whose file is gone goes on being what it was, as long as its rows or what was read of them are held.
    A file that changed is looked at again.

    A question is compared with what was read and written before, row by row; what both begin with is not read again.
    Everything is forgotten when the model has changed (see `Weights`).
    """

    def __init__(self, reuse: Reuse) -> None:
        self._reuse = reuse
        self._seen = SeenVisuals(reuse.visual_bytes)
        self._weights: Weights | None = None
        self._router: Any = None
        self._step: Step | None = None
        self._codes = torch.empty(0, dtype=torch.int64)  # what each row in the store is: see `_coded`
        self._numbers: dict[str, int] = {}
        self._next_number = 1
        self._looks: Looks = {}

    @torch.no_grad()
    def respond(
        self, model: OneVision, conversation: Conversation, decoding: Decoding, *, streamer: Any = None
    ) -> list[int]:
        """The ids of an answer, without the stop token. Raises `DataError` as encoding and reading visuals do."""
        decoding.require_room(model.backbone)
        processor = Processor.of(model)
        prompt = Prompt.of(processor, conversation, self._looks)
        self._require_same(model)
        step, codes = self._present_step(model), self._coded(prompt)
        kept = self._kept(model, codes)
        self._cut(kept)
        rows = rows_of(model, processor, [(prompt, prompt.shown_behind(kept))], self._seen)
        x = embedded(model, prompt, rows, kept)
        if streamer is not None:
            streamer.put(torch.empty(1, 0, dtype=torch.int64))  # it takes what is put first for the prompt
        step.store.reserve(len(prompt) + decoding.max_new_tokens)
        logits = read(model.backbone, step.store, x, [len(x)])
        self._codes = codes
        prepare(step, decoding.max_new_tokens)
        (ids,) = write(step, logits, decoding, Stop.of(model), streamer=streamer)
        self._codes = torch.cat([codes, torch.tensor(ids[: step.store.lengths[0] - len(codes)], dtype=torch.int64)])
        self._trim()
        self._looks = {id(look.visual): look for look in prompt.looks}
        return ids

    def forget_looks(self) -> None:
        """A visual whose file is gone can be shown no more: the conversation that showed it is over."""
        self._looks = {}

    def clear(self) -> None:
        """Keep nothing."""
        self._step = None
        self._codes = self._codes[:0]
        self._seen.clear()

    def _require_same(self, model: OneVision) -> None:
        """Forget what another model, other weights or another way to run them have made."""
        weights = Weights.of(model)
        if self._weights is None or not self._weights.same(weights) or self._router is not model.router:
            self.clear()
        self._weights, self._router = weights, model.router

    def _present_step(self, model: OneVision) -> Step:
        if self._step is None:
            self._step = Step(model.backbone, KVStore(1), model.device)
        return self._step

    def _coded(self, prompt: Prompt) -> Tensor:
        """(tokens,) int64, equal where rows are equal: ids of text, and for row i of a visual -(its number + i)."""
        codes = prompt.encoded.input_ids.clone()
        for key, places in zip(prompt.keys, prompt.places, strict=True):
            if key not in self._numbers:
                self._numbers[key] = self._next_number
                self._next_number += len(places)
            codes[places] = -self._numbers[key] - torch.arange(len(places))
        self._numbers = {key: self._numbers[key] for key in prompt.keys}
        return codes

    def _kept(self, model: OneVision, codes: Tensor) -> int:
        """How many rows need not be read again; the last row always is, for what it goes on with."""
        if not turns_positions_alike(model.backbone.config):
            return 0
        length = min(len(self._codes), len(codes) - 1)
        (differing,) = torch.nonzero(self._codes[:length] != codes[:length], as_tuple=True)
        return int(differing[0]) if len(differing) else length

    def _cut(self, kept: int) -> None:
        assert self._step is not None
        self._codes = self._codes[:kept]
        self._step.store.cut(kept)

    def _trim(self) -> None:
        assert self._step is not None
        self._step.store.shrink(self._reuse.kv_bytes)
        self._codes = self._codes[: self._step.store.lengths[0]]
