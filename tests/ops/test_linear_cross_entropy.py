"""The loss meets the vocabulary with labelled rows only, and with a few of them at a time."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmblocks.ops.choice import use_backends
from mmblocks.ops.linear_cross_entropy import chunked, linear_cross_entropy, row_cross_entropies

ROWS, DIM, VOCABULARY = 10, 4, 11


@pytest.fixture
def three_rows_at_a_time(monkeypatch):
    monkeypatch.setattr(chunked, "MAX_LOGITS", 3 * VOCABULARY + 2)


class Head(nn.Module):
    """A capped head, as Gemma's, that notes how many rows meet the vocabulary in each call."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.linear = nn.Linear(DIM, VOCABULARY, dtype=dtype)
        self.met = []

    def forward(self, rows):
        self.met.append(len(rows))
        return torch.tanh(self.linear(rows) / 3) * 3


def inputs(rows=ROWS, dtype=torch.float32):
    return torch.randn(rows, DIM, dtype=dtype, requires_grad=True), torch.randint(VOCABULARY, (rows,))


def value_and_gradients(loss, hidden, targets, head, weights=1.0):
    value = loss(hidden, targets, head, vocabulary=VOCABULARY)
    return [value.detach(), *torch.autograd.grad((value * weights).sum(), [hidden, *head.parameters()])]


def test_it_is_the_sum_of_cross_entropies():
    hidden, targets = inputs()
    head = Head()
    want = F.cross_entropy(head(hidden), targets, reduction="sum")
    torch.testing.assert_close(linear_cross_entropy(hidden, targets, head, vocabulary=VOCABULARY), want)


@pytest.mark.usefixtures("three_rows_at_a_time")
@pytest.mark.parametrize("rows", [1, 3, 4, 9, ROWS])
def test_chunks_have_the_value_and_gradients_of_all_rows_at_once(rows):
    hidden, targets = inputs(rows, torch.float64)
    head, weights = Head(torch.float64), torch.randn(rows, dtype=torch.float64)
    got = value_and_gradients(row_cross_entropies, hidden, targets, head, weights)
    with use_backends("reference"):
        want = value_and_gradients(row_cross_entropies, hidden, targets, head, weights)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)  # weights' gradients add up in another order


@pytest.mark.usefixtures("three_rows_at_a_time")
def test_never_more_than_a_chunk_meets_the_vocabulary_at_a_time():
    head = Head()
    loss = linear_cross_entropy(*inputs(), head, vocabulary=VOCABULARY)
    forward, head.met = head.met, []
    loss.backward()
    assert forward == [2, 3, 2, 3]
    assert head.met == [2, 3, 2]  # all but the last once more, the latest first


@pytest.mark.usefixtures("three_rows_at_a_time")
def test_one_chunk_is_computed_once():
    head = Head()
    linear_cross_entropy(*inputs(3), head, vocabulary=VOCABULARY).backward()
    assert head.met == [3]


@pytest.mark.usefixtures("three_rows_at_a_time")
def test_no_more_logits_wait_for_backward_than_one_chunk_has():
    def waiting(rows):
        hidden, targets = inputs(rows)
        saved = {}
        note = lambda t: saved.update({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()}) or t  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            kept = linear_cross_entropy(hidden, targets, Head(), vocabulary=VOCABULARY)
        assert kept.requires_grad
        return sum(size for size in saved.values() if size % (4 * VOCABULARY) == 0)

    assert waiting(90) == waiting(3) > 0


@pytest.mark.usefixtures("three_rows_at_a_time")
def test_without_gradients_nothing_is_computed_twice_or_kept():
    head = Head()
    with torch.no_grad():
        assert not row_cross_entropies(*inputs(), head, vocabulary=VOCABULARY).requires_grad
    assert sum(head.met) == ROWS


@pytest.mark.usefixtures("three_rows_at_a_time")
def test_a_frozen_body_and_a_frozen_head_get_no_gradient():
    hidden, targets = inputs()
    head = Head()
    linear_cross_entropy(hidden.detach(), targets, head, vocabulary=VOCABULARY).backward()
    assert head.linear.weight.grad is not None
    head.requires_grad_(False).zero_grad()
    linear_cross_entropy(hidden, targets, head, vocabulary=VOCABULARY).backward()
    assert hidden.grad is not None
    assert head.linear.weight.grad is None


def test_half_precision_logits_are_summed_in_float32():
    hidden, targets = inputs(dtype=torch.bfloat16)
    head = nn.Linear(DIM, VOCABULARY, dtype=torch.bfloat16)
    got = row_cross_entropies(hidden, targets, head, vocabulary=VOCABULARY)
    assert got.dtype == torch.float32
    assert torch.equal(got, F.cross_entropy(head(hidden).float(), targets, reduction="none"))


@pytest.mark.parametrize("way", ["chunked", "reference"])
def test_without_rows_the_loss_is_zero_and_still_has_gradients(way):
    hidden, targets = inputs(0)
    head = Head()
    with use_backends(linear_cross_entropy=way):
        loss = linear_cross_entropy(hidden, targets, head, vocabulary=VOCABULARY)
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad is not None
    assert torch.equal(head.linear.weight.grad, torch.zeros(VOCABULARY, DIM))
