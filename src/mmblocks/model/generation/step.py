"""One decoding step for every sequence, on buffers with fixed addresses, captured as a CUDA graph where possible."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mmblocks.backbones.family_config import count_experts
from mmblocks.compat import find_cache_keyword
from mmblocks.model.generation.drawing import TokenDrawer
from mmblocks.model.generation.sampling import SamplingRule
from mmblocks.model.generation.store import KVCache
from mmblocks.model.generation.weights import TensorAddresses
from mmblocks.ops.attention.slots import SeenSlots
from mmblocks.ops.graphs import capture_cuda_graph

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from mmblocks.backbones.causal_lm import CausalLM

log = logging.getLogger(__name__)
BUCKET_SLOTS = 256  # caches on CUDA have a multiple of this many slots, so that a captured step serves many prompts
MIN_CAPTURE_TOKENS = 8  # capturing a step costs about as much as running it this often
MAX_IDLE_BYTES = 1 << 30
MAX_IDLE_STEPS = 4


class DecodingStep:
    """The logits of every sequence's next token.

    ids: (sequences,) int64, the tokens drawn last, which whoever draws them writes here. A sequence that has ended is
    computed too. positions: (sequences,) int64, of these tokens.
    """

    def __init__(self, backbone: CausalLM, store: KVCache, device: torch.device) -> None:
        self.backbone = backbone
        self.store = store
        self.ids = torch.zeros(len(store.lengths), dtype=torch.int64, device=device)
        self.positions = torch.zeros_like(self.ids)
        self._placed: list[int] = []  # the lengths that `positions` holds
        self._graph: StepGraph | None = None
        self._drawer: TokenDrawer | None = None

    def __call__(self) -> Tensor:
        """(sequences, vocabulary), after the tokens of `ids`. A captured step overwrites it the next time."""
        self._place_rows()
        self._placed = []
        if self._graph is not None:
            logits = self._graph.replay_step()
        else:
            longest = max(self.store.lengths)
            logits = self.compute_logits(longest + 1, alike=min(self.store.lengths) == longest)
        self.store.advance_lengths()
        self._placed = self.store.lengths
        return logits

    @property
    def has_graph(self) -> bool:
        """Whether logits are always in one place."""
        return self._graph is not None

    @property
    def is_captured(self) -> bool:
        """Whether there is a CUDA graph of the present buffers and weights."""
        return self._graph is not None and self._graph.is_valid_for(self.backbone, self.store)

    def capture_graph(self) -> None:
        """Capture the step for the cache's present buffers, unless that has been done."""
        if not self.is_captured:
            self._place_rows()
            self._graph = StepGraph(self)
            self._placed = []

    def release_graph(self) -> None:
        """Run uncaptured from now on."""
        self._graph = None

    def get_drawer(self, rule: SamplingRule) -> TokenDrawer:
        """What draws the tokens of `ids`, made once for a rule."""
        if self._drawer is None or not self._drawer.is_valid_for(rule, self.store.capacity):
            self._drawer = TokenDrawer(self.backbone, rule, self.ids, self.store.capacity)
        return self._drawer

    def compute_logits(self, visible: int, *, alike: bool) -> Tensor:
        """(sequences, vocabulary) with the first `visible` slots in view; positions grow. alike: all are visible - 1."""
        seen = SeenSlots(self.positions, visible, alike=alike)
        x = self.backbone.embed_tokens(self.ids)
        decoder = self.backbone.lm.get_decoder()
        with self.store.place_step_rows(self.positions, visible):
            states = decoder(
                inputs_embeds=x.unsqueeze(1),
                position_ids=self.positions.unsqueeze(1),
                attention_mask=torch.empty(1, 1, 0, 0, dtype=torch.bool, device=x.device),  # see `seen_slots`
                seen_slots=seen,
                use_cache=False,
                **{find_cache_keyword(decoder): self.store},
            )
        self.positions += 1
        return self.backbone.compute_logits(states.last_hidden_state.squeeze(1).to(x.device))

    def _place_rows(self) -> None:
        """Each sequence's next row behind those that the cache holds. The host only copies where they lie elsewhere."""
        if self._placed != self.store.lengths:
            self.positions.copy_(torch.tensor(self.store.lengths))
            self._placed = self.store.lengths


class StepGraph:
    """A CUDA graph of one step over all slots of a store, valid for its buffers and the model's present weights."""

    def __init__(self, step: DecodingStep) -> None:
        self._capacity = step.store.capacity
        self._addresses = TensorAddresses.from_module(step.backbone)

        def run_step() -> Tensor:
            return step.compute_logits(self._capacity, alike=False)

        self._graph, self._logits = capture_cuda_graph(run_step, warm_ups=2)

    def is_valid_for(self, backbone: CausalLM, store: KVCache) -> bool:
        return store.capacity == self._capacity and self._addresses.is_same_for(backbone)

    def replay_step(self) -> Tensor:
        self._graph.replay()
        return self._logits


def reasons_against_capture(backbone: CausalLM, device: torch.device, max_new_tokens: int) -> list[str]:
    """Why a step cannot be captured as a CUDA graph; empty where it can."""
    config, experts = backbone.config, count_experts(backbone.config)
    has_autocast = torch.is_autocast_enabled(device.type)
    reasons = {
        f"tensors are on {device.type}, and graphs need CUDA": device.type != "cuda",
        "the layers are on several devices": len(backbone.devices) > 1,
        f"{max_new_tokens} tokens are written faster than a graph is captured": max_new_tokens < MIN_CAPTURE_TOKENS,
        f"{config.model_type!r} chooses among {experts} experts on the host": experts > 0,
        f"{config.model_type!r} has rotary settings that depend on the positions' values": not has_fixed_rope(config),
        "autocast keeps copies of the weights, whose changes a graph would not see": has_autocast,
        "the model is in training mode": backbone.lm.training,
    }
    return [reason for reason, holds in reasons.items() if holds]


def has_fixed_rope(config: PreTrainedConfig) -> bool:
    """Whether the encoding of a position does not depend on the length of the text."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    return not any(kind.get("rope_type") in ("dynamic", "longrope") for kind in kinds)


# Idle steps ---------------------------------------------------------------------------------------------------------

_StepKey = tuple[int, int, torch.device, bool]
_idle_steps: WeakKeyDictionary[Any, OrderedDict[_StepKey, DecodingStep]] = WeakKeyDictionary()


def acquire_step(backbone: CausalLM, sequences: int, slots: int, device: torch.device) -> DecodingStep:
    """A step on an empty cache with `slots` slots for each sequence, an idle one where one fits (CUDA)."""
    capacity = -(-slots // BUCKET_SLOTS) * BUCKET_SLOTS if device.type == "cuda" else slots
    key = (sequences, capacity, device, torch.is_inference_mode_enabled())
    idle = _idle_steps.get(backbone.lm, OrderedDict()).pop(key, None)
    if idle is not None and idle.is_captured:
        return idle
    step = DecodingStep(backbone, KVCache(sequences), device)
    step.store.reserve_slots(capacity)
    return step


def release_step(step: DecodingStep) -> None:
    """Keep a captured step and its cache for the next answers; the oldest are dropped when they take too much memory."""
    if not step.is_captured:
        return
    store = step.store
    store.truncate_to(0)
    idle = _idle_steps.setdefault(step.backbone.lm, OrderedDict())
    idle[len(store.lengths), store.capacity, step.ids.device, torch.is_inference_mode_enabled()] = step
    while (
        len(idle) > MAX_IDLE_STEPS or sum(s.store.slot_bytes * s.store.capacity for s in idle.values()) > MAX_IDLE_BYTES
    ):
        idle.popitem(last=False)
