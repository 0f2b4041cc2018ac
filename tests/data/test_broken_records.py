"""Every broken record is an error that names file and record, is left out where that is asked for, and hurts no neighbour."""

import errno
import importlib.util
import io
import json
import os
import re
import sys
import tarfile
import time
from pathlib import Path
from unicodedata import category

import pytest
import torch
from datasets import Dataset
from PIL import Image

from mmblocks.data.inspect.lint import lint_mixture
from mmblocks.data.media.visuals import read_visual_shape
from mmblocks.data.mixing.mixture import Draw, Mixture
from mmblocks.data.mixing.skipped_records import (
    append_skipped,
    count_records,
    format_skipped,
    make_samples,
    read_skipped,
)
from mmblocks.data.planning.measure import measure_draws
from mmblocks.data.record_errors import name_errors
from mmblocks.data.sample.encode import NothingTrained
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import CheckpointError, ConfigError, DataError, MachineError
from mmblocks.train import run

spec = importlib.util.spec_from_file_location("broken_records", Path(__file__).with_name("broken_records.py"))
table = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(table)

SECONDS = 20
"""Nothing takes longer in all passes together, on a busy machine too: what waits for a pipe or a device waits for ever."""
SOUND = table.said(table.q("<image>\nwhich ?"), table.a("green"))


@pytest.fixture(scope="module")
def processor(built_tiny_model):
    return Processor.from_model(built_tiny_model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all files of this module are."""
    folder = tmp_path_factory.mktemp("broken")
    Image.new("RGB", (24, 24), (90, 90, 90)).save(folder / "good.png")
    Image.new("RGB", (60, 40)).save(folder / "large.png")
    (folder / "folder").mkdir()
    (folder / "text.mp4").write_text("no video\n" * 50)
    (folder / "empty.mp4").touch()
    return folder


@pytest.fixture(scope="module")
def neighbour(folder, processor):
    """The sample of a sound record."""
    return samples(processor, one_a_line(folder / "sound.jsonl", [json.dumps(SOUND).encode()]))[0][0]


def one_a_line(path, lines):
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return Mixture.from_entries([{"name": "llava_json", "path": str(path)}])


def samples(processor, mixture, policy="raise"):
    return make_samples(mixture, mixture.draw_all(), processor, "answers", policy)


def same(one, other):
    return torch.equal(one.pixels, other.pixels) and all(
        torch.equal(getattr(one.encoded, name), getattr(other.encoded, name)) for name in ("input_ids", "targets")
    )


def require(mixture, expected, processor, neighbour, origin, tmp_path):
    """Record 1 of three comes to what is expected, in every pass over data; 0 and 2 are as if it were not there."""
    begin = time.monotonic()
    found, broken = samples(processor, mixture, "skip")
    lengths = measure_draws(mixture, mixture.draw_all(), processor, policy="skip")
    linted = lint_mixture(mixture, processor).sources[0].faulty
    assert same(found[0], neighbour)
    assert same(found[-1], neighbour)
    if isinstance(expected, table.Reads):
        assert (len(found), broken, lengths.broken) == (3, [], [])
        require_read(mixture[Draw(0, 1)], expected)
    else:
        assert len(found) == 2
        require_named(broken, expected, origin)
        require_listed(broken, tmp_path / "broken.jsonl", mixture)
        with pytest.raises(DataError, match=re.escape(origin)) as raised:
            samples(processor, mixture)
        assert len(str(raised.value)) < 5000
        assert len(linted) <= 1  # it knows headers alone
        assert [b.origin.partition(" (id ")[0] for b in lengths.broken] in ([], [origin])
    assert time.monotonic() - begin < SECONDS


def require_read(conversation, expected):
    answers = [message.text for message in conversation.messages if message.role == "assistant"]
    assert [answer.strip(UNSEEN) for answer in answers] == expected.answer.split("|")
    assert [tuple(read_visual_shape(visual).size) for visual in conversation.visuals] == list(expected.sizes)


def require_named(broken, expected, origin):
    assert [b.origin.partition(" (id ")[0] for b in broken] == [origin]
    whole = f"{broken[0].origin}: {broken[0].reason}"
    assert re.search(expected, whole, re.DOTALL), whole
    assert not any(category(letter) in ("Cs", "Cf") or letter == "\0" for letter in whole)


def require_listed(broken, file, mixture):
    append_skipped(file, broken)
    assert read_skipped(file) == broken
    assert format_skipped(broken, count_records(mixture))[0].startswith(f"{mixture.names[0]}: 1 of ")


UNSEEN = "\0\x07\x1b[31m\x7f\u202e\u2066\u200b \U0001f600"


# Records of JSON, images, videos -------------------------------------------------------------------------------------


def as_line(record):
    """A record as it stands in a file; a text that is an object is JSON already, of a form that Python does not write."""
    return (record if isinstance(record, str) and record.startswith("{") else json.dumps(record)).encode()


def between_sound_ones(path, line):
    sound = json.dumps(SOUND).encode()
    return one_a_line(path, [sound, line, sound])


@pytest.mark.parametrize("name", table.FIELDS)
def test_a_record_with_a_broken_field(name, folder, processor, neighbour, tmp_path):
    record, expected = table.FIELDS[name]
    mixture = between_sound_ones(folder / "field.jsonl", as_line(record))
    require(mixture, expected, processor, neighbour, f"{folder}/field.jsonl:record 1", tmp_path)


@pytest.mark.parametrize("name", table.LINES)
def test_a_broken_line(name, folder, processor, neighbour, tmp_path):
    line, expected = table.LINES[name]
    mixture = between_sound_ones(folder / "line.jsonl", line)
    require(mixture, expected, processor, neighbour, f"{folder}/line.jsonl:record 1", tmp_path)


@pytest.mark.parametrize("name", table.FILES)
def test_a_broken_picture(name, folder, processor, neighbour, tmp_path):
    write, expected = table.FILES[name]
    write(tmp_path / "1.png")
    mixture = between_sound_ones(folder / "picture.jsonl", as_line(table.rec(image=str(tmp_path / "1.png"))))
    require(mixture, expected, processor, neighbour, f"{folder}/picture.jsonl:record 1", tmp_path)


@pytest.mark.parametrize("name", table.CLIPS)
def test_a_broken_clip(name, folder, processor, neighbour, tmp_path):
    write, expected = table.CLIPS[name]
    write(tmp_path / "1.mp4")
    record = table.rec(image=..., video=str(tmp_path / "1.mp4"), conversations=[table.q("<video>?"), table.a()])
    mixture = between_sound_ones(folder / "clip.jsonl", as_line(record))
    require(mixture, expected, processor, neighbour, f"{folder}/clip.jsonl:record 1", tmp_path)


# Tars, tables, pairs --------------------------------------------------------------------------------------------------


def require_all(mixture, cases, processor, origins, per_record=1):
    """Every second record is broken as its case says; the others are read as they are alone."""
    begin = time.monotonic()
    found, broken = samples(processor, mixture, "skip")
    assert len(found) == per_record * (len(cases) + 1)
    assert all(same(sample, found[i % per_record]) for i, sample in enumerate(found))
    assert [b.origin.partition(" (id ")[0] for b in broken] == origins
    for (name, (_, expected)), one in zip(cases.items(), broken, strict=True):
        assert re.search(expected, one.reason, re.DOTALL), (name, one.reason)
    assert time.monotonic() - begin < SECONDS


def test_broken_samples_of_a_tar(folder, processor):
    sound = {"json": json.dumps(SOUND).encode(), "png": table.png(colour=(90, 90, 90))}
    with tarfile.open(folder / "s.tar", "w") as archive:
        for number, case in enumerate(interleaved(sound, table.TAR)):
            for suffix, content in case.items():
                info = tarfile.TarInfo(f"{number:03}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    mixture = Mixture.from_entries([{"name": "webdataset", "path": str(folder / "s.tar")}])
    require_all(mixture, table.TAR, processor, [f"{folder}/s.tar:{2 * i + 1:03}" for i in range(len(table.TAR))])


def test_broken_rows_of_a_table(folder, processor):
    sound = json.dumps(SOUND["conversations"]), table.png(colour=(90, 90, 90))
    rows = [
        {"conversations": said, "image": {"bytes": picture, "path": None}}
        for said, picture in interleaved(sound, table.PARQUET)
    ]
    path = folder / "t.parquet"
    Dataset.from_list(rows).to_parquet(path)
    mixture = Mixture.from_entries([{"name": "parquet", "path": str(path), "cache": str(folder / "cache")}])
    require_all(mixture, table.PARQUET, processor, [f"{path}:row {2 * i + 1}" for i in range(len(table.PARQUET))])


def test_broken_pairs(folder, processor):
    sound = {"prompt": "<image>which ?", "image": "good.png", "chosen": "red", "rejected": "green"}
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in interleaved(sound, table.PAIRS)))
    mixture = Mixture.from_entries([{"name": "llava_pairs", "path": str(path)}])
    origins = [f"{path}:record {2 * i + 1}" for i in range(len(table.PAIRS))]
    require_all(mixture, table.PAIRS, processor, origins, per_record=2)


def interleaved(sound, cases):
    """A sound record before, between and after all broken ones."""
    return [sound, *(one for broken, _ in cases.values() for one in (broken, sound))]


# Opening --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd_files(folder):
    os.mkfifo(folder / "pipe.json")
    (folder / "circle.json").symlink_to("circle.json")
    (folder / "nothing.json").touch()
    (folder / "deep.json").write_text(table.deep(100_000))
    (folder / "zeros.json").write_bytes(b"\0" * 100)
    (folder / "folder.json").mkdir()
    return folder


@pytest.mark.parametrize("source", ["llava_json", "messages", "llava_pairs", "parquet", "webdataset"])
@pytest.mark.parametrize("name", table.PATTERNS)
def test_a_path_that_no_source_can_open(name, source, odd_files, monkeypatch):
    monkeypatch.chdir(odd_files)
    path, expected = table.PATTERNS[name]
    begin = time.monotonic()
    with pytest.raises((DataError, ConfigError)) as raised:
        Mixture.from_entries([{"name": source, "path": path}])
    assert str(raised.value).startswith("data.0: ")
    assert source not in ("llava_json", "messages", "llava_pairs") or re.search(expected, str(raised.value))
    assert time.monotonic() - begin < SECONDS


def test_a_mixture_file_that_cannot_be_read(folder):
    for content in (b"\xff\xfe", b"[" * 1000, b"datasets: 3", b"datasets: [{json_path: [1]}]", b"a: &a [*a]", b"? {}"):
        (folder / "mix.yaml").write_bytes(content)
        with pytest.raises((DataError, ConfigError), match=r"mix\.yaml|data\.0"):
            Mixture.from_entries([{"name": "llava_mixture", "path": str(folder / "mix.yaml")}])


# Who is to blame ------------------------------------------------------------------------------------------------------


class Panic(BaseException):
    """As the libraries in Rust raise it."""


Panic.__name__ = "PanicException"


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), TypeError("y"), RecursionError(), MemoryError(), OverflowError("z"), StopIteration(), Panic("p")],
)
def test_any_error_of_a_record_is_its_own_and_says_its_kind_its_place_and_its_cause(error):
    with (
        pytest.raises(DataError, match=rf"^d.json:record 3: {type(error).__name__}.*report this") as raised,
        name_errors("d.json:record 3"),
    ):
        raise error
    assert raised.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, SystemExit, ConfigError, MachineError, CheckpointError, ImportError, GeneratorExit]
)
def test_what_is_no_error_of_a_record_passes(error):
    with pytest.raises(error, match=r"^stop$"), name_errors("d.json:record 3"):
        raise error("stop")


def test_a_mistake_of_ours_is_told_with_its_line(folder, processor, monkeypatch):
    monkeypatch.setattr(Processor, "plan", lambda self, _: {}["template"])
    mixture = between_sound_ones(folder / "mistake.jsonl", json.dumps(SOUND).encode())
    _, broken = samples(processor, mixture, "skip")
    assert re.search(
        r"KeyError: 'template' \(data/sample/processor.py:\d+\).*report this as a mistake of mmblocks", broken[0].reason
    )


def test_a_class_of_error_is_kept_and_named_once():
    with (
        pytest.raises(NothingTrained, match=r"^a:record 1: nothing$"),
        name_errors("a:record 1"),
        name_errors("a:record 1"),
    ):
        raise NothingTrained("nothing")


def test_no_record_is_left_out_because_the_machine_is_at_its_end(folder, processor, monkeypatch):
    """With too many open files every image would count as broken."""
    mixture = between_sound_ones(folder / "machine.jsonl", json.dumps(SOUND).encode())
    real = Path.open

    def full(self, *arguments, **settings):
        if self.suffix == ".png":
            raise OSError(errno.EMFILE, "Too many open files")
        return real(self, *arguments, **settings)

    monkeypatch.setattr(Path, "open", full)
    for work in (
        lambda: samples(processor, mixture, "skip"),
        lambda: measure_draws(mixture, mixture.draw_all(), processor, policy="skip"),
    ):
        with pytest.raises(
            MachineError, match=r"machine.jsonl:record 0.*too many files are open in this process; raise the limit"
        ):
            work()


# Whole runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stage",
    [
        {"steps": 3, "global_batch_size": 2},
        {"steps": 2, "global_batch_size": 2, "order": "modality_length"},
        {"steps": 2, "step_tokens": 200, "pack_tokens": 100},
        {"epochs": 1, "global_batch_size": 4, "order": "length", "pack_tokens": 500},
    ],
)
def test_a_run_leaves_out_what_is_broken_and_lists_it(stage, folder, tiny_spec, tmp_path):
    broken = [
        as_line(table.FIELDS[name][0])
        for name in ("null", "half of a character in the answer", "an image that is not there")
    ]
    sound = [json.dumps(SOUND).encode()] * 4
    one_a_line(folder / "run.jsonl", [broken[0], *sound, broken[1], broken[2]])
    data = [{"name": "llava_json", "path": str(folder / "run.jsonl")}]
    whole = {"name": "all", "data": data, "train": {"projector": 1e-3}, **stage}
    evaluate = {"data": data, "every": 1}
    out = tmp_path / "run"
    common = {"model": tiny_spec, "out": str(out), "evaluate": evaluate, "cache_features": str(tmp_path / "features")}
    run({**common, "stages": [whole], "broken": "skip"})
    listed = {one.origin for one in read_skipped(out / "broken.jsonl")}
    assert listed <= {f"{folder}/run.jsonl:record {n}" for n in (0, 5, 6)}
    assert "steps" in stage or len(listed) == 3
    with pytest.raises(DataError, match=r"run.jsonl:record"):
        run({**common, "out": str(tmp_path / "other"), "stages": [whole]})
