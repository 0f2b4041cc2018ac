"""One token of every sequence: the decoder and the head on buffers that stay where they are, captured on CUDA."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mmblocks.compat import find_cache_keyword
from mmblocks.model.generation.store import KVCache
from mmblocks.model.generation.weights import TensorAddresses

log = logging.getLogger(__name__)
BUCKET = 256  # slots; stores on CUDA have a multiple of this many, so that a captured step serves many prompts
MIN_CAPTURE_TOKENS = 8  # tokens; capturing a step costs about as much as running it this often
MAX_IDLE_BYTES = 1 << 30
MAX_IDLE_STEPS = 4


class DecodingStep:
    """The logits of every sequence's next token.

    ids, positions: (sequences,) int64, what was written last and where it goes. A sequence that has ended runs along
    and stays where it is.
    """

    def __init__(self, backbone: Any, store: KVCache, device: torch.device) -> None:
        self.backbone = backbone
        self.store = store
        self.ids = torch.zeros(len(store.lengths), dtype=torch.int64, device=device)
        self.positions = torch.zeros_like(self.ids)
        self._captured: _StepGraph | None = None

    def __call__(self, ids: Tensor, going: Sequence[bool]) -> Tensor:
        """(sequences, vocabulary). `going` are the sequences that `ids` extend."""
        self.ids.copy_(ids)
        self.positions.copy_(torch.tensor(self.store.lengths))
        captured = self._captured
        logits = self._uncaptured() if captured is None else captured.replay_step()
        self.store.advance_lengths(going)
        return logits

    @property
    def is_captured(self) -> bool:
        """Whether there is a recording, and it is one of the present buffers and weights."""
        return self._captured is not None and self._captured.is_valid_for(self.backbone, self.store)

    def capture_graph(self) -> None:
        """Record the step as it is for the store's present buffers, unless that has been done."""
        if not self.is_captured:
            self.positions.copy_(torch.tensor(self.store.lengths))
            self._captured = _StepGraph(self)

    def release_graph(self) -> None:
        """Run uncaptured from now on."""
        self._captured = None

    def _uncaptured(self) -> Tensor:
        longest = max(self.store.lengths)
        return self._compute_logits(longest + 1, alike=min(self.store.lengths) == longest)

    def _compute_logits(self, visible: int, *, alike: bool) -> Tensor:
        seen = VisibleSlots(self.positions, visible, alike=alike)
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
        return self.backbone.compute_logits(states.last_hidden_state.squeeze(1))


class VisibleSlots(dict[int | None, Tensor | None]):
    """By a layer's window (None for all): which of the first `visible` slots a row at `positions` sees.

    Each is (sequences, 1, 1, visible) bool, made when the first layer of that window asks for it, or None where
    every row sees every slot. `alike` says that all positions are visible - 1.
    """

    def __init__(self, positions: Tensor, visible: int, *, alike: bool) -> None:
        self._ago = positions[:, None] - torch.arange(visible, device=positions.device)
        self._visible = visible
        super().__init__({None: None if alike else self._to_attention_mask(self._ago >= 0)})

    def __missing__(self, window: int) -> Tensor | None:
        near = (self._ago >= 0) & (self._ago < window)
        self[window] = self[None] if window >= self._visible else self._to_attention_mask(near)
        return self[window]

    def _to_attention_mask(self, seen: Tensor) -> Tensor:
        return seen[:, None, None]


class _StepGraph:
    """A CUDA graph of one step over all slots of a store, valid for its buffers and the model's present weights."""

    def __init__(self, step: DecodingStep) -> None:
        self._capacity = step.store.capacity
        self._places = TensorAddresses.from_module(step.backbone)

        def run_step() -> Tensor:
            return step._compute_logits(self._capacity, alike=False)

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries make their workspaces and plans outside the graph
            for _ in range(2):
                run_step()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._logits = run_step()

    def is_valid_for(self, backbone: Any, store: KVCache) -> bool:
        return store.capacity == self._capacity and self._places == TensorAddresses.from_module(backbone)

    def replay_step(self) -> Tensor:
        self._graph.replay()
        return self._logits


def reasons_against_capture(backbone: Any, device: torch.device, max_new_tokens: int) -> list[str]:
    """Why a step is run as it is; empty where it can be captured."""
    config = backbone.config
    experts = max((getattr(config, n, None) or 0) for n in ("num_experts", "num_local_experts", "n_routed_experts"))
    reasons = {
        f"tensors are on {device.type}, graphs are CUDA's": device.type != "cuda",
        f"{max_new_tokens} tokens are written faster than a graph is made": max_new_tokens < MIN_CAPTURE_TOKENS,
        f"{config.model_type!r} chooses among {experts} experts on the host": experts > 0,
        f"{config.model_type!r} turns positions by a rule that looks at their values": not has_fixed_rope(config),
        "autocast keeps copies of the weights, which a graph would not see change": torch.is_autocast_enabled(
            device.type
        ),
        "the model is in training mode": backbone.lm.training,
    }
    return [reason for reason, holds in reasons.items() if holds]


def has_fixed_rope(config: Any) -> bool:
    """Whether a position is always encoded the same way, however long its text is."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    return not any(kind.get("rope_type") in ("dynamic", "longrope") for kind in kinds)


# Steps at hand --------------------------------------------------------------------------------------------------------

_StepKey = tuple[int, int, torch.device, bool]
_idle_steps: WeakKeyDictionary[Any, OrderedDict[_StepKey, DecodingStep]] = WeakKeyDictionary()


def acquire_step(backbone: Any, sequences: int, slots: int, device: torch.device) -> DecodingStep:
    """A step on an empty store with room for `slots` tokens of each sequence, an idle one where one fits (CUDA)."""
    room = -(-slots // BUCKET) * BUCKET if device.type == "cuda" else slots
    key = (sequences, room, device, torch.is_inference_mode_enabled())
    idle = _idle_steps.get(backbone.lm, OrderedDict()).pop(key, None)
    if idle is not None and idle.is_captured:
        return idle
    step = DecodingStep(backbone, KVCache(sequences), device)
    step.store.reserve_slots(room)
    return step


def release_step(step: DecodingStep) -> None:
    """Keep a captured step and its store for the next answers, the oldest leaving when they take too much memory."""
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
