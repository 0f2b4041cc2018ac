"""Lengths from headers: as long as what is trained on, measured once, and kept."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mmblocks
from mmblocks.batch import IGNORE
from mmblocks.components import poolings, tokenizers
from mmblocks.conversation import Conversation, PreferencePair
from mmblocks.data.mixing.mixture import Draws, Mixture
from mmblocks.data.planning import measure as measuring
from mmblocks.data.planning.calibrate import calibrate_cost, fit_cost
from mmblocks.data.planning.cost import SampleCost
from mmblocks.data.planning.grouping import count_words, make_grouped_order
from mmblocks.data.planning.lengths_cache import LengthsCache
from mmblocks.data.planning.measure import SampleSizes, measure_draws
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import ConfigError, DataError
from mmblocks.image_reading import ImageReading
from mmblocks.shapes import Size

TASKS = ("text", "caption", "single", "by_shape", "multi", "video")


def tinyworld(*tasks, **settings):
    return Mixture.from_entries([{"name": "tinyworld", "task": task, "size": 40, **settings} for task in tasks])


@pytest.fixture
def photos(tmp_path):
    """A LLaVA file of four records, the third of which has lost its image."""
    for number, size in enumerate([(24, 24), (60, 30), (30, 70)]):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
    shown = [["0.png"], ["1.png", "2.png"], ["lost.png"], []]
    records = [
        {
            "id": str(number),
            "image": names,
            "conversations": [
                {"from": "human", "value": "<image>\n" * len(names) + "what colour is it ?"},
                {"from": "gpt", "value": "red"},
            ],
        }
        for number, names in enumerate(shown)
    ]
    path = tmp_path / "photos.json"
    path.write_text(json.dumps([{k: v for k, v in r.items() if v != []} for r in records]))
    return {"name": "llava_json", "path": str(path), "images": str(tmp_path)}


# Planned and collated lengths ---------------------------------------------------------------------------------------


def held(batch):
    return batch.num_tokens, len(batch.pixels), batch.num_labelled, sum(n * n for n in batch.packing.lengths)


@pytest.mark.parametrize("visuals", ["as_written", "mixed"])
@pytest.mark.parametrize("targets", ["answers", "original"])
@pytest.mark.parametrize("task", TASKS)
def test_a_sample_is_as_large_as_measured(tiny_model, task, targets, visuals):
    if targets == "original":
        tiny_model.template = mmblocks.components.templates.build("qwen_1_5")
    processor = Processor.from_model(tiny_model, visuals=visuals)
    mixture = tinyworld(task, turns=2) if task in ("single", "multi") else tinyworld(task)
    draws = mixture.draw_by_weight(12, (3,))
    sizes = measure_draws(mixture, draws, processor, targets).sizes
    batches = [collate(processor.make_training_samples(mixture[draws[n]], targets)) for n in range(len(draws))]
    assert [tuple(row) for row in sizes.to_table().tolist()] == [held(batch) for batch in batches]


@pytest.mark.parametrize(
    "tokenizer",
    [
        {"image": "tiles_marked"},
        {"video": "stamped_frames", "image": {"name": "crop_split", "side_px": 48}},
        {"video": {"name": "slow_fast"}, "multi_image": "pad_newline"},
    ],
    ids=str,
)
def test_told_texts_and_marks_are_measured_too(tiny_spec, photos, tokenizer):
    spec = {**tiny_spec, "tokenizer": {**tiny_spec["tokenizer"], **tokenizer}}
    model = mmblocks.build(spec, seed=0)
    processor = Processor.from_model(model)
    clips = {"name": "tinyworld", "task": "video", "size": 4}
    mixture = Mixture.from_entries([photos, clips, {**clips, "task": "multi"}])
    measured = measure_draws(mixture, mixture.draw_all(), processor, policy="skip")
    assert len(measured.readable) == 11
    for number in measured.readable.tolist():
        batch = collate(processor.make_training_samples(mixture[mixture.draw_all()[number]]))
        assert tuple(measured.sizes.to_table()[number].tolist()) == held(batch)


@pytest.mark.parametrize("name", sorted(tokenizers))
def test_every_visual_tokenizer_is_measured_as_it_is_encoded(tiny_spec, photos, name):
    spec = name if tokenizers.find_info(name).preset_of else {"name": name, **tokenizers[name].tiny}
    grids = {"view_px": Size(24, 24), "grid": Size(6, 6), "pooling": poolings.build("none")}
    serves = tokenizers.build(spec, **grids, spatial=True, squash=True).scenarios
    changed = {**tiny_spec["tokenizer"], **dict.fromkeys(serves, spec)}
    backbone = {**tiny_spec["backbone"], "max_tokens": 65536}
    processor = Processor.from_spec({**tiny_spec, "tokenizer": changed, "backbone": backbone})
    mixture = Mixture.from_entries([photos, *({"name": "tinyworld", "task": t, "size": 3} for t in TASKS)])
    draws = mixture.draw_all()
    measured = measure_draws(mixture, draws, processor, policy="skip")
    assert len(measured.readable) == len(draws) - 1
    for number in measured.readable.tolist():
        (encoded,) = processor.encode_item(mixture[draws[number]])
        views = sum(len(routed.plan.unique_views) for routed in encoded.plans)
        size = (encoded.input_ids.numel(), views, int((encoded.targets != IGNORE).sum()), len(encoded) ** 2)
        assert tuple(measured.sizes.to_table()[number].tolist()) == size


def test_a_pair_counts_as_both_of_its_conversations(tiny_model):
    one, other = (tinyworld("single").sources[0][i] for i in (0, 1))
    row = measuring.measure_item(PreferencePair(one, other), Processor.from_model(tiny_model), "answers")
    each = [measuring.measure_item(c, Processor.from_model(tiny_model), "answers") for c in (one, other)]
    assert row == tuple(a + b for a, b in zip(*each, strict=True))
    assert row[3] < row[0] ** 2


def test_measuring_decodes_no_pixel(tiny_model, photos, monkeypatch):
    def decodes(*_, **__):
        raise AssertionError("an image was decoded")

    monkeypatch.setattr("mmblocks.data.media.visuals.load_image", decodes)
    mixture = Mixture.from_entries([photos])
    draws = Draws(np.zeros(2, np.int64), np.arange(2))
    # The only tile of a square photo is its base view: one image.
    assert measure_draws(mixture, draws, Processor.from_model(tiny_model)).sizes.views.tolist() == [1, 2]


def test_a_composition_that_is_not_built_measures_the_same(tiny_spec, tiny_model):
    mixture = tinyworld(*TASKS)
    draws = mixture.draw_by_weight(30, (0,))
    built, planned = (
        measure_draws(mixture, draws, p) for p in (Processor.from_model(tiny_model), Processor.from_spec(tiny_spec))
    )
    assert np.array_equal(built.sizes.to_table(), planned.sizes.to_table())


# Draws, broken records, workers -------------------------------------------------------------------------------------


def test_a_conversation_that_is_drawn_often_is_measured_once(tiny_model, monkeypatch):
    asked = []
    size_of = measuring.measure_item
    monkeypatch.setattr(
        measuring, "measure_item", lambda item, *rest: asked.append(item.origin) or size_of(item, *rest)
    )
    mixture = tinyworld("single", "text")
    draws = Draws(np.array([0, 1, 0, 0]), np.array([3, 3, 3, 5]))
    sizes = measure_draws(mixture, draws, Processor.from_model(tiny_model)).sizes
    assert len(asked) == len(set(asked)) == 3
    assert sizes.tokens[0] == sizes.tokens[2]
    assert sizes.views.tolist() == [sizes.views[0], 0, sizes.views[0], sizes.views[3]]


def test_a_broken_record_stops_or_is_listed(tiny_model, photos):
    mixture = Mixture.from_entries([photos])
    draws = Draws(np.zeros(6, np.int64), np.array([3, 2, 0, 2, 1, 2]))
    processor = Processor.from_model(tiny_model)
    with pytest.raises(DataError, match=r"lost\.png"):
        measure_draws(mixture, draws, processor)

    measured = measure_draws(mixture, draws, processor, policy="skip")
    (broken,) = measured.broken
    assert broken.number == 1
    assert "photos.json" in broken.origin
    assert "lost.png" in broken.reason
    assert measured.readable.tolist() == [0, 2, 4]
    assert (measured.sizes.tokens > 0).tolist() == [True, False, True, False, True, False]


def test_a_sample_over_the_limit_is_broken(tiny_model):
    mixture, processor = tinyworld("multi", "text"), Processor.from_model(tiny_model)
    tokens = measure_draws(mixture, mixture.draw_all(), processor).sizes.tokens
    limit = int(np.median(tokens))
    measured = measure_draws(mixture, mixture.draw_all(), replace(processor, max_tokens=limit), policy="skip")
    assert [broken.number for broken in measured.broken] == np.flatnonzero(tokens > limit).tolist()
    assert f"the limit is {limit}" in measured.broken[0].reason


def test_worker_processes_measure_the_same(tiny_model):
    mixture = tinyworld("single", "multi")
    draws = mixture.draw_by_weight(150, (0,))
    alone, helped = (measure_draws(mixture, draws, Processor.from_model(tiny_model), workers=w).sizes for w in (0, 1))
    assert np.array_equal(alone.to_table(), helped.to_table())


# Keeping lengths ----------------------------------------------------------------------------------------------------


def test_lengths_are_read_again_instead_of_headers(tiny_model, photos, tmp_path, monkeypatch):
    mixture, processor = Mixture.from_entries([photos]), Processor.from_model(tiny_model)
    some, more = (Draws(np.zeros(len(i), np.int64), np.array(i)) for i in ([0, 1, 1], [0, 3, 1]))
    cache = LengthsCache.from_settings(tmp_path / "cache", [photos], tiny_model.spec, processor)
    first = measure_draws(mixture, some, processor, cache=cache).sizes
    asked = []
    size_of = measuring.measure_item
    monkeypatch.setattr(
        measuring, "measure_item", lambda item, *rest: asked.append(item.origin) or size_of(item, *rest)
    )
    second = measure_draws(mixture, more, processor, cache=cache).sizes
    assert len(asked) == 1
    assert second.to_table()[[0, 2]].tolist() == first.to_table()[[0, 1]].tolist()


def test_what_decides_a_length_names_the_cache(tiny_model, tiny_spec, photos, tmp_path):
    def file(data=photos, spec=tiny_spec, processor=None, targets="answers"):
        return LengthsCache.from_settings(
            tmp_path, [data], spec, processor or Processor.from_model(tiny_model), targets
        ).file

    same = file()
    assert file() == same == file(processor=Processor.from_spec(tiny_spec))
    others = [
        file(data={**photos, "placement": "as_written"}),
        file(spec={**tiny_spec, "pooling": "none"}),
        file(targets="original"),
        file(processor=replace(Processor.from_model(tiny_model), max_tokens=7)),
        file(processor=replace(Processor.from_model(tiny_model), visuals="front")),
        file(processor=replace(Processor.from_model(tiny_model), images=ImageReading(max_px=100))),
        file(spec={**tiny_spec, "images": {"exif": False}}),
        file(processor=Processor.from_spec(tiny_spec, tokenizer={"video": {"name": "frames", "max_frames": 2}})),
        file(
            processor=replace(Processor.from_model(tiny_model), template=mmblocks.components.templates.build("plain"))
        ),
    ]
    with Path(photos["path"]).open("a") as records:
        records.write("\n")
    assert len({same, *others, file()}) == 11


def test_a_kept_length_is_measured_again_where_its_record_was_edited_or_shows_another_picture(
    tiny_model, tmp_path, monkeypatch
):
    """Named through a pattern and a mixture file, so that the name of the cache knows nothing of them."""
    picture, records = tmp_path / "0.png", tmp_path / "d.jsonl"
    talk = [{"from": "human", "value": "<image>what color ?"}, {"from": "gpt", "value": "red"}]

    def write(answer, size):
        Image.new("RGB", (size, size)).save(picture)
        answered = [*talk[:1], {**talk[1], "value": answer}]
        records.write_text("".join(json.dumps({"image": "0.png", "conversations": t}) + "\n" for t in (talk, answered)))

    write("red", 24)
    data, processor = {"name": "llava_json", "path": str(tmp_path / "*.jsonl")}, Processor.from_model(tiny_model)
    asked = []
    size_of = measuring.measure_item
    monkeypatch.setattr(
        measuring, "measure_item", lambda item, *rest: asked.append(item.origin[-1]) or size_of(item, *rest)
    )

    def sizes(cached=True):
        mixture = Mixture.from_entries([data])
        cache = LengthsCache.from_settings(tmp_path / "cache", [data], tiny_model.spec, processor) if cached else None
        asked.clear()
        return measure_draws(mixture, mixture.draw_all(), processor, cache=cache).sizes.to_table().tolist(), list(asked)

    first, measured = sizes()
    assert (sizes(), measured) == ((first, []), ["0", "1"])
    write("red and green", 24)
    assert sizes() == (sizes(cached=False)[0], ["1"])
    write("red and green", 60)
    longer, measured = sizes()
    assert (longer, measured) == (sizes(cached=False)[0], ["0", "1"])
    assert longer != first


def test_lengths_that_another_process_has_just_found_are_taken_as_they_are(tiny_model, photos, tmp_path, monkeypatch):
    mixture, processor = Mixture.from_entries([photos]), Processor.from_model(tiny_model)
    draws = Draws(np.zeros(2, np.int64), np.arange(2))
    cache = LengthsCache.from_settings(tmp_path / "cache", [photos], tiny_model.spec, processor)
    first = measure_draws(mixture, draws, processor, cache=cache).sizes.to_table()
    monkeypatch.setattr(Mixture, "__getitem__", None)
    taken = measure_draws(mixture, draws, processor, cache=cache, settled=cache.read()).sizes.to_table()
    assert np.array_equal(first, taken)


def test_a_spoilt_cache_is_measured_again(tiny_model, photos, tmp_path):
    processor = Processor.from_model(tiny_model)
    cache = LengthsCache.from_settings(tmp_path / "cache", [photos], tiny_model.spec, processor)
    mixture, draws = Mixture.from_entries([photos]), Draws(np.zeros(1, np.int64), np.zeros(1, np.int64))
    right = measure_draws(mixture, draws, processor, cache=cache).sizes.to_table()
    cache.file.write_bytes(cache.file.read_bytes()[:-5])
    assert np.array_equal(measure_draws(mixture, draws, processor, cache=cache).sizes.to_table(), right)


# Costs --------------------------------------------------------------------------------------------------------------


def test_frozen_parts_cost_their_forward_pass(tiny_spec):
    nothing = SampleCost.from_model(tiny_spec, ())
    everything = SampleCost.from_model(tiny_spec)
    assert everything.view == pytest.approx(3 * nothing.view)
    assert everything.token == pytest.approx(3 * nothing.token)
    assert everything.pair == pytest.approx(3 * nothing.pair)

    projector = SampleCost.from_model(tiny_spec, ("projector",))
    assert projector.token == pytest.approx(2 * nothing.token)  # gradients pass through, weights get none
    assert nothing.view < projector.view < 1.5 * nothing.view  # the encoder runs forward alone

    again = SampleCost.from_model(tiny_spec, gradient_checkpointing=True)
    assert again.token == pytest.approx(4 * nothing.token)


def test_an_estimate_is_what_the_weights_multiply(tiny_spec, tiny_model):
    """A token meets every weight of the blocks twice: once to multiply, once to add."""
    blocks = sum(p.numel() for name, p in tiny_model.backbone.named_parameters() if "layers" in name and p.dim() == 2)
    cost = SampleCost.from_model(tiny_spec, (), flops_per_s=1 / 0.65)
    assert cost.token == pytest.approx(2 * blocks)
    assert cost.label == pytest.approx(2 * 32 * 640)


def test_costs_are_kept_as_json(tmp_path):
    cost = SampleCost(1e-3, 2e-6, 3e-10, 0.0)
    assert SampleCost.load(cost.save(tmp_path / "new" / "cost.json")) == cost
    (tmp_path / "other.json").write_text('{"view": 1}')
    with pytest.raises(ConfigError, match=r"other\.json: this is no saved cost.*calibrate"):
        SampleCost.load(tmp_path / "other.json")


def measured_passes(noise=0.0):
    rng = np.random.default_rng(0)
    tokens = rng.integers(100, 4000, 16)
    sizes = SampleSizes(tokens, rng.integers(0, 20, 16), rng.integers(1, 500, 16), tokens**2 // rng.integers(1, 9, 16))
    true = SampleCost(view=2e-3, token=5e-6, pair=1e-10, label=0.0)
    return sizes, (true.estimate_seconds(sizes) + 0.004) * np.exp(noise * rng.standard_normal(16)), true


def test_rates_are_found_again_without_the_time_that_all_rows_share():
    sizes, seconds, true = measured_passes()
    found = fit_cost(sizes, seconds)
    assert found.view == pytest.approx(true.view)
    assert found.token == pytest.approx(true.token)
    assert found.pair == pytest.approx(true.pair)
    assert found.label == pytest.approx(0, abs=1e-12)


def test_no_rate_is_negative_whatever_the_noise():
    sizes, seconds, _ = measured_passes(noise=0.2)
    cost = fit_cost(sizes, seconds)
    assert min(cost.view, cost.token, cost.pair, cost.label) >= 0


def test_times_that_follow_nothing_are_refused():
    sizes, seconds, _ = measured_passes(noise=1.5)
    with pytest.raises(ConfigError, match="do not follow views, tokens, pairs and labels"):
        fit_cost(sizes, seconds)


def test_calibration_measures_training_passes(tiny_model):
    """A clock that counts work instead of seconds: the rates come back, and gradients are left as they were."""
    spent = [0.0]
    true = SampleCost(view=3e-3, token=2e-6, pair=4e-9, label=1e-6)

    def passes(_, batches):
        spent[0] += 1e-3 + float(true.estimate_seconds(SampleSizes.from_rows([held(batches[0])]))[0])

    tiny_model.register_forward_pre_hook(passes)
    mark = next(iter(tiny_model.learned_tokens.values()))
    mark.grad = torch.ones_like(mark)
    found = calibrate_cost(tiny_model, Processor.from_model(tiny_model), tokens=256, repeats=1, clock=lambda: spent[0])
    assert [found.view, found.token, found.pair, found.label] == pytest.approx(
        [true.view, true.token, true.pair, true.label], rel=1e-6
    )
    assert torch.equal(mark.grad, torch.ones_like(mark))
    assert all(p.grad is None for p in tiny_model.backbone.parameters())


# Orders by length ---------------------------------------------------------------------------------------------------


def test_steps_hold_one_modality_and_fall_in_length():
    mixture = tinyworld("text", "single")
    draws = mixture.draw_by_weight(100, (1,))
    order = make_grouped_order(mixture, draws, "modality_length", 8, (0,))
    assert sorted(order.tolist()) == list(range(100))
    lengths = [count_words(mixture[draws[int(n)]]) for n in order]
    steps = [lengths[i : i + 8] for i in range(0, 8 * (len(lengths) // 8 - 1), 8)]
    assert all(len({n > 0 for n in step}) == 1 for step in steps)
    assert all(sorted(map(abs, step), reverse=True) == [abs(n) for n in step] for step in steps)
    assert {step[0] > 0 for step in steps} == {True, False}
    assert order.tolist() != make_grouped_order(mixture, draws, "length", 8, (0,)).tolist()


def test_words_count_markers_and_turns_but_not_the_system():
    said = [
        {"role": "system", "content": "you are kind"},
        {"role": "user", "content": [{"type": "image", "image": "x"}, {"type": "text", "text": "\nwhat is it"}]},
        {"role": "assistant", "content": "a red square"},
    ]
    assert count_words(Conversation.from_messages(said)) == 7
    assert count_words(Conversation.from_messages([{"role": "user", "content": "hi you"}])) == -2
    assert count_words(Conversation.from_messages([{"role": "user", "content": ""}])) == -1
