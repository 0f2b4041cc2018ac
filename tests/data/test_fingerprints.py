"""What a record says and shows, as numbers: equal after a copy or another way to write it, others after an edit; all sources."""

import json
import os
import shutil
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from mmblocks.data.mixing import fingerprints as module
from mmblocks.data.mixing.fingerprints import UNREADABLE, Fingerprints, fingerprint_draws
from mmblocks.data.mixing.mixture import Mixture

N = 4


def save_picture(path, value, size=24):
    """Uncompressed, so that images of one size are files of one length."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (value,) * 3).save(path, "BMP")


def picture_bytes(value):
    buffer = BytesIO()
    Image.new("RGB", (24, 24), (value,) * 3).save(buffer, "BMP")
    return buffer.getvalue()


def talk(number, answer=None):
    said = [("human", f"<image>\nWhich, {number}?"), ("gpt", answer or f"red {number}")]
    return [{"from": who, "value": text} for who, text in said]


def llava(folder, answers=(), values=range(N), **dump):
    """Record i shows i.bmp; of `answers` {number: text} some are others than usual."""
    for number, value in enumerate(values):
        save_picture(folder / f"{number}.bmp", 10 * value)
    records = [
        {"id": i, "image": f"{i}.bmp", "conversations": talk(i, dict(answers).get(i))} for i in range(len(values))
    ]
    (folder / "d.json").write_text(json.dumps(records, **dump))
    return [{"name": "llava_json", "path": str(folder / "d.json")}]


def lines(folder, **changed):
    llava(folder, **changed)
    records = json.loads((folder / "d.json").read_text())
    (folder / "d.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return [{"name": "llava_json", "path": str(folder / "*.jsonl")}]


def messages(folder, answers=(), values=range(N)):
    llava(folder, answers, values)
    records = [
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image", "image": f"{i}.bmp"}, {"type": "text", "text": "Which?"}],
                },
                {"role": "assistant", "content": dict(answers).get(i, f"red {i}")},
            ]
        }
        for i in range(len(values))
    ]
    (folder / "m.json").write_text(json.dumps(records))
    return [{"name": "messages", "path": str(folder / "m.json")}]


def mixture_file(folder, **changed):
    llava(folder, **changed)
    (folder / "mix.yaml").write_text("datasets:\n- json_path: d.json\n  sampling_strategy: all\n")
    return [{"name": "llava_mixture", "path": str(folder / "mix.yaml")}]


def parquet(folder, answers=(), values=range(N)):
    rows = [
        {"conversations": talk(i, dict(answers).get(i)), "image": {"bytes": picture_bytes(10 * v), "path": f"{i}.bmp"}}
        for i, v in enumerate(values)
    ]
    Dataset.from_list(rows).to_parquet(folder / "t.parquet")
    return [{"name": "parquet", "path": str(folder / "t.parquet"), "cache": str(folder / "cache")}]


def tars(folder, answers=(), values=range(N)):
    with tarfile.open(folder / "t.tar", "w") as archive:
        for i, value in enumerate(values):
            said = json.dumps({"conversations": talk(i, dict(answers).get(i))}).encode()
            for name, content in ((f"{i}.json", said), (f"{i}.bmp", picture_bytes(10 * value))):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, BytesIO(content))
    return [{"name": "webdataset", "path": str(folder / "t.tar")}]


def pairs(folder, answers=(), values=range(N)):
    """Of a pair it is the rejected answer that is another one."""
    llava(folder, values=values)
    records = [
        {"image": f"{i}.bmp", "prompt": "Which?", "chosen": "red", "rejected": dict(answers).get(i, f"blue {i}")}
        for i in range(len(values))
    ]
    (folder / "p.json").write_text(json.dumps(records))
    return [{"name": "llava_pairs", "path": str(folder / "p.json")}]


def frames(folder, answers=(), values=range(N)):
    """Clips as folders of three images, of which the second is what `values` says."""
    for number, value in enumerate(values):
        for frame, shade in enumerate((200, 10 * value, 100)):
            save_picture(folder / f"{number}" / f"{frame}.bmp", shade)
    records = [
        {
            "video": f"{i}",
            "conversations": [
                {"from": "human", "value": "<video>\nWhich?"},
                {"from": "gpt", "value": dict(answers).get(i, "red")},
            ],
        }
        for i in range(len(values))
    ]
    (folder / "f.json").write_text(json.dumps(records))
    return [{"name": "llava_json", "path": str(folder / "f.json")}]


def prompted(folder, **changed):
    return [{**llava(folder, **changed)[0], "subset": "end:4", "prompt": "One word."}]


SOURCES = [llava, lines, messages, mixture_file, parquet, tars, pairs, frames, prompted]


def seen(specs, before=None, **given):
    mixture = Mixture.from_entries(specs)
    return fingerprint_draws(mixture, mixture.draw_all(), before=before, **given)


def differing(one, other):
    """Numbers of the records whose text, and of those whose media differ."""
    return np.flatnonzero(one.text != other.text).tolist(), np.flatnonzero(one.media != other.media).tolist()


@pytest.mark.parametrize("source", SOURCES)
def test_an_edited_answer_and_a_replaced_picture_are_told_apart_in_every_source(source, tmp_path):
    first = seen(source(tmp_path))
    assert len(first) == N
    assert differing(first, seen(source(tmp_path))) == ([], [])
    edited = seen(source(tmp_path, answers={2: "blue"}), first)
    assert differing(first, edited) == ([2], [])
    replaced = seen(source(tmp_path, values=[0, 9, 2, 3]), first)
    assert differing(first, replaced) == ([], [1])
    assert len({first.digest, edited.digest, replaced.digest}) == 3


def test_another_way_to_write_the_same_records_is_no_difference(tmp_path):
    first = seen(llava(tmp_path))
    file = tmp_path / "d.json"
    records = json.loads(file.read_text())
    for written in (
        json.dumps(records, indent=4, ensure_ascii=False),
        json.dumps([dict(reversed(one.items())) for one in records]),
        "\n\n".join(map(json.dumps, records)),
        json.dumps([{**one, "id": f"other {i}"} for i, one in enumerate(records)]),
    ):
        file.write_text(written)
        assert seen([{"name": "llava_json", "path": str(file)}], first).digest == first.digest


def test_a_copied_a_moved_and_a_touched_picture_is_no_difference(tmp_path):
    first = seen(llava(tmp_path / "a"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for file in (tmp_path / "b").iterdir():
        os.utime(file, (1, 1))
    other = [{"name": "llava_json", "path": str(tmp_path / "b" / "d.json")}]
    assert seen(other, first).digest == seen(other).digest == first.digest


def test_a_picture_of_the_same_length_and_time_is_a_difference(tmp_path):
    specs = llava(tmp_path)
    first, picture = seen(specs), tmp_path / "3.bmp"
    times = picture.stat()
    save_picture(picture, 77)
    os.utime(picture, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (picture.stat().st_size, picture.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    assert differing(first, seen(specs, first)) == ([], [3])


def test_of_a_long_file_the_length_and_both_ends_count(tmp_path):
    specs, picture = llava(tmp_path), tmp_path / "0.bmp"
    save_picture(picture, 5, size=400)
    whole = picture.read_bytes()
    first = seen(specs)
    for changed in (whole[:-1] + b"x", whole + b"x", b"x" + whole[1:]):
        picture.write_bytes(changed)
        assert differing(first, seen(specs, first)) == ([], [0])
    picture.write_bytes(whole)
    assert seen(specs, first).digest == first.digest


def test_files_that_look_as_they_did_are_not_read_again(tmp_path, monkeypatch):
    specs = llava(tmp_path)
    first, opened = seen(specs), []
    read = module._read_content
    monkeypatch.setattr(module, "_read_content", lambda source: opened.append(Path(source).name) or read(source))
    save_picture(tmp_path / "1.bmp", 99)
    assert differing(first, seen(specs, first)) == ([], [1])
    assert opened == ["1.bmp"]


def test_the_order_of_pictures_counts_and_their_names_do_not(tmp_path):
    specs = llava(tmp_path)
    said = [{"from": "human", "value": "<image><image>?"}, {"from": "gpt", "value": "red"}]

    def of(*names):
        (tmp_path / "d.json").write_text(json.dumps([{"image": list(names), "conversations": said}]))
        return seen(specs).media.item()

    shutil.copy(tmp_path / "1.bmp", tmp_path / "same.bmp")
    assert of("0.bmp", "1.bmp") == of("0.bmp", "same.bmp")
    assert len({of("0.bmp", "1.bmp"), of("1.bmp", "0.bmp"), of("0.bmp", "0.bmp"), of("1.bmp", "1.bmp")}) == 4


@pytest.mark.parametrize(
    "edit",
    [
        lambda turns: turns[1].update(loss=False),
        lambda turns: turns[0].update({"from": "system"}),
        lambda turns: turns.append({"from": "gpt", "value": "more"}),
        lambda turns: turns[0].update(value="Which, 1? "),
    ],
)
def test_whatever_decides_what_is_learned_counts(edit, tmp_path):
    def of(turns):
        (tmp_path / "d.json").write_text(json.dumps([{"conversations": turns}]))
        return seen([{"name": "llava_json", "path": str(tmp_path / "d.json")}])

    turns = [{"from": "human", "value": "Which, 1?"}, {"from": "gpt", "value": "red"}, {"from": "human", "value": "Q"}]
    first = of([*turns, {"from": "gpt", "value": "blue"}])
    edit(turns)
    assert differing(first, of([*turns, {"from": "gpt", "value": "blue"}])) == ([0], [])


def test_a_record_that_cannot_be_read_has_none_and_hinders_no_other(tmp_path):
    specs = llava(tmp_path)
    whole = seen(specs)
    (tmp_path / "2.bmp").unlink()
    found = seen(specs, whole)
    assert found.text.tolist() == [*whole.text[:2], UNREADABLE.text, whole.text[3]]


def test_a_pipe_in_place_of_a_picture_is_not_waited_for(tmp_path):
    specs = llava(tmp_path)
    (tmp_path / "2.bmp").unlink()
    os.mkfifo(tmp_path / "2.bmp")
    assert len(seen(specs)) == N


def test_records_that_are_made_are_not_read(tmp_path, monkeypatch):
    world = {"name": "tinyworld", "task": "single", "size": 3, "subset": "first:2", "prompt": "One word."}
    mixture = Mixture.from_entries([world, *llava(tmp_path)])
    read = []
    real = Mixture.__getitem__
    monkeypatch.setattr(Mixture, "__getitem__", lambda self, draw: read.append(draw.source) or real(self, draw))
    found = fingerprint_draws(mixture, mixture.draw_all())
    assert set(read) == {1}
    assert found.sizes == (2, N)


def test_worker_processes_find_the_same(tmp_path):
    specs = llava(tmp_path)
    assert seen(specs, workers=2).digest == seen(specs).digest


def test_fingerprints_are_shown_by_their_shape(tmp_path):
    assert "int64" in repr(Fingerprints.from_draws(Mixture.from_entries(llava(tmp_path)), {}))
