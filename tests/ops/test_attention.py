"""Packed attention: a token sees earlier tokens of its own sequence, and nothing else."""

import json
import random
import subprocess
import sys
from collections import Counter
from itertools import accumulate, pairwise, product
from types import SimpleNamespace

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmblocks.batch import Packing, RowIndex
from mmblocks.compat import make_flop_counter
from mmblocks.errors import ConfigError
from mmblocks.ops.attention import (
    FIXED_OP,
    OP,
    ROWS_OP,
    SLOTS_OP,
    SPANS_OP,
    attend,
    attend_rows,
    library,
    make_packing_arguments,
    register,
    with_xformers,
)
from mmblocks.ops.attention.call import PackedCall
from mmblocks.ops.attention.order import OrderKey, order_backends, read_orders
from mmblocks.ops.attention.selftest import run_selftest
from mmblocks.ops.attention.tune import list_shapes, make_steps, measure_orders, write_orders
from mmblocks.ops.choice import use_backends

LENGTHS = [[1], [5, 9, 3], [8] * 4, [1, 64]]
MASKS = [(True, None), (False, None), (True, 3)]


def dense(q, k, v, lengths, *, causal, scale, window=None, softcap=None, sinks=None, cached=None):
    """The same written with one big mask and float64. `cached` keys of each sequence come before its tokens' own."""
    cached = cached or [0] * len(lengths)
    key_lengths = [n + before for n, before in zip(lengths, cached, strict=True)]
    segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    key_segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(key_lengths))
    place = torch.cat([torch.arange(before, before + n) for n, before in zip(lengths, cached, strict=True)])
    key_place = torch.cat([torch.arange(n) for n in key_lengths])
    allowed = segment[:, None] == key_segment[None, :]
    behind = place[:, None] - key_place[None, :]
    if causal:
        allowed &= behind >= 0
    if window:
        allowed &= behind < window
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.double(), k.double()) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    exponentials = scores.masked_fill(~allowed, -torch.inf).exp()
    total = exponentials.sum(-1, keepdim=True) + (0 if sinks is None else sinks.double().exp()[:, None, None])
    return torch.einsum("hqk,khd->qhd", exponentials / total, v.double())


def drawn(tokens, keys, heads=4, kv_heads=2, dim=8, value_dim=None, **kind):
    """Random queries, keys and values that want gradients."""
    shapes = [(tokens, heads, dim), (keys, kv_heads, dim), (keys, kv_heads, value_dim or dim)]
    return [torch.randn(*shape, **kind).requires_grad_() for shape in shapes]


def assert_same_with_gradients(got, want, inputs, **tolerance):
    """Equal values, and equal gradients of the inputs when the same is pulled at both."""
    pulled = torch.randn_like(want)
    torch.testing.assert_close(got, want.to(got), **tolerance)
    ours = torch.autograd.grad(got, inputs, pulled.to(got))
    theirs = torch.autograd.grad(want, inputs, pulled)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, **tolerance)


# What it computes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("causal", "window"), MASKS)
def test_it_attends_as_one_big_masked_softmax_does(lengths, kv_heads, causal, window):
    inputs = drawn(sum(lengths), sum(lengths), kv_heads=kv_heads)
    got = attend(*inputs, Packing.from_lengths(lengths), causal=causal, scale=0.3, window=window)
    want = dense(*inputs, lengths, causal=causal, scale=0.3, window=window)
    assert_same_with_gradients(got, want, inputs, rtol=1e-5, atol=2e-6)  # fp32 sums in another order than float64


@pytest.mark.parametrize("cached", [[0, 0, 0], [4, 0, 7], [1, 100, 1]])
@pytest.mark.parametrize(("causal", "window"), MASKS)
def test_the_last_query_of_a_sequence_stands_at_its_last_key(cached, causal, window):
    lengths = [5, 1, 3]
    keys = [n + before for n, before in zip(lengths, cached, strict=True)]
    inputs = drawn(sum(lengths), sum(keys))
    got = attend(
        *inputs, Packing.from_lengths(lengths), keys=Packing.from_lengths(keys), causal=causal, scale=0.3, window=window
    )
    want = dense(*inputs, lengths, cached=cached, causal=causal, scale=0.3, window=window)
    assert_same_with_gradients(got, want, inputs, rtol=1e-5, atol=2e-6)  # fp32 sums in another order than float64


@pytest.mark.parametrize(("causal", "window"), MASKS)
def test_values_may_be_of_another_width_than_keys(causal, window):
    inputs = drawn(17, 17, value_dim=6)
    got = attend(*inputs, Packing.from_lengths([5, 9, 3]), causal=causal, scale=0.3, window=window)
    want = dense(*inputs, [5, 9, 3], causal=causal, scale=0.3, window=window)
    assert_same_with_gradients(got, want, inputs, rtol=1e-5, atol=2e-6)  # fp32 sums in another order than float64


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
@pytest.mark.parametrize("dim", [64, 72])
def test_halves_are_exact_to_some_roundings(dtype, tolerance, dim):
    inputs = drawn(120, 120, dim=dim, dtype=dtype)
    got = attend(*inputs, Packing.from_lengths([100, 20]), causal=True, scale=0.1)
    want = dense(*inputs, [100, 20], causal=True, scale=0.1)
    assert got.dtype == dtype
    assert_same_with_gradients(got, want, inputs, rtol=tolerance, atol=tolerance * want.abs().max().item())


@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("sinks", [None, torch.tensor([0.5, -1.0, 2.0, 0.0])])
@pytest.mark.parametrize(("causal", "window"), MASKS)
@pytest.mark.parametrize("cached", [[0, 0, 0], [4, 0, 7]])
def test_caps_and_sinks_are_those_of_one_big_softmax(softcap, sinks, causal, window, cached):
    lengths, settings = [5, 9, 3], {"causal": causal, "window": window, "softcap": softcap, "sinks": sinks}
    keys = [n + before for n, before in zip(lengths, cached, strict=True)]
    inputs = drawn(17, sum(keys))
    got = attend(*inputs, Packing.from_lengths(lengths), keys=Packing.from_lengths(keys), scale=0.7, **settings)
    want = dense(*inputs, lengths, cached=cached, scale=0.7, **settings)
    assert_same_with_gradients(got, want, inputs, rtol=1e-5, atol=5e-6)  # fp32 sums in another order than float64


def test_gradients_agree_with_numbers():
    inputs = drawn(7, 9, dim=4, dtype=torch.float64)
    packing, keys = Packing.from_lengths([3, 4]), Packing.from_lengths([5, 4])
    for settings in ({"causal": True}, {"causal": False}, {"causal": True, "window": 2}):
        run = lambda *x, s=settings: attend(*x, packing, keys=keys, scale=0.5, **s)  # noqa: E731
        assert torch.autograd.gradcheck(run, inputs)


def test_what_one_sequence_holds_never_reaches_another():
    q, k, v = torch.randn(9, 2, 4), torch.randn(9, 2, 4), torch.randn(9, 2, 4)
    packing = Packing.from_lengths([4, 5])
    before = attend(q, k, v, packing, causal=True, scale=0.5)
    q[:4], k[:4], v[:4] = 7.0, -3.0, 100.0
    after = attend(q, k, v, packing, causal=True, scale=0.5)
    assert torch.equal(before[4:], after[4:])


@pytest.mark.parametrize("lengths", [[0], [], [0, 5, 0, 0, 3]])
@pytest.mark.parametrize("softcap", [None, 0.5])
def test_sequences_may_be_empty(lengths, softcap):
    inputs = drawn(sum(lengths), sum(lengths))
    got = attend(*inputs, Packing.from_lengths(lengths), causal=True, scale=0.3, softcap=softcap)
    full = [n for n in lengths if n]
    if full:
        want = dense(*inputs, full, causal=True, scale=0.3, softcap=softcap).float()
        torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-6)  # fp32 sums in another order than float64
    assert got.shape == (sum(lengths), 4, 8)
    assert [g.shape for g in torch.autograd.grad(got.sum(), inputs)] == [x.shape for x in inputs]


def test_under_autocast_it_computes_in_its_type():
    q, k, v = drawn(9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(q, k.bfloat16(), v, Packing.from_lengths([4, 5]), causal=True, scale=0.3)
    assert out.dtype == torch.bfloat16
    assert torch.autograd.grad(out.sum(), q)[0].dtype == torch.float32


# Some rows only -----------------------------------------------------------------------------------------------------

SOME = {
    "the last of each": ([4, 13, 16], (1, 1, 1)),
    "the first of each": ([0, 5, 14], (1, 1, 1)),
    "all": (list(range(17)), (5, 9, 3)),
    "scattered": ([1, 2, 6, 9, 10, 11], (2, 4, 0)),
    "one": ([9], (0, 1, 0)),
    "none": ([], (0, 0, 0)),
}


@pytest.mark.parametrize("way", ["packed", "reference"])
@pytest.mark.parametrize("chosen", SOME)
@pytest.mark.parametrize(
    "settings", [{}, {"window": 3}, {"softcap": 0.5, "window": 3}, {"sinks": torch.tensor([0.5, -1.0, 2.0, 0.0])}]
)
def test_some_rows_are_those_rows_of_all(way, chosen, settings):
    index, counts = SOME[chosen]
    rows = RowIndex(torch.tensor(index, dtype=torch.int64), counts)
    inputs = drawn(17, 17)
    q, k, v = inputs
    with use_backends(rows_attention=way):
        got = attend_rows(q[rows.index], k, v, Packing.from_lengths([5, 9, 3]), rows, scale=0.3, **settings)
    want = dense(*inputs, [5, 9, 3], causal=True, scale=0.3, **settings)[rows.index]
    assert_same_with_gradients(got, want, inputs, rtol=1e-5, atol=5e-6)  # fp32 sums in another order than float64


def draw_rows(seed):
    """Lengths of sequences, and spans of rows in them, far apart or near, long or single, in none or all of a sequence."""
    draw = random.Random(seed)
    lengths = [draw.choice([1, 2, 9, 40, 150]) for _ in range(draw.randint(1, 4))]
    ends = [0, *accumulate(lengths)]
    share, longest = draw.choice([0.02, 0.2, 1.0]), draw.choice([1, 5, 60])
    chosen = set()
    for start in range(ends[-1]):
        if draw.random() < share / longest:
            chosen |= {*range(start, min(start + longest, ends[-1]))}
    index = sorted(chosen)
    counts = tuple(sum(begin <= i < end for i in index) for begin, end in pairwise(ends))
    on_host = draw.choice([(None, None), (tuple(index), tuple(ends))])
    return lengths, RowIndex(torch.tensor(index, dtype=torch.int64), counts, *on_host), draw.choice([None, None, 7])


@pytest.mark.parametrize("way", ["packed", "reference"])
@pytest.mark.parametrize("seed", range(30))
def test_any_rows_are_those_rows_of_all(way, seed):
    lengths, rows, window = draw_rows(seed)
    torch.manual_seed(seed)
    inputs = drawn(sum(lengths), sum(lengths), value_dim=5 if seed % 5 == 0 else None)
    q, k, v = inputs
    with use_backends(rows_attention=way):
        got = attend_rows(q[rows.index], k, v, Packing.from_lengths(lengths), rows, scale=0.3, window=window)
    want = dense(*inputs, lengths, causal=True, scale=0.3, window=window)[rows.index]
    assert_same_with_gradients(got, want, inputs, rtol=1e-5, atol=1e-5)  # fp32 sums in another order than float64


class OperatorCounter(TorchDispatchMode):
    """Counts the calls of each operator."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function.name()] += 1
        return function(*args, **(kwargs or {}))


ROUNDS = {
    # spans of rows by sequence: calls, pairs of a query and a key
    "an answer each": ([[(300, 350)], [(500, 599)]], 1, 50 * 350 + 99 * 599),
    "words between": ([[(300, 320), (325, 350)], []], 1, 50 * 350),
    "two far rounds": ([[(100, 150), (2000, 2050)], [(500, 599)]], 2, 50 * 150 + 50 * 2050 + 99 * 599),
}


@pytest.mark.parametrize("case", ROUNDS)
def test_packed_rows_take_few_calls_and_no_copy_of_keys(case):
    spans, calls, pairs = ROUNDS[case]
    lengths = [2100, 600]
    index = [start + i for start, some in zip([0, 2100], spans, strict=True) for span in some for i in range(*span)]
    counts = tuple(sum(end - begin for begin, end in some) for some in spans)
    rows = RowIndex(torch.tensor(index), counts, tuple(index), (0, 2100, 2700))
    q, k, v = torch.randn(len(index), 8, 8), torch.randn(2700, 1, 8), torch.randn(2700, 1, 8)
    with use_backends(rows_attention="packed"), OperatorCounter() as operators, make_flop_counter() as flops:
        attend_rows(q, k, v, Packing.from_lengths(lengths), rows, scale=0.3)
    assert operators.counts["mmblocks::varlen_attention"] == calls
    assert flops.get_total_flops() == 2 * 8 * pairs * (8 + 8)
    copied_queries = {"an answer each": 0, "words between": 2, "two far rounds": 3}[case]  # and the rows put in order
    assert operators.counts["aten::index_select"] == copied_queries


def test_on_cuda_rows_that_the_host_knows_need_no_value_of_the_device():
    with FakeTensorMode(), use_backends(rows_attention="packed"):  # which raises where a value is asked for
        q, k = (torch.empty(n, heads, 64, device="cuda", dtype=torch.bfloat16) for n, heads in ((5, 4), (17, 2)))
        ends, index = (torch.empty(n, device="cuda", dtype=kind) for n, kind in ((4, torch.int32), (5, torch.int64)))
        rows = RowIndex(index, (2, 3, 0), (1, 4, 6, 8, 9), (0, 5, 14, 17))
        out = attend_rows(q, k, k, Packing(ends, 9), rows, scale=0.1)
    assert (out.shape, out.device.type) == ((5, 4, 64), "cuda")


@pytest.mark.parametrize(("place", "columns"), [(999, 1000), (9, 10)])
def test_a_row_costs_the_keys_that_it_sees(place, columns):
    q, k, v = torch.randn(1, 4, 8), torch.randn(1000, 2, 8), torch.randn(1000, 2, 8)
    with make_flop_counter() as counter:
        attend_rows(q, k, v, Packing.from_lengths([1000]), RowIndex(torch.tensor([place]), (1,)), scale=0.3)
    assert counter.get_total_flops() == 2 * 4 * columns * (8 + 8)


def test_rows_can_be_traced_without_values():
    with torch.device("meta"):
        q, k, v, index = torch.empty(3, 4, 8), torch.empty(17, 2, 8), torch.empty(17, 2, 8), torch.empty(3).long()
    out = attend_rows(q, k, v, Packing.from_lengths([5, 9, 3]), RowIndex(index, (2, 1, 0)), scale=0.3)
    assert (out.shape, out.device.type) == ((3, 4, 8), "meta")


# One op for compilers and counters ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's check looks at gradients of its copies
@pytest.mark.parametrize("keys", [[3, 4], [5, 4]])
@pytest.mark.parametrize("laid", ["by token", "by head"])
def test_the_op_keeps_what_torch_asks_of_ops(keys, laid):
    inputs = drawn(7, sum(keys))
    if laid == "by head":
        inputs = [x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for x in inputs]
    ends = Packing.from_lengths([3, 4]).cu_seqlens, Packing.from_lengths(keys).cu_seqlens
    torch.library.opcheck(
        torch.ops.mmblocks.varlen_attention.default, (*inputs, *ends, 256, 256, True, 0.3, None, True, "")
    )
    torch.library.opcheck(
        torch.ops.mmblocks.varlen_attention.default, (*inputs, *ends, 256, 256, True, 0.3, 2, True, "reference")
    )


def test_a_compiled_function_holds_one_op_and_is_not_compiled_anew_for_another_packing():
    def twice(q, k, v, packing):
        return attend(2 * q, k, v, packing, causal=True, scale=0.3)

    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(twice, fullgraph=True, backend=counter)
    for lengths in ([5, 9, 3], [50, 20], [1, 1, 1, 30, 7], [200]):
        arguments = make_packing_arguments(Packing.from_lengths(lengths), torch.device("cpu"))
        packing = Packing(arguments["cu_seq_lens_q"], arguments["max_length_q"])
        inputs = drawn(sum(lengths), sum(lengths))
        for tensor in (*inputs, packing.cu_seqlens):
            torch._dynamo.mark_dynamic(tensor, 0)
        want = dense(2 * inputs[0], *inputs[1:], lengths, causal=True, scale=0.3)
        assert_same_with_gradients(
            compiled(*inputs, packing), want, inputs, rtol=1e-5, atol=1e-5
        )  # as above, q doubled
    ours = [node.target for node in counter.graphs[0].graph.nodes if "mmblocks" in str(node.target)]
    assert ours == [torch.ops.mmblocks.varlen_attention.default]
    assert len(counter.graphs) == 1


def counted(run):
    library.register_flops()
    with make_flop_counter() as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_flops_are_those_that_torch_counts_for_each_sequence(device):
    lengths, keys = [5, 9, 3], [7, 9, 4]
    inputs = [torch.empty_like(x, device=device, requires_grad=True) for x in drawn(17, 20, value_dim=8)]
    packings = {"keys": Packing.from_lengths(keys), "causal": True, "scale": 0.3}
    got = counted(lambda: attend(*inputs, Packing.from_lengths(lengths), **packings).sum().backward())

    def theirs():
        for n, m in zip(lengths, keys, strict=True):
            q, k, v = (torch.randn(1, 4, rows, 8, requires_grad=True) for rows in (n, m, m))
            F.scaled_dot_product_attention(q, k, v).sum().backward()

    assert got == counted(theirs)


def test_flops_without_lengths_are_those_of_the_longest():
    with torch.device("meta"):
        q, k, v = torch.empty(17, 4, 8), torch.empty(17, 2, 8), torch.empty(17, 2, 8)
    packing = Packing(torch.empty(4, dtype=torch.int32, device="meta"), 9)
    longest = library.round_up_length(9)
    assert counted(lambda: attend(q, k, v, packing, causal=True, scale=1.0)) == 2 * 4 * 3 * longest**2 * (8 + 8)


def test_longest_lengths_are_rounded_up_but_for_single_queries():
    assert [library.round_up_length(n) for n in (0, 1, 2, 256, 257)] == [0, 1, 256, 256, 512]


# Which way is taken -------------------------------------------------------------------------------------------------


def call_of(**settings):
    q, k, v = (torch.empty(9, heads, 8) for heads in (4, 2, 2))
    ends = Packing.from_lengths([4, 5]).cu_seqlens
    return PackedCall(q, k, v, ends, ends, 5, 5, causal=True, scale=0.3, **settings)


def test_on_the_cpu_the_reference_is_taken():
    assert OP.choose_backend(call_of()).name == "reference"


@pytest.mark.parametrize("way", ["xformers", "varlen"])
def test_a_way_that_cannot_run_says_why_when_it_is_asked_for(way):
    q, k, v = drawn(9, 9)
    message = f"attention: the chosen backend '{way}' cannot run here: it is for CUDA, and the tensors are on cpu"
    with use_backends(attention=way), pytest.raises(ConfigError, match=message):
        attend(q, k, v, Packing.from_lengths([4, 5]), causal=True, scale=0.3)


@pytest.mark.parametrize(
    ("settings", "reason"), [({"softcap": 1.0}, "it has no softcap"), ({"sinks": torch.zeros(4)}, "it has no sinks")]
)
def test_features_that_only_the_reference_has_are_reasons(settings, reason):
    q, k, v = drawn(9, 9)
    with use_backends(attention="xformers"), pytest.raises(ConfigError, match=reason):
        attend(q, k, v, Packing.from_lengths([4, 5]), causal=True, scale=0.3, **settings)


def test_what_is_not_packed_has_a_choice_of_its_own():
    x = torch.randn(1, 2, 5, 8)
    with (
        use_backends(fixed_attention="cudnn"),
        pytest.raises(ConfigError, match="fixed_attention: the chosen backend 'cudnn' cannot run here"),
    ):
        called()(SimpleNamespace(is_causal=False), x, x, x, None)


def test_one_row_of_each_sequence_is_what_the_fast_way_of_rows_takes():
    q, k, v = torch.randn(2, 4, 8), torch.randn(17, 2, 8), torch.randn(17, 2, 8)
    rows = RowIndex(torch.tensor([3, 4]), (2, 0, 0))
    with use_backends(rows_attention="varlen"), pytest.raises(ConfigError, match="it takes one row of each sequence"):
        attend_rows(q, k, v, Packing.from_lengths([5, 9, 3]), rows, scale=0.3)


def test_the_table_has_an_order_for_everything():
    for op, ways in ((OP, OP.backends), (FIXED_OP, FIXED_OP.backends)):
        for capability in (None, (7, 5), (9, 0), (12, 0)):
            for flags in range(8):
                key = OrderKey(op.name, capability, 64 << flags % 3, bool(flags & 1), bool(flags & 2), bool(flags & 4))
                assert set(order_backends(key)) == set(ways)
    assert all(row.source.startswith(("measured: ", "published: ", "not measured: ")) for row in read_orders(None))


def key_of(**settings):
    return OrderKey(
        **{"op": "attention", "capability": (9, 0), "head_dim": 64, "causal": True, "learns": True, "grouped": True}
        | settings
    )


def test_a_measured_table_comes_first(tmp_path, monkeypatch):
    row = {"op": "attention", "order": ["xformers"], "source": "measured: here", "capability": [9, 0], "head_dim": 64}
    path = tmp_path / "table.json"
    path.write_text(json.dumps([row]))
    assert order_backends(key_of())[0].name == "varlen"
    monkeypatch.setenv("MMBLOCKS_ATTENTION_TABLE", str(path))
    assert [backend.name for backend in order_backends(key_of())] == ["xformers", "varlen", "reference"]
    assert order_backends(key_of(head_dim=128))[0].name == "varlen"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "no table can be read there"),
        ("{}", "it holds a dict; write a list of rows"),
        ('[{"op": "attention"}]', "row 1 is .* it needs op, order and source"),
        (
            '[{"op": "attention", "order": ["fa9"], "source": "x"}]',
            "row 1: there is no backend 'fa9'; there are xformers",
        ),
        ('[{"op": "attend", "order": [], "source": "x"}]', "row 1: there is no table for op 'attend'"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, monkeypatch, text, message):
    path = tmp_path / "table.json"
    path.write_text(text)
    monkeypatch.setenv("MMBLOCKS_ATTENTION_TABLE", str(path))
    with pytest.raises(ConfigError, match=message):
        order_backends(key_of())


def test_the_measured_orders_are_a_table_that_attention_reads(tmp_path, monkeypatch):
    device, path = torch.device("cpu"), tmp_path / "orders.json"
    measured = measure_orders(device, tiny=True, repeats=2)
    assert {(shape.op, learns) for shape, learns in measured} == set(
        product(("attention", "fixed_attention"), (False, True))
    )
    write_orders(path, measured, device)
    orders = read_orders(str(path))
    assert len(orders) == len(measured) + len(read_orders(None))
    seconds = next(s for (shape, learns), s in measured.items() if shape.name == "tower" and not learns)
    order = next(row.order for row in orders if row.op == "fixed_attention" and row.head_dim == 72 and not row.learns)
    assert order[0].name == min(seconds, key=lambda name: seconds[name])
    monkeypatch.setenv("MMBLOCKS_ATTENTION_TABLE", str(path))
    key = OrderKey("fixed_attention", None, 72, causal=False, learns=False, grouped=False)
    assert order_backends(key) == order


def test_packed_attention_is_tuned_with_the_backends_that_run_here():
    shape = list_shapes(torch.device("cpu"), tiny=True)[0]
    assert list(make_steps(shape, True, torch.device("cpu"), torch.float32)) == ["reference"]


# The machine --------------------------------------------------------------------------------------------------------


def test_xformers_is_loaded_beside_torch_without_a_word():
    code = """
from mmblocks.ops.attention.with_xformers import reasons_against_library
assert reasons_against_library() == [], reasons_against_library()
import sys
assert "xformers" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_missing_cuda_runtime_is_named_with_its_cure(monkeypatch):
    monkeypatch.setattr(with_xformers, "find_foreign_cuda_major", lambda: 11)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    assert with_xformers.explain_missing_runtime() == (
        "it was built for CUDA 11 and torch for CUDA 13.2; it needs libcudart.so.11 beside that of torch: "
        "pip install nvidia-cuda-runtime-cu11"
    )


def test_every_way_that_runs_here_passes_its_own_test():
    results = list(run_selftest("cpu"))
    assert [result for result in results if not result.is_acceptable] == []
    assert {r.backend for r in results if r.error is not None} == {"packed", "reference"}
    assert {r.op for r in results} == {op.name for op in (OP, ROWS_OP, SLOTS_OP, SPANS_OP, FIXED_OP)}


# transformers -------------------------------------------------------------------------------------------------------


def called():
    from transformers import AttentionInterface

    return AttentionInterface()[register()]


def in_their_layout(*tensors):
    return [x.transpose(0, 1).unsqueeze(0) for x in tensors]


def test_a_model_may_have_more_keys_than_queries():
    q, k, v = drawn(4, 9)
    arguments = make_packing_arguments(Packing.from_lengths([1, 3]), q.device, keys=Packing.from_lengths([3, 6]))
    got, _ = called()(torch.nn.Identity(), *in_their_layout(q, k, v), scaling=0.3, **arguments)
    want = dense(q, k, v, [1, 3], cached=[2, 3], causal=True, scale=0.3).float()
    torch.testing.assert_close(got.squeeze(0), want, rtol=1e-5, atol=2e-6)  # fp32 sums in another order than float64


def test_a_model_may_ask_for_some_rows():
    q, k, v = drawn(9, 9)
    rows = RowIndex(torch.tensor([2, 3, 8]), (2, 1))
    arguments = make_packing_arguments(Packing.from_lengths([4, 5]), q.device)
    got, _ = called()(torch.nn.Identity(), *in_their_layout(q[rows.index], k, v), scaling=0.3, rows=rows, **arguments)
    want = dense(q, k, v, [4, 5], causal=True, scale=0.3)[rows.index].float()
    torch.testing.assert_close(got.squeeze(0), want, rtol=1e-5, atol=2e-6)  # fp32 sums in another order than float64


@pytest.mark.parametrize("causal", [True, False])
def test_without_a_packing_a_model_gets_torchs_own_attention(causal):
    q, k, v = (torch.randn(2, heads, 6, 8) for heads in (4, 2, 2))
    module = SimpleNamespace(is_causal=causal, num_key_value_groups=2)
    got, _ = called()(module, q, k, v, None, scaling=0.3)
    want = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.3, enable_gqa=True)
    assert torch.equal(got, want.transpose(1, 2))


@pytest.mark.parametrize("name", ["position_bias", "block_indices"])
def test_a_keyword_that_would_change_scores_is_never_dropped(name):
    x = torch.randn(1, 2, 5, 8)
    packing = make_packing_arguments(Packing.from_lengths([2, 3]), x.device)
    with pytest.raises(NotImplementedError, match=f"packed attention does not support {name}"):
        called()(torch.nn.Identity(), x, x, x, **packing, **{name: torch.zeros(1)})


# On a CUDA device ---------------------------------------------------------------------------------------------------

SHARES = {torch.float32: 5e-3, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Of the largest number: TF32's 10 bits, some roundings of the halves."""
PACKS = [([5, 130, 1, 64], None), ([257], None), ([1, 30, 7], [65, 0, 200]), ([300, 2, 2, 2], None)]


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["xformers", "varlen", "reference"])
@pytest.mark.parametrize("dtype", SHARES)
@pytest.mark.parametrize("dim", [64, 72, 128])
@pytest.mark.parametrize("heads", [(4, 4), (14, 2), (4, 1)])
@pytest.mark.parametrize(("causal", "window"), [(True, None), (False, None), (True, 17)])
@pytest.mark.parametrize(("lengths", "cached"), PACKS)
def test_every_way_on_cuda_computes_the_same(way, dtype, dim, heads, causal, window, lengths, cached):
    cached = cached or [0] * len(lengths)
    keys = [n + before for n, before in zip(lengths, cached, strict=True)]
    inputs = drawn(sum(lengths), sum(keys), *heads, dim=dim)
    on_device = [x.detach().to("cuda", dtype).requires_grad_() for x in inputs]
    packings = [Packing.from_lengths(n).to("cuda") for n in (lengths, keys)]
    settings = {"causal": causal, "scale": 0.1, "window": window}
    if reasons := reasons_for(way, on_device, packings, settings):
        assert reasons == expected_reasons(way, dtype, window)
        return
    with use_backends(attention=way):
        got = attend(*on_device, packings[0], keys=packings[1], **settings)
        want = dense(*[x.to(dtype) for x in inputs], lengths, cached=cached, **settings)
        pulled = torch.randn_like(want)
        ours = [got, *torch.autograd.grad(got, on_device, pulled.to(got))]
    for mine, other in zip(ours, [want, *torch.autograd.grad(want, inputs, pulled)], strict=True):
        share = (mine.cpu().double() - other).abs().max() / other.abs().max()
        assert share < SHARES[dtype]


def reasons_for(way, inputs, packings, settings):
    ends, longest = [p.cu_seqlens for p in packings], [p.max_seqlen for p in packings]
    chosen = next(w for w in OP.backends if w.name == way)
    return chosen.reasons_against(PackedCall(*inputs, *ends, *longest, learns=True, **settings))


def expected_reasons(way, dtype, window):
    """Float32 is for CUTLASS, which learns no windows; whatever else is refused is a fault."""
    if dtype != torch.float32 or (way == "xformers" and window is None):
        return []
    half = "it takes float16 and bfloat16, not float32"
    return [half] if way == "varlen" else [f"{half} (FlashAttention-2)", "its backward has no window (CUTLASS)"]


@pytest.mark.gpu
def test_every_way_on_cuda_passes_its_own_test():
    results = list(run_selftest("cuda"))
    assert [result for result in results if not result.is_acceptable] == []
    assert {r.backend for r in results if r.error is not None} >= {"varlen", "reference", "cudnn", "flash", "efficient"}


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["xformers", "varlen"])
@pytest.mark.parametrize("learns", [True, False])
def test_the_fast_ways_never_wait_for_the_device(way, learns):
    q, k, v = (x.detach().to("cuda", torch.bfloat16).requires_grad_(learns) for x in drawn(192, 192, dim=64))
    packing = Packing.from_lengths([128, 64]).to("cuda")

    def run():
        out = attend(q, k, v, packing, causal=True, scale=0.1)
        if learns:
            torch.autograd.grad(out.sum(), (q, k, v))

    with use_backends(attention=way):
        run()  # looks at the machine once
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["xformers", "varlen", "reference"])
@pytest.mark.parametrize("dtype", SHARES)
@pytest.mark.parametrize("seed", range(10))
def test_any_rows_on_cuda_are_those_rows_of_all(attention, dtype, seed):
    lengths, rows, _ = draw_rows(seed)
    if attention == "varlen" and dtype == torch.float32:
        return  # it takes none
    inputs = drawn(sum(lengths), sum(lengths), dim=64)
    q, k, v = on_device = [x.detach().to("cuda", dtype).requires_grad_() for x in inputs]
    with use_backends(rows_attention="packed", attention=attention):
        got = attend_rows(
            q[rows.index.cuda()], k, v, Packing.from_lengths(lengths).to("cuda"), rows.to("cuda"), scale=0.1
        )
    want = dense(*[x.to(dtype) for x in inputs], lengths, causal=True, scale=0.1)[rows.index]
    pulled = torch.randn_like(want)
    ours = [got, *torch.autograd.grad(got, on_device, pulled.to(got))]
    for mine, other in zip(ours, [want, *torch.autograd.grad(want, inputs, pulled)], strict=True):
        bound = SHARES[dtype] * other.abs().amax() if other.numel() else 0
        assert torch.all((mine.cpu().double() - other).abs() <= bound)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 17])
def test_last_rows_on_cuda_are_those_of_all_without_waiting(window):
    lengths = [5, 130, 64]
    q, k, v = (x.detach().to("cuda", torch.bfloat16) for x in drawn(199, 199, 14, 2, dim=64))
    packing = Packing.from_lengths(lengths).to("cuda")
    rows = RowIndex((packing.cu_seqlens[1:] - 1).long(), (1, 1, 1))
    whole = attend(q, k, v, packing, causal=True, scale=0.1, window=window)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with use_backends(rows_attention="varlen"):
            got = attend_rows(q.index_select(0, rows.index), k, v, packing, rows, scale=0.1, window=window)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(got, whole[rows.index], rtol=3e-2, atol=3e-2)  # a few roundings of bfloat16
