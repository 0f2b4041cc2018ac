"""What is kept between questions: keys and values of the conversation, and visual rows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmblocks.chat.prompts import ChatPrompt, VisualHeaders
from mmblocks.chat.visual_cache import VisualCache, embed_prompt, encode_visuals
from mmblocks.conversation import Conversation
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import ConfigError
from mmblocks.model.generate import Decoding, Result, StopSequences
from mmblocks.model.generation.decoding import Streamer
from mmblocks.model.generation.sampling import make_prompt_key
from mmblocks.model.generation.step import DecodingStep, has_fixed_rope
from mmblocks.model.generation.store import KVCache
from mmblocks.model.generation.weights import WeightSnapshot
from mmblocks.model.generation.writing import decode_answers, prefill_prompts, prepare_step
from mmblocks.model.onevision import OneVision
from mmblocks.settings import list_settings
from mmblocks.tokenizers.router import Router

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


FOLLOW_UP_SLOTS = 256
"""Room for the next questions and answers, so that not the second one already copies all keys and values."""


class ChatCache:
    """The keys, values and visual rows of one conversation. It is valid at any time: after an error, later rows are unused.

    A visual whose file is gone can still be shown, as long as its rows or its header are in the cache. A file that changed
    is read again. A prompt is compared row by row with the rows in the cache; the common beginning is not computed again.
    The cache is cleared when the model has changed (see `WeightSnapshot`).
    """

    def __init__(self, reuse: Reuse) -> None:
        self._reuse = reuse
        self._visuals = VisualCache(reuse.visual_bytes)
        self._weights: WeightSnapshot | None = None
        self._router: Router | None = None
        self._step: DecodingStep | None = None
        self._codes = torch.empty(0, dtype=torch.int64)  # of each row in the store: see `_encode_rows`
        self._numbers: dict[str, int] = {}
        self._next_number = 1
        self._headers: VisualHeaders = {}

    @torch.no_grad()
    def generate_answer(
        self, model: OneVision, conversation: Conversation, decoding: Decoding, *, streamer: Streamer | None = None
    ) -> Result:
        """An answer. Raises `DataError` as encoding and reading visuals do."""
        decoding.require_fitting_length(model.backbone)
        processor = Processor.from_model(model)
        prompt = ChatPrompt.from_conversation(processor, conversation, self._headers)
        if self._weights is None or not self._weights.is_same_for(model) or self._router is not model.router:
            self.clear()
            self._weights, self._router = WeightSnapshot.from_module(model), model.router
        step = self._step = self._step or DecodingStep(model.backbone, KVCache(1), model.device)
        codes, kept = self._encode_rows(prompt), 0
        if has_fixed_rope(model.backbone.config):  # the last row is always computed, for the logits of the answer
            length = min(len(self._codes), len(codes) - 1)
            (differing,) = torch.nonzero(self._codes[:length] != codes[:length], as_tuple=True)
            kept = int(differing[0]) if len(differing) else length
        self._codes = self._codes[:kept]
        step.store.truncate_to(kept)
        rows = encode_visuals(model, processor, [(prompt, prompt.find_visuals_behind(kept))], self._visuals)
        x = embed_prompt(model, prompt, rows, kept)
        if streamer is not None:
            streamer.put(torch.empty(1, 0, dtype=torch.int64))  # a streamer takes its first input for the prompt
        step.store.reserve_slots(len(prompt) + decoding.max_new_tokens, ahead=FOLLOW_UP_SLOTS)
        logits = prefill_prompts(model.backbone, step.store, x, [len(x)])
        self._codes = codes
        prepare_step(step, decoding.max_new_tokens)
        stop = StopSequences.from_model(model, decoding.stop)
        keys = [(make_prompt_key(prompt.encoded.input_ids), 0)]
        (answer,) = decode_answers(step, logits, decoding, stop, keys=keys, streamer=streamer)
        codes = torch.cat([codes, torch.tensor(answer.ids[: step.store.lengths[0] - len(codes)], dtype=torch.int64)])
        step.store.shrink_to_bytes(self._reuse.kv_bytes)
        self._codes = codes[: step.store.lengths[0]]
        self._headers = {id(header.visual): header for header in prompt.headers}
        return stop.make_result(model.backbone, answer, len(prompt))

    def forget_visuals(self) -> None:
        """Forget the headers of visuals, as a new conversation begins: one whose file is gone cannot be shown any more."""
        self._headers = {}

    def clear(self) -> None:
        """Keep nothing."""
        self._step = None
        self._codes = self._codes[:0]
        self._visuals.clear()

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
