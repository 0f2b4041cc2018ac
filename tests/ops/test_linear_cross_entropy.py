"""The loss sees labelled rows only."""

import torch
import torch.nn.functional as F

from mmblocks.batch import IGNORE
from mmblocks.ops.linear_cross_entropy import linear_cross_entropy


def test_it_is_the_cross_entropy_of_the_labelled_rows():
    hidden, head = torch.randn(9, 4), torch.nn.Linear(4, 11)
    targets = torch.tensor([3, IGNORE, IGNORE, 10, 0, IGNORE, 5, IGNORE, IGNORE])
    want = F.cross_entropy(head(hidden), targets, ignore_index=IGNORE, reduction="sum")
    torch.testing.assert_close(linear_cross_entropy(hidden, targets, head), want)


def test_only_labelled_rows_meet_the_vocabulary():
    met = []
    targets = torch.tensor([IGNORE, 1, IGNORE, 2, IGNORE])

    def logits(rows):
        met.append(len(rows))
        return torch.zeros(len(rows), 7)

    linear_cross_entropy(torch.randn(5, 4), targets, logits)
    assert met == [2]


def test_without_a_label_the_loss_is_zero_and_still_has_a_gradient():
    hidden = torch.randn(3, 4, requires_grad=True)
    loss = linear_cross_entropy(hidden, torch.full((3,), IGNORE), torch.nn.Linear(4, 5))
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad is not None
    assert hidden.grad.abs().sum() == 0
