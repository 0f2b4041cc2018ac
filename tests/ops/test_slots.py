"""Attention of one row of each sequence to the slots of a cache."""

from itertools import product

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmblocks.errors import ConfigError
from mmblocks.ops.attention import SLOTS_OP, slots, varlen
from mmblocks.ops.attention.slots import SeenSlots, SlotsCall
from mmblocks.ops.choice import use_backends

CAPACITY = 24


def make_call(
    positions, heads=(4, 2), visible=CAPACITY, widths=(16, 16), device="cpu", dtype=torch.float32, **settings
):
    generator = torch.Generator().manual_seed(sum(positions))
    n, (of_queries, of_keys) = len(positions), heads
    q = torch.randn(n, of_queries, 1, widths[0], generator=generator).to(device, dtype)
    k, v = (
        torch.randn(n, CAPACITY, of_keys, width, generator=generator).to(device, dtype).transpose(1, 2)[:, :, :visible]
        for width in widths
    )
    seen = SeenSlots(torch.tensor(positions, device=device), visible, alike={*positions} == {visible - 1})
    return SlotsCall(q, k, v, seen, 0.3, **settings)


def attend_one_by_one(call, positions):
    """In float64, each row to the slots that it sees and no others."""
    rows = []
    for i, position in enumerate(positions):
        begin = 0 if call.window is None else max(0, position - call.window + 1)
        q, k, v = call.q[i].double(), *(x[i, :, begin : position + 1].double() for x in (call.k, call.v))
        k, v = (x.repeat_interleave(len(q) // len(x), 0) for x in (k, v))
        scores = q @ k.transpose(1, 2) * call.scale
        if call.softcap is not None:
            scores = (scores / call.softcap).tanh() * call.softcap
        if call.sinks is not None:
            scores = torch.cat([scores, call.sinks.double().view(-1, 1, 1)], -1)
        rows.append(scores.softmax(-1)[..., : k.shape[1]] @ v)
    return torch.stack(rows)


SETTINGS = [{}, {"window": 5}, {"softcap": 2.0}, {"sinks": torch.tensor([0.5, -1.0, 2.0, 0.0])}, {"window": 99}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("heads", [(4, 2), (4, 4), (4, 1)], ids=str)
@pytest.mark.parametrize("positions", [[23], [7], [4, 23, 0], [9, 9], [23, 23]], ids=str)
def test_each_row_sees_the_slots_up_to_its_own(positions, heads, settings):
    for visible in {max(positions) + 1, CAPACITY}:
        call = make_call(positions, heads, visible, **settings)
        got, want = SLOTS_OP(call), attend_one_by_one(call, positions)
        torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-6)


def test_values_may_be_wider_than_keys():
    call = make_call([4, 11], widths=(16, 24))
    torch.testing.assert_close(SLOTS_OP(call).double(), attend_one_by_one(call, [4, 11]), rtol=0, atol=1e-6)


def test_masks_are_made_once_and_only_where_something_is_hidden():
    seen = SeenSlots(torch.tensor([4, 1]), 6, alike=False)
    assert seen.get_mask(None).int().squeeze().tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]]
    assert seen.get_mask(3).int().squeeze().tolist() == [[0, 0, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]]
    assert seen.get_mask(6) is seen.get_mask(None)
    alike = SeenSlots(torch.tensor([5, 5]), 6, alike=True)
    assert alike.get_mask(None) is alike.get_mask(6) is None
    assert alike.get_mask(2).int().squeeze().tolist() == [[0, 0, 0, 0, 1, 1]] * 2


# Kernels for packed sequences -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", [[23], [4, 22, 0]], ids=str)
@pytest.mark.parametrize("visible", [23, CAPACITY])
def test_slots_are_packed_keys_without_a_copy(positions, visible):
    call = make_call([min(p, visible - 1) for p in positions], visible=visible)
    packed, packing = call.to_packed_call(), call.seen.get_packing(call.distance)
    assert packed.k.untyped_storage().data_ptr() == call.k.untyped_storage().data_ptr()
    for i, (begin, length) in enumerate(zip(packing.begins_k.tolist(), packing.lengths.tolist(), strict=False)):
        torch.testing.assert_close(packed.k[begin : begin + length], call.k[i, :, :length].transpose(0, 1))
        torch.testing.assert_close(packed.v[begin : begin + length], call.v[i, :, :length].transpose(0, 1))
    assert packing.ends_q.tolist() == [*range(len(positions) + 1)]


def test_another_layout_is_a_reason_against_the_kernel():
    call = make_call([3, 5])
    heads_first = SlotsCall(call.q, call.k.contiguous(), call.v.contiguous(), call.seen, 0.3)
    assert slots.reasons_against_varlen(heads_first) == ["the heads of a slot do not adjoin in memory"]
    with use_backends(slots_attention="varlen"), pytest.raises(ConfigError, match="the tensors are on cpu"):
        SLOTS_OP(call)


class Counter(TorchDispatchMode):
    """The names of all operations, and the bytes of the largest tensor that each makes anew."""

    def __init__(self):
        super().__init__()
        self.names = []
        self.made = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        self.names.append(name)
        if isinstance(out, torch.Tensor) and not func.is_view:
            self.made[name] = max(self.made.get(name, 0), out.numel() * out.element_size())
        return out


@pytest.fixture
def has_flash(monkeypatch):
    """A machine with FlashAttention, for fake tensors."""
    monkeypatch.setattr(varlen, "list_unavailable_reasons", list)
    monkeypatch.setattr(varlen, "read_compute_capability", lambda: (9, 0))


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("heads", [(4, 2), (4, 4)], ids=str)
def test_on_a_gpu_the_cache_is_read_once_and_neither_copied_nor_masked(heads, window, has_flash):
    with FakeTensorMode(), Counter() as counter:
        call = make_call([4, 22, 0], heads, device="cuda:0", dtype=torch.bfloat16, window=window)
        counter.names.clear()
        counter.made.clear()
        out = SLOTS_OP(call)
    assert (out.shape, out.device.type) == ((3, 4, 1, 16), "cuda")
    assert counter.names.count("aten::_flash_attention_forward") == 1
    assert "aten::_local_scalar_dense" not in counter.names
    made = max(size for name, size in counter.made.items() if name != "aten::_flash_attention_forward")
    assert made <= 24  # numbers of three sequences


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("heads", "window", "positions"),
    [*product([(4, 2), (4, 4), (14, 2)], [None, 7], [[23], [4, 22, 0], [9, 9]])],
    ids=str,
)
def test_the_kernel_gives_what_the_reference_gives(heads, window, positions):
    call = make_call(positions, heads, widths=(64, 64), device="cuda", dtype=torch.bfloat16, window=window)
    assert slots.reasons_against_varlen(call) == []
    want = attend_one_by_one(call, positions)
    got = slots.attend_by_varlen(call)
    torch.testing.assert_close(
        got.double(), want, rtol=0, atol=varlen.TOLERANCES[torch.bfloat16] * want.abs().max().item()
    )
