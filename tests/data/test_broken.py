"""Records that cannot be read: what is left is whole and in order, what is missing is counted with its reason."""

import json
import os

import pytest
import torch
from PIL import Image

from mmblocks.data.mixing.mixture import Draw, Mixture
from mmblocks.data.mixing.skipped_records import (
    SkippedRecord,
    append_skipped,
    count_records,
    format_skipped,
    make_samples,
    read_skipped,
)
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import ConfigError, DataError


@pytest.fixture
def records(tmp_path):
    """Seven records of one image each, of which three cannot be read; image i is all of value 30 * i."""
    for i in range(7):
        Image.new("RGB", (24, 24), (30 * i,) * 3).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").unlink()
    (tmp_path / "4.png").write_bytes((tmp_path / "4.png").read_bytes()[:-30])
    written = [
        {
            "id": str(i),
            "image": f"{i}.png",
            "conversations": [
                {"from": "human", "value": ("<image>\n" * (3 if i == 5 else 1)) + "what color ?"},
                {"from": "gpt", "value": "red"},
            ],
        }
        for i in range(7)
    ]
    path = tmp_path / "records.json"
    path.write_text(json.dumps(written))
    return path


@pytest.fixture
def mixture(records):
    world = {"name": "tinyworld", "task": "text", "size": 3}
    return Mixture.from_entries([{"name": "llava_json", "path": os.fspath(records)}, world])


@pytest.fixture
def processor(tiny_model):
    return Processor.from_model(tiny_model)


def draws(*numbers, source=0):
    return [Draw(source, n) for n in numbers]


def values(samples):
    """Which images the samples hold, by the value of their first pixel."""
    return [int(sample.pixels[0, 0, 0, 0]) // 30 for sample in samples]


def test_broken_records_are_left_out_and_nothing_takes_their_place(mixture, processor):
    samples, broken = make_samples(mixture, draws(0, 1, 2, 3, 4, 5, 6), processor, "answers", "skip")
    assert values(samples) == [0, 1, 3, 6]
    assert [b.origin.rpartition("record ")[2][0] for b in broken] == ["2", "4", "5"]
    assert {b.source for b in broken} == {mixture.names[0]}
    for b, why in zip(broken, ["2.png does not exist", "4.png: cut off or damaged", "3 <image> markers"], strict=True):
        assert why in b.reason
        assert not b.reason.startswith(b.origin)


def test_what_is_left_is_what_the_processor_makes_of_it(mixture, processor):
    samples, _ = make_samples(mixture, draws(2, 3), processor, "answers", "skip")
    alone = processor.make_training_sample(mixture[Draw(0, 3)])
    assert torch.equal(samples[0].pixels, alone.pixels)
    assert torch.equal(samples[0].encoded.input_ids, alone.encoded.input_ids)


def test_draws_of_a_mixture_are_taken_as_they_are(mixture, processor):
    samples, broken = make_samples(mixture, mixture.draw_all(), processor, "answers", "skip")
    assert (len(samples), len(broken)) == (4 + 3, 3)


def test_a_broken_draw_gives_nothing_rather_than_something_else(mixture, processor):
    samples, broken = make_samples(mixture, draws(4), processor, "answers", "skip")
    assert samples == []
    assert len(broken) == 1


@pytest.mark.parametrize("number", [2, 4, 5])
def test_raise_stops_at_the_first_broken_record_and_names_it(number, mixture, processor):
    with pytest.raises(DataError, match=rf"records\.json:record {number}"):
        make_samples(mixture, draws(0, number), processor, "answers", "raise")


def test_a_mistake_of_the_program_is_not_a_broken_record(mixture, processor, monkeypatch):
    monkeypatch.setattr(Processor, "make_training_samples", lambda *_: [][0])
    with pytest.raises(IndexError):
        make_samples(mixture, draws(0), processor, "answers", "skip")


def test_an_unknown_policy_names_the_known_ones(mixture, processor):
    with pytest.raises(ConfigError, match="broken='ignore'; write one of raise, skip"):
        make_samples(mixture, draws(0), processor, "answers", "ignore")


# --- the list and its summary


def test_the_list_counts_a_record_once_however_often_it_was_drawn_and_keeps_its_first_reason(tmp_path):
    file = tmp_path / "run" / "broken.jsonl"
    hung, found = SkippedRecord("a.json:record 1", "video.mp4: took longer than 2 s", "0 a"), "video.mp4: in quarantine"
    append_skipped(file, [hung, SkippedRecord("a.json:record 2", "no such file", "0 a")])
    append_skipped(file, [SkippedRecord(hung.origin, found, "0 a")])
    append_skipped(file, [])
    assert read_skipped(file) == [hung, SkippedRecord("a.json:record 2", "no such file", "0 a")]


def test_a_run_without_a_broken_record_has_no_list_and_no_lines(tmp_path):
    append_skipped(tmp_path / "broken.jsonl", [])
    assert not (tmp_path / "broken.jsonl").exists()
    assert read_skipped(tmp_path / "broken.jsonl") == []
    assert format_skipped([], {"a": 3}) == []


def test_the_summary_says_how_many_of_each_source_and_why_most_frequent_first(mixture):
    first, second = mixture.names
    missing = [
        SkippedRecord(f"r{i}", f"/my data/{i}.png: there is no such file; check the path.", first) for i in range(5)
    ]
    cut = [SkippedRecord(f"c{i}", f"/d/c{i}.mp4: cut off or damaged at frame {i}.", first) for i in range(3)]
    other = [SkippedRecord("o1", "an empty turn", second)]
    assert format_skipped([*cut, *missing, *other], count_records(mixture)) == [
        f"{first}: 8 of 7 records left out: 5 x there is no such file; check the path.; "
        "3 x cut off or damaged at frame N.",
        f"{second}: 1 of 3 records left out: 1 x an empty turn",
    ]


def test_rare_reasons_are_counted_together():
    kinds = ["a b", "a b", "c d", "c d", "e f", "e f", "g h", "i j"]
    line = format_skipped([SkippedRecord(str(i), kind, "s") for i, kind in enumerate(kinds)], {})
    assert line == ["s: 8 records left out: 2 x a b; 2 x c d; 2 x e f; 2 x other reasons"]
