"""Packed attention: a token sees earlier tokens of its own sequence, and nothing else."""

import pytest
import torch

from mmblocks.batch import Packing
from mmblocks.ops.attention import attend, packing_arguments, register


def dense(q, k, v, lengths, *, causal, scale, window=None, softcap=None, sinks=None):
    """The same written with one big mask and float64."""
    segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.arange(len(segment))
    allowed = segment[:, None] == segment[None, :]
    behind = place[:, None] - place[None, :]
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


@pytest.mark.parametrize("lengths", [[1], [5, 9, 3], [8] * 4, [1, 64]])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("causal", "window"), [(True, None), (False, None), (True, 3)])
def test_it_attends_as_one_big_masked_softmax_does(lengths, kv_heads, causal, window):
    tokens = sum(lengths)
    q, k, v = torch.randn(tokens, 4, 8), torch.randn(tokens, kv_heads, 8), torch.randn(tokens, kv_heads, 8)
    got = attend(q, k, v, Packing.of(lengths), causal=causal, scale=0.3, window=window)
    want = dense(q, k, v, lengths, causal=causal, scale=0.3, window=window).float()
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)  # fp32 sums in another order than float64


@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("sinks", [None, torch.tensor([0.5, -1.0, 2.0, 0.0])])
@pytest.mark.parametrize(("causal", "window"), [(True, None), (False, None), (True, 3)])
def test_caps_and_sinks_are_those_of_one_big_softmax(softcap, sinks, causal, window):
    q, k, v = torch.randn(17, 4, 8), torch.randn(17, 2, 8), torch.randn(17, 2, 8)
    lengths, settings = [5, 9, 3], {"causal": causal, "window": window, "softcap": softcap, "sinks": sinks}
    got = attend(q, k, v, Packing.of(lengths), scale=0.7, **settings)
    want = dense(q, k, v, lengths, scale=0.7, **settings).float()
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)  # fp32 sums in another order than float64


def test_gradients_agree_with_numbers():
    q, k, v = (torch.randn(7, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    packing = Packing.of([3, 4])
    assert torch.autograd.gradcheck(lambda *x: attend(*x, packing, causal=True, scale=0.5), (q, k, v))


def test_what_one_sequence_holds_never_reaches_another():
    q, k, v = torch.randn(9, 2, 4), torch.randn(9, 2, 4), torch.randn(9, 2, 4)
    packing = Packing.of([4, 5])
    before = attend(q, k, v, packing, causal=True, scale=0.5)
    q[:4], k[:4], v[:4] = 7.0, -3.0, 100.0
    after = attend(q, k, v, packing, causal=True, scale=0.5)
    assert torch.equal(before[4:], after[4:])


@pytest.mark.parametrize("name", ["position_bias", "block_indices"])
def test_a_keyword_that_would_change_scores_is_never_dropped(name):
    from transformers import AttentionInterface

    called = AttentionInterface()[register()]
    x = torch.randn(1, 2, 5, 8)
    packing = packing_arguments(Packing.of([2, 3]), x.device)
    with pytest.raises(NotImplementedError, match=f"packed attention does not know {name}"):
        called(torch.nn.Identity(), x, x, x, **packing, **{name: torch.zeros(1)})
