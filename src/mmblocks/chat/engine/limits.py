"""How much an engine takes on, and what it has done."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmblocks.errors import ConfigError
from mmblocks.model.checks.limits import count_kv_bytes_per_token
from mmblocks.model.onevision import OneVision
from mmblocks.settings import list_settings

GIB = 1 << 30
CPU_CACHE_BYTES = 2 * GIB
CUDA_CACHE_SHARE = 0.6
"""Of the memory that is free when an engine begins: the rest is for activations and visual rows."""
STEP_TOKENS = {"cpu": 512, "cuda": 2048}


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """How much an engine takes on.

    cache_bytes: for keys and values, on the model's device; None for 2 GiB on a CPU and 60 % of what is free on a GPU.
    max_running: answers that are written at a time. max_queued: questions that wait. step_tokens: rows of prompts in a step,
    512 on a CPU and 2048 on a GPU unless given; fewer delay those who write less. visual_bytes: rows of visuals that were
    seen, for when they are shown again.
    """

    cache_bytes: int | None = None
    max_running: int = 64
    max_queued: int = 256
    step_tokens: int | None = None
    visual_bytes: int = GIB // 2

    def __post_init__(self) -> None:
        for s in list_settings(EngineLimits).values():
            value, lowest = getattr(self, s.name), 0 if s.name == "visual_bytes" else 1
            if s.find_fault(value) or (value is not None and value < lowest):
                raise ConfigError(f"engine: {s.name}={value!r:.40}; write a whole number, {lowest} or more.")

    def count_slots(self, model: OneVision) -> int:
        """The tokens that the cache holds: at most what all running answers could fill."""
        weight = model.backbone.lm.get_input_embeddings().weight
        per_token = count_kv_bytes_per_token(model.backbone.config, weight.element_size()) or weight.shape[1]
        given = self.cache_bytes
        if given is None:
            on_cuda = model.device.type == "cuda"
            given = int(torch.cuda.mem_get_info(model.device)[0] * CUDA_CACHE_SHARE) if on_cuda else CPU_CACHE_BYTES
        slots = min(given // per_token, self.max_running * model.backbone.max_tokens)
        if slots < 1:
            raise ConfigError(f"engine: cache_bytes={given}; one token takes {per_token} bytes, write more.")
        return slots

    def get_step_tokens(self, model: OneVision) -> int:
        """Rows of prompts in a step."""
        return self.step_tokens or STEP_TOKENS.get(model.device.type, STEP_TOKENS["cpu"])


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """What is so now, and counts since the engine began.

    running, queued: answers that are written, questions that wait. used_slots: of the `slots` of the cache, those of running
    answers and those that are kept to be shared. shared_tokens: those of `prompt_tokens` whose keys and values were there.
    visual_hits, visual_misses: visuals whose rows were there, and those that were encoded.
    """

    running: int
    queued: int
    used_slots: int
    slots: int
    steps: int
    prompt_tokens: int
    shared_tokens: int
    answer_tokens: int
    visual_hits: int
    visual_misses: int
