"""Attention of packed sequences to keys that lie in spans of a pool."""

from itertools import pairwise

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmblocks.errors import ConfigError
from mmblocks.ops.attention import SPANS_OP, spans, varlen
from mmblocks.ops.attention.spans import SeenSpans, SpansCall
from mmblocks.ops.choice import use_backends

SLOTS = 96
SEQUENCES = {
    "one token": ([1], [40], [17]),
    "tokens of several answers": ([1, 1, 1], [60, 3, 20], [30, 1, 9]),
    "a prompt": ([12], [5], [12]),
    "a part of a prompt": ([7], [30], [25]),
    "prompts beside answers": ([1, 9, 1, 4, 6], [0, 20, 50, 60, 80], [20, 9, 7, 20, 6]),
    "no query": ([0, 3, 0], [0, 10, 50], [8, 30, 2]),
}
SETTINGS = [{}, {"window": 5}, {"softcap": 2.0}, {"sinks": torch.tensor([0.5, -1.0, 2.0, 0.0])}, {"window": 99}]


def make_call(name, heads=(4, 2), widths=(16, 16), device="cpu", dtype=torch.float32, **settings):
    counts, begins, lengths = SEQUENCES[name]
    generator = torch.Generator().manual_seed(sum(lengths))
    shapes = [(sum(counts), heads[0], widths[0]), (SLOTS, heads[1], widths[0]), (SLOTS, heads[1], widths[1])]
    q, k, v = (torch.randn(*shape, generator=generator).to(device, dtype) for shape in shapes)
    return SpansCall(q, k, v, SeenSpans(counts, begins, lengths), 0.3, **settings)


def attend_one_by_one(call):
    """In float64, each query to the keys that it sees and no others."""
    rows = []
    for (first, end), begin, length in zip(
        pairwise(call.seen.ends_q), call.seen.begins, call.seen.lengths, strict=True
    ):
        for row in range(first, end):
            stop = begin + length - (end - 1 - row)
            start = begin if call.window is None else max(begin, stop - call.window)
            q, k, v = call.q[row].double()[:, None], *(x[start:stop].double().transpose(0, 1) for x in (call.k, call.v))
            k, v = (x.repeat_interleave(len(q) // len(x), 0) for x in (k, v))
            scores = q @ k.transpose(1, 2) * call.scale
            if call.softcap is not None:
                scores = (scores / call.softcap).tanh() * call.softcap
            if call.sinks is not None:
                scores = torch.cat([scores, call.sinks.double().view(-1, 1, 1)], -1)
            rows.append((scores.softmax(-1)[..., : k.shape[1]] @ v).squeeze(1))
    return torch.stack(rows)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("heads", [(4, 2), (4, 4), (4, 1)], ids=str)
@pytest.mark.parametrize("name", SEQUENCES)
def test_each_query_sees_the_keys_of_its_span_up_to_its_own(name, heads, settings):
    call = make_call(name, heads, **settings)
    torch.testing.assert_close(SPANS_OP(call).double(), attend_one_by_one(call), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SEQUENCES)
def test_values_may_be_wider_than_keys(name):
    call = make_call(name, widths=(16, 24))
    torch.testing.assert_close(SPANS_OP(call).double(), attend_one_by_one(call), rtol=0, atol=1e-6)


@pytest.mark.parametrize("longest", [0, 9, 20])
@pytest.mark.parametrize("window", [None, 5])
def test_long_sequences_are_not_copied_and_give_the_same(longest, window, monkeypatch):
    monkeypatch.setattr(spans, "_find_longest_gathered", lambda call: longest)
    call = make_call("tokens of several answers", window=window)
    short = call.seen.get_short_spans(longest, window, call.q)
    assert (None if short is None else sorted(short.sequences)) == {0: None, 9: [1, 2], 20: [1, 2]}[longest]
    torch.testing.assert_close(SPANS_OP(call).double(), attend_one_by_one(call), rtol=0, atol=1e-6)


def test_the_last_rows_of_some_sequences_see_what_they_saw():
    call = make_call("prompts beside answers")
    some = (1, 1, 0, 0, 1)
    last = [end - 1 for end, wanted in zip(call.seen.ends_q[1:], some, strict=True) if wanted]
    fewer = SpansCall(call.q[last], call.k, call.v, call.seen.select_last_rows(some), call.scale)
    torch.testing.assert_close(SPANS_OP(fewer), SPANS_OP(call)[last], rtol=0, atol=1e-6)


def test_slots_outside_of_the_spans_are_not_read():
    call = make_call("prompts beside answers")
    inside = {slot for b, n in zip(call.seen.begins, call.seen.lengths, strict=True) for slot in range(b, b + n)}
    want = SPANS_OP(call)
    outside = [slot for slot in range(SLOTS) if slot not in inside]
    call.k[outside] = torch.nan
    call.v[outside] = torch.nan
    assert torch.equal(SPANS_OP(call), want)


# torch's FlashAttention -----------------------------------------------------------------------------------------------


def test_the_kernel_is_refused_on_the_cpu():
    with use_backends(spans_attention="varlen"), pytest.raises(ConfigError, match="the tensors are on cpu"):
        SPANS_OP(make_call("one token"))


class Counter(TorchDispatchMode):
    """Calls of the kernel with their arguments, and the names of all operations."""

    def __init__(self):
        super().__init__()
        self.names = []
        self.flash = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        if "_flash_attention_forward" in self.names[-1]:
            self.flash.append((args, kwargs))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("name", SEQUENCES)
def test_on_a_gpu_all_sequences_are_one_call_that_copies_no_keys_and_waits_for_nothing(name, window, monkeypatch):
    monkeypatch.setattr(varlen, "list_unavailable_reasons", list)
    monkeypatch.setattr(varlen, "read_compute_capability", lambda: (9, 0))
    counts, begins, lengths = SEQUENCES[name]
    with FakeTensorMode(), Counter() as counter:
        q, k = (
            torch.empty(n, heads, 64, device="cuda", dtype=torch.bfloat16)
            for n, heads in ((sum(counts), 4), (SLOTS, 2))
        )
        packing = spans.SpanPacking(
            *(torch.empty(n, device="cuda", dtype=torch.int32) for n in (len(counts) + 1, len(counts) + 1, len(counts)))
        )
        seen = SeenSpans(counts, begins, lengths)
        seen._packings[k.device] = packing  # pinned memory needs a real GPU
        counter.names.clear()
        out = SPANS_OP(SpansCall(q, k, k, seen, 0.1, window))
    assert (out.shape, out.device.type) == (q.shape, "cuda")
    ((args, kwargs),) = counter.flash
    assert args[1] is k
    assert (args[3], args[4], kwargs["seqused_k"]) == (packing.ends_q, packing.begins_k, packing.lengths)
    assert args[5:7] == (max(counts), max(lengths))
    assert args[8] is (max(counts) > 1)  # single queries are the last of their keys
    assert "aten::_local_scalar_dense" not in counter.names


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("heads", [(4, 2), (4, 4), (14, 2)], ids=str)
@pytest.mark.parametrize("name", [name for name in SEQUENCES if name != "no query"])
def test_the_kernel_gives_what_the_reference_gives(name, heads, window):
    call = make_call(name, heads, widths=(64, 64), device="cuda", dtype=torch.bfloat16, window=window)
    assert spans.reasons_against_varlen(call) == []
    want = attend_one_by_one(call)
    got = spans.attend_by_varlen(call)
    tolerance = varlen.TOLERANCES[torch.bfloat16] * want.abs().max().item()
    torch.testing.assert_close(got.double(), want, rtol=0, atol=tolerance)
