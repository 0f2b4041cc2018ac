"""Packing is a matter of speed: neighbours in a packed row never notice each other."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmblocks.conversation import Conversation
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def said(question, answer, *visuals):
    content = [shown(v) for v in visuals]
    return Conversation.from_messages(
        [
            {"role": "user", "content": [*content, {"type": "text", "text": question}]},
            {"role": "assistant", "content": answer},
        ]
    )


def shown(array):
    if array.ndim == 4:
        return {"type": "video", "video": array}
    return {"type": "image", "image": Image.fromarray(array)}


CONVERSATIONS = [
    said("What colour is the circle?", "red", noise(0, 40, 60, 3)),
    said("How many?", "two"),
    said("Which image shows a square?", "the second image", noise(1, 24, 24, 3), noise(2, 70, 30, 3)),
    said("What is moving?", "the circle", noise(3, 5, 20, 30, 3)),
]


def samples_of(model, conversations=CONVERSATIONS):
    processor = Processor.from_model(model)
    return [processor.make_training_sample(conversation) for conversation in conversations]


@torch.no_grad()
def logits_of(model, samples):
    """Logits of each sample of one packed batch."""
    batch = collate(samples)
    return model.compute_logits(batch).split(batch.packing.lengths)


def test_a_changed_document_moves_its_neighbours_by_exactly_nothing(tiny_model):
    first, *others = CONVERSATIONS
    changed = said("What colour is the square?", "blue", noise(9, 40, 60, 3))

    before = logits_of(tiny_model, samples_of(tiny_model, [first, *others, first]))
    after = logits_of(tiny_model, samples_of(tiny_model, [changed, *others, changed]))

    assert before[0].shape == after[0].shape
    assert not torch.equal(before[0], after[0])
    for mine, theirs in zip(before[1:-1], after[1:-1], strict=True):
        assert torch.equal(mine, theirs)


def test_a_document_is_read_packed_as_alone(tiny_model):
    samples = samples_of(tiny_model)

    for packed, sample in zip(logits_of(tiny_model, samples), samples, strict=True):
        (alone,) = logits_of(tiny_model, [sample])
        torch.testing.assert_close(
            packed, alone, rtol=0, atol=1e-6
        )  # a matrix product of more rows sums in another order


def test_the_order_of_a_batch_changes_nothing(tiny_model):
    samples = samples_of(tiny_model)
    forwards, backwards = logits_of(tiny_model, samples), logits_of(tiny_model, samples[::-1])

    for one, other in zip(forwards, reversed(backwards), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@torch.no_grad()
def test_the_loss_of_a_pack_is_the_sum_of_its_documents(tiny_model):
    samples = samples_of(tiny_model)
    together = tiny_model(collate(samples))
    apart = [tiny_model(collate([sample])) for sample in samples]

    assert together.num_terms == sum(loss.num_terms for loss in apart)
    assert together.total.item() == pytest.approx(sum(loss.total.item() for loss in apart), rel=1e-6)


def test_a_visual_is_read_packed_as_alone(tiny_model):
    samples = samples_of(tiny_model)
    with torch.no_grad():
        together = tiny_model.compute_visual_tokens(collate(samples))
        apart = [tiny_model.compute_visual_tokens(collate([s])) for s in samples if s.encoded.plans]

    torch.testing.assert_close(together, torch.cat(apart), rtol=0, atol=1e-6)


def test_gradients_of_a_document_do_not_reach_its_neighbours_pixels(tiny_model):
    samples = samples_of(tiny_model)
    batch = collate(samples)
    x = tiny_model.embed_tokens(batch).detach().requires_grad_()
    hidden = tiny_model.backbone.compute_hidden_states(x, batch.position_ids, batch.packing)
    starts = batch.packing.cu_seqlens.tolist()

    hidden[starts[2] : starts[3]].sum().backward()

    assert x.grad[starts[2] : starts[3]].abs().sum() > 0
    assert x.grad[: starts[2]].abs().max() == 0
    assert x.grad[starts[3] :].abs().max() == 0
