"""Within twenty steps the probe tells a model that looks from one that cannot, or is shown others' images."""

import logging
from dataclasses import replace

import pytest
import torch
from torch.optim import AdamW

import mmblocks
from mmblocks.assets import find_tiny_model as bundled_model
from mmblocks.batch import Batch
from mmblocks.conversation import Conversation, Message, Visual
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor
from mmblocks.data.sources import sources
from mmblocks.errors import ConfigError
from mmblocks.train.reports.visual_ablation import VisualAblation, measure_visual_ablation


@pytest.fixture
def bundled():
    return mmblocks.load(bundled_model())


def right(task, index):
    return sources.build("tinyworld", task=task)[index]


def shifted(task, index):
    """A conversation with the image of the next one, as an off-by-one in a loader would give."""
    visuals = iter(right(task, index + 1).visuals)
    messages = right(task, index).messages
    return Conversation(tuple(Message(m.role, tuple(_swapped(m.parts, visuals))) for m in messages), "shifted")


def _swapped(parts, visuals):
    return [next(visuals) if isinstance(part, Visual) else part for part in parts]


def batches(model, conversation, first, count, task="single", size=16):
    make = Processor.from_model(model).make_training_sample
    starts = range(first * size, (first + count) * size, size)
    return [collate([make(conversation(task, i)) for i in range(start, start + size)]) for start in starts]


def fine_tuned(model, given):
    optimizer = AdamW(model.parameters(), lr=1e-3)
    model.train()
    for batch in given:
        optimizer.zero_grad()
        model(batch).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("task", ["single", "multi", "video"])
def test_the_bundled_model_looks(bundled, task):
    seen = measure_visual_ablation(bundled, batches(bundled, right, 0, 2, task))
    assert not seen.has_no_effect
    assert not seen.is_shuffle_invariant
    assert seen.samples == 32
    assert seen.verdict.startswith("the model uses its visuals")
    assert seen.true < min(seen.shuffled, seen.blank)


def test_a_dead_projector_is_caught_and_stops_the_run(bundled):
    for parameter in bundled.projector.head.parameters():
        torch.nn.init.zeros_(parameter)
    seen = measure_visual_ablation(bundled, batches(bundled, right, 0, 1))
    assert seen.has_no_effect
    with pytest.raises(ConfigError, match="the visuals change nothing: is the projector dead"):
        seen.raise_or_log()


def test_placeholders_that_are_not_replaced_are_caught(bundled, monkeypatch):
    monkeypatch.setattr(bundled, "embed_tokens", lambda batch: bundled.backbone.embed_tokens(batch.input_ids))
    assert measure_visual_ablation(bundled, batches(bundled, right, 0, 1)).has_no_effect


@pytest.mark.parametrize("steps", [0, 20])
def test_pictures_of_other_conversations_are_caught_within_twenty_steps(bundled, caplog, steps):
    fine_tuned(bundled, batches(bundled, shifted, 0, steps, size=4))
    seen = measure_visual_ablation(bundled, batches(bundled, shifted, steps, 2))
    assert seen.is_shuffle_invariant
    assert not seen.has_no_effect
    with caplog.at_level(logging.WARNING):
        seen.raise_or_log()
    assert "shuffled visuals do as well as the true ones" in caplog.text


def test_the_same_steps_with_the_right_pictures_are_not(bundled, caplog):
    fine_tuned(bundled, batches(bundled, right, 0, 20, size=4))
    seen = measure_visual_ablation(bundled, batches(bundled, right, 20, 2))
    assert not seen.is_shuffle_invariant
    seen.raise_or_log()
    assert caplog.text == ""


# How visuals are exchanged -------------------------------------------------------------------------------------------


class Recorder:
    """What a model was given: the first pixel of every view, which names it."""

    def __init__(self, model, monkeypatch):
        self.seen = []
        self._losses = model.compute_row_losses
        monkeypatch.setattr(model, "compute_row_losses", self)

    def __call__(self, batch):
        self.seen.append(batch.pixels[:, 0, 0, 0].tolist())
        return self._losses(batch)


def numbered(batch, first=0):
    """A batch whose view n is filled with the number first + n."""
    names = torch.arange(first, first + len(batch.pixels), dtype=torch.uint8).view(-1, 1, 1, 1)
    return replace(batch, pixels=names.expand_as(batch.pixels).clone())


def owners(batch):
    """The sample of each view."""
    ends = batch.packing.cu_seqlens[1:]
    starts = torch.tensor([0] + [r.plan.num_tokens for r in batch.plans]).cumsum(0)[:-1]
    samples = torch.bucketize(batch.visual_positions[starts], ends, right=True).tolist()
    return [s for s, r in zip(samples, batch.plans, strict=True) for _ in r.plan.views]


@pytest.mark.parametrize("task", ["single", "multi", "video"])
def test_no_view_stays_in_its_sample(tiny_model, monkeypatch, task):
    batch = numbered(batches(tiny_model, right, 0, 1, task, size=12)[0])
    recorder = Recorder(tiny_model, monkeypatch)
    seen = measure_visual_ablation(tiny_model, [batch])
    mine, theirs, _ = recorder.seen
    whose = owners(batch)
    stayed = {whose[a] for a, b in zip(mine, theirs, strict=True) if whose[a] == whose[b]}
    assert seen.samples == 12 - len(stayed)
    assert len(stayed) <= 2  # sizes that only one sample has
    assert sorted(mine) == list(range(len(mine)))


def test_a_foreign_clip_runs_backwards(tiny_model, monkeypatch):
    batch = numbered(batches(tiny_model, right, 0, 1, "video", size=2)[0])
    recorder = Recorder(tiny_model, monkeypatch)
    measure_visual_ablation(tiny_model, [batch])
    assert recorder.seen[1] == [7, 6, 5, 4, 3, 2, 1, 0]


def test_blank_views_are_all_alike(tiny_model, monkeypatch):
    recorder = Recorder(tiny_model, monkeypatch)
    measure_visual_ablation(tiny_model, [numbered(batches(tiny_model, right, 0, 1)[0])])
    assert len(set(recorder.seen[2])) == 1


def test_samples_alone_in_their_batches_exchange_between_batches(tiny_model):
    alone = batches(tiny_model, right, 0, 3, "video", size=1)
    assert measure_visual_ablation(tiny_model, alone[:1]).samples == 0
    assert measure_visual_ablation(tiny_model, [*alone, None]).samples == 3


def test_text_alone_says_nothing_and_does_nothing(tiny_model, caplog):
    seen = measure_visual_ablation(
        tiny_model, [*batches(tiny_model, right, 0, 1, "text"), Batch.make_empty(tiny_model.encoder.view_px)]
    )
    assert seen.samples == 0
    assert seen.to_metrics() == {}
    seen.raise_or_log()
    assert caplog.text == ""
    assert "nothing was compared" in seen.verdict


def test_answers_of_a_pair_do_not_lend_each_other_their_picture(tiny_model):
    make = Processor.from_model(tiny_model).make_training_sample
    pair = collate([make(right("video", 0)), make(right("video", 0))])
    assert measure_visual_ablation(tiny_model, [pair], sequences=2).samples == 0
    assert measure_visual_ablation(tiny_model, [pair, pair], sequences=2).samples == 2


def test_features_that_came_with_a_batch_are_exchanged_too(bundled):
    given = batches(bundled, right, 0, 1)
    cached = [replace(b, features=bundled.encoder(bundled.normalise_pixels(b.pixels)).detach()) for b in given]
    plain, kept = measure_visual_ablation(bundled, given), measure_visual_ablation(bundled, cached)
    assert kept.true == pytest.approx(plain.true, rel=1e-4)
    assert kept.shuffled == pytest.approx(plain.shuffled, rel=1e-4)
    assert kept.blank > kept.true


def test_the_true_loss_is_the_models_and_nothing_of_it_changes(tiny_model):
    tiny_model.train()
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    batch = batches(tiny_model, right, 0, 1, "video")[0]
    seen = measure_visual_ablation(tiny_model, [batch])
    assert seen.true == pytest.approx(tiny_model(batch).loss.item(), rel=1e-5)
    assert tiny_model.training
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())
    assert all(p.grad is None for p in tiny_model.parameters())


def test_the_verdict_follows_from_the_losses():
    assert "blank ones do better" in VisualAblation(2.0, 2.0, 1.5, 32, 0.1).verdict
    assert "does not use its visuals yet" in VisualAblation(2.0, 2.2, 2.1, 32, 0.1).verdict
    assert "the model uses its visuals" in VisualAblation(2.0, 2.4, 2.1, 32, 0.1).verdict
    assert VisualAblation(2.0, 2.4, 2.1, 32, 0.1).to_metrics()["visual_ablation/shuffled"] == 2.4
