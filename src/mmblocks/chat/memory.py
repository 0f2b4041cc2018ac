"""What a model keeps between questions: keys and values of what it read and wrote, and rows of what it was shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmblocks.chat.prompts import ChatPrompt, VisualHeaders
from mmblocks.chat.visuals import VisualCache, embed_prompt, encode_visuals
from mmblocks.conversation import Conversation
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import ConfigError
from mmblocks.model.generate import Decoding, StopSequences
from mmblocks.model.generation.step import DecodingStep, has_fixed_rope
from mmblocks.model.generation.store import KVCache
from mmblocks.model.generation.weights import WeightSnapshot
from mmblocks.model.generation.writing import decode_answers, prefill_prompts, prepare_step
from mmblocks.model.onevision import OneVision
from mmblocks.settings import list_settings

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Reuse:
    """How much is kept between questions, in bytes on the model's device; 0 keeps nothing.

    kv_bytes: keys and values of the conversation; 2 GiB are some 37 thousand tokens of a 7B model in bfloat16.
    visual_bytes: visual rows of images and videos seen before, for when they are shown again.
    """

    kv_bytes: int = 2 * GIB
    visual_bytes: int = GIB // 2

    def __post_init__(self) -> None:
        wrong = any(s.find_fault(getattr(self, s.name)) for s in list_settings(Reuse).values())
        if wrong or self.kv_bytes < 0 or self.visual_bytes < 0:
            raise ConfigError(f"chat: {self}; a limit is a number of bytes, 0 to keep nothing.")


class ChatMemory:
    """One conversation as a model knows it. It is right at any time: what it holds behind an error is not used.

    An image or video whose file is gone goes on being what it was, as long as its rows or what was read of them are held.
    A file that changed is looked at again.

    A question is compared with what was read and written before, row by row; what both begin with is not read again.
    Everything is forgotten when the model has changed (see `Weights`).
    """

    def __init__(self, reuse: Reuse) -> None:
        self._reuse = reuse
        self._seen = VisualCache(reuse.visual_bytes)
        self._weights: WeightSnapshot | None = None
        self._router: Any = None
        self._step: DecodingStep | None = None
        self._codes = torch.empty(0, dtype=torch.int64)  # what each row in the store is: see `_coded`
        self._numbers: dict[str, int] = {}
        self._next_number = 1
        self._looks: VisualHeaders = {}

    @torch.no_grad()
    def generate_answer(
        self, model: OneVision, conversation: Conversation, decoding: Decoding, *, streamer: Any = None
    ) -> list[int]:
        """The ids of an answer, without the stop token. Raises `DataError` as encoding and reading visuals do."""
        decoding.require_fitting_length(model.backbone)
        processor = Processor.from_model(model)
        prompt = ChatPrompt.from_conversation(processor, conversation, self._looks)
        self._require_same(model)
        step, codes = self._present_step(model), self._encode_rows(prompt)
        kept = self._count_kept_rows(model, codes)
        self._cut(kept)
        rows = encode_visuals(model, processor, [(prompt, prompt.find_visuals_behind(kept))], self._seen)
        x = embed_prompt(model, prompt, rows, kept)
        if streamer is not None:
            streamer.put(torch.empty(1, 0, dtype=torch.int64))  # it takes what is put first for the prompt
        step.store.reserve_slots(len(prompt) + decoding.max_new_tokens)
        logits = prefill_prompts(model.backbone, step.store, x, [len(x)])
        self._codes = codes
        prepare_step(step, decoding.max_new_tokens)
        (ids,) = decode_answers(step, logits, decoding, StopSequences.from_model(model), streamer=streamer)
        self._codes = torch.cat([codes, torch.tensor(ids[: step.store.lengths[0] - len(codes)], dtype=torch.int64)])
        self._trim()
        self._looks = {id(look.visual): look for look in prompt.headers}
        return ids

    def forget_visuals(self) -> None:
        """A visual whose file is gone can be shown no more: the conversation that showed it is over."""
        self._looks = {}

    def clear(self) -> None:
        """Keep nothing."""
        self._step = None
        self._codes = self._codes[:0]
        self._seen.clear()

    def _require_same(self, model: OneVision) -> None:
        """Forget what another model, other weights or another way to run them have made."""
        weights = WeightSnapshot.from_module(model)
        if self._weights is None or not self._weights.is_same_as(weights) or self._router is not model.router:
            self.clear()
        self._weights, self._router = weights, model.router

    def _present_step(self, model: OneVision) -> DecodingStep:
        if self._step is None:
            self._step = DecodingStep(model.backbone, KVCache(1), model.device)
        return self._step

    def _encode_rows(self, prompt: ChatPrompt) -> Tensor:
        """(tokens,) int64, equal where rows are equal: ids of text, and for row i of a visual -(its number + i)."""
        codes = prompt.encoded.input_ids.clone()
        for key, places in zip(prompt.keys, prompt.row_positions, strict=True):
            if key not in self._numbers:
                self._numbers[key] = self._next_number
                self._next_number += len(places)
            codes[places] = -self._numbers[key] - torch.arange(len(places))
        self._numbers = {key: self._numbers[key] for key in prompt.keys}
        return codes

    def _count_kept_rows(self, model: OneVision, codes: Tensor) -> int:
        """How many rows need not be read again; the last row always is, for what it goes on with."""
        if not has_fixed_rope(model.backbone.config):
            return 0
        length = min(len(self._codes), len(codes) - 1)
        (differing,) = torch.nonzero(self._codes[:length] != codes[:length], as_tuple=True)
        return int(differing[0]) if len(differing) else length

    def _cut(self, kept: int) -> None:
        assert self._step is not None
        self._codes = self._codes[:kept]
        self._step.store.truncate_to(kept)

    def _trim(self) -> None:
        assert self._step is not None
        self._step.store.shrink_to_bytes(self._reuse.kv_bytes)
        self._codes = self._codes[: self._step.store.lengths[0]]
