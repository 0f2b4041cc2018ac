"""Attention of one row of each sequence to the slots of a cache, as in decoding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mmblocks.ops.attention import fixed, varlen
from mmblocks.ops.attention.call import PackedCall
from mmblocks.ops.attention.fixed import FixedCall
from mmblocks.ops.attention.reference import compute_scored_attention
from mmblocks.ops.choice import REFERENCE, Backend, Op, accept_all_inputs
from mmblocks.reprs import format_by_shape


class SeenSlots:
    """Which of the first `visible` slots of a cache the row of each sequence sees: those up to its position.

    positions: (sequences,) int64. alike: all positions are visible - 1. What kernels need of them is made for the first layer
    that asks, and kept.
    """

    def __init__(self, positions: Tensor, visible: int, *, alike: bool) -> None:
        self.visible = visible
        self._positions, self._alike = positions, alike
        self._masks: dict[int | None, Tensor | None] = {None: None} if alike else {}
        self._elsewhere: dict[torch.device, SeenSlots] = {}
        self._packings: dict[int, SlotPacking] = {}

    def to(self, device: torch.device) -> SeenSlots:
        """The same for the layers on a device, copied there once."""
        if device == self._positions.device:
            return self
        if device not in self._elsewhere:
            self._elsewhere[device] = SeenSlots(self._positions.to(device), self.visible, alike=self._alike)
        return self._elsewhere[device]

    def get_mask(self, window: int | None) -> Tensor | None:
        """(sequences, 1, 1, visible) bool, True is seen; None where every row sees every slot. window: as of `attend`."""
        window = None if window is None or window >= self.visible else window
        if window not in self._masks:
            behind = (self._positions[:, None] - torch.arange(self.visible, device=self._positions.device))[
                :, None, None
            ]
            self._masks[window] = behind >= 0 if window is None else (behind >= 0) & (behind < window)
        return self._masks[window]

    def get_packing(self, distance: int) -> SlotPacking:
        """The slots as packed keys: `distance` slots from one sequence to the next."""
        if distance not in self._packings:
            numbers = torch.arange(len(self._positions) + 1, dtype=torch.int32, device=self._positions.device)
            self._packings[distance] = SlotPacking(numbers, numbers * distance, (self._positions + 1).to(torch.int32))
        return self._packings[distance]


@dataclass(frozen=True, slots=True)
class SlotPacking:
    """int32. ends_q, begins_k: (sequences + 1,), cumulative; lengths: (sequences,), the slots that each row sees."""

    ends_q: Tensor
    begins_k: Tensor
    lengths: Tensor
    __repr__ = format_by_shape


@dataclass(frozen=True, slots=True)
class SlotsCall:
    """The arguments of attention to slots.

    q: (sequences, heads, 1, d); k: (sequences, kv_heads, visible, d), v: (sequences, kv_heads, visible, value_dim), views of
    a cache.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    seen: SeenSlots
    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    __repr__ = format_by_shape

    @property
    def distance(self) -> int | None:
        """How many slots lie from one sequence to the next in memory, None where a slot's heads do not adjoin."""
        of_keys, of_values = (_find_distance(x) for x in (self.k, self.v))
        return of_keys if of_keys == of_values else None

    def to_packed_call(self) -> PackedCall:
        """The call of a kernel for packed sequences, whose keys are all slots of all sequences end to end."""
        distance = self.distance
        assert distance is not None
        packing = self.seen.get_packing(distance)
        return PackedCall(
            self.q.squeeze(2),
            _flatten_slots(self.k, distance),
            _flatten_slots(self.v, distance),
            packing.ends_q,
            packing.begins_k,
            1,
            self.seen.visible,
            causal=True,
            scale=self.scale,
            window=self.window,
            softcap=self.softcap,
            sinks=self.sinks,
        )


def _find_distance(x: Tensor) -> int | None:
    slots = x.transpose(1, 2)
    adjoining = slots.stride()[2:] == (x.shape[3], 1) and slots.stride(1) == x.shape[1] * x.shape[3]
    return slots.stride(0) // slots.stride(1) if adjoining and not slots.stride(0) % slots.stride(1) else None


def _flatten_slots(x: Tensor, distance: int) -> Tensor:
    """(sequences, heads, visible, d) to (slots, heads, d) from the first slot to the last that is visible; a view."""
    slots = x.transpose(1, 2)
    return slots.as_strided(((len(x) - 1) * distance + x.shape[2], *slots.shape[2:]), slots.stride()[1:])


# torch's FlashAttention ---------------------------------------------------------------------------------------------


def reasons_against_varlen(call: SlotsCall) -> list[str]:
    """Why `attend_by_varlen` cannot take a call."""
    if call.distance is None:
        return ["the heads of a slot do not adjoin in memory"]
    return varlen.reasons_against(call.to_packed_call())


def attend_by_varlen(call: SlotsCall) -> Tensor:
    """The slots that a row sees, and no others, are read."""
    packing = call.seen.get_packing(call.distance or 0)
    return varlen.attend_shortened(call.to_packed_call(), packing.lengths).unsqueeze(2)


# By a mask ----------------------------------------------------------------------------------------------------------


def attend_by_mask(call: SlotsCall) -> Tensor:
    """(sequences, heads, 1, value_dim). The heads of a group are the rows of one head, so keys are not repeated for them."""
    mask = call.seen.get_mask(call.window)
    if call.softcap is not None or call.sinks is not None:
        return compute_scored_attention(call.q, call.k, call.v, mask, call.scale, call.softcap, call.sinks)
    q = call.q.squeeze(2).unflatten(1, (call.k.shape[1], -1))

    def run_sdpa() -> Tensor:
        return F.scaled_dot_product_attention(q, call.k, call.v, attn_mask=mask, scale=call.scale)

    if q.is_cuda:
        out = fixed.OP(FixedCall(run_sdpa, q, call.k, mask is not None, causal=False, learns=False))
    else:
        out = run_sdpa()
    return out.flatten(1, 2).unsqueeze(2)


OP = Op(
    "slots_attention",
    [
        Backend(
            "varlen",
            attend_by_varlen,
            reasons_against_varlen,
            varlen.list_unavailable_reasons,
            tolerances=varlen.TOLERANCES,
        ),
        Backend(REFERENCE, attend_by_mask, accept_all_inputs),
    ],
)
