"""`inspect`: a user's own records counted, drawn and shown, without a weight."""

import json
import re
import runpy
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from mmblocks.cli import main

ROOT = Path(__file__).parents[2]
RECIPE = "tiny/onevision"
STAGE = ["--stage", "onevision"]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """A LLaVA JSON of an image, two images, a video, a text, and two records that cannot be used."""
    folder = tmp_path_factory.mktemp("mine")
    for name, size in (("wide", (150, 60)), ("small", (40, 40))):
        Image.new("RGB", size, (180, 40, 40)).save(folder / f"{name}.png")
    with av.open(str(folder / "video.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for n in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), n * 12, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    said = [
        ({"image": "wide.png"}, "<image>\nWhat?", "a red circle"),
        ({"image": ["wide.png", "small.png"]}, "<image> or <image>?", "the first one"),
        ({"video": "video.mp4"}, "<video>\nWhat moves?", "nothing moves"),
        ({}, "Hi", "hello there"),
        ({"image": "lost.png"}, "<image>\nWhat?", "nothing"),
        ({}, "Hi", None),
    ]
    raw = []
    for number, (media, asked, answer) in enumerate(said):
        turns = [{"from": "human", "value": asked}, *([{"from": "gpt", "value": answer}] if answer else [])]
        raw.append({"id": f"r{number}", **media, "conversations": turns})
    path = folder / "mine.json"
    path.write_text(json.dumps(raw), encoding="utf-8")
    return path


def test_own_records_are_counted_with_what_is_wrong(records, tmp_path, capsys):
    assert main(["inspect", RECIPE, f"data={records}", *STAGE, "--all", "--out", str(tmp_path)]) == 0
    page = capsys.readouterr().out
    content = page.splitlines()[2].split()[-7:]
    assert content == [
        "6",
        "6",
        "3",
        "1",
        "2",
        "4",
        "2",
    ]  # records, looked at, images, videos, text only, turns, faulty
    assert "1 x cannot be read" in page
    assert "lost.png" in page
    assert "1 x no trained token" in page
    assert "(id r5)" in page
    with Image.open(tmp_path / "onevision.png") as picture:
        assert min(picture.size) > 200


def test_a_record_is_shown_as_the_model_will_see_it(records, tmp_path, capsys):
    assert (
        main(["inspect", RECIPE, f"data={records}", *STAGE, "--record", "1", "--record", "0:2", "--out", str(tmp_path)])
        == 0
    )
    page = capsys.readouterr().out
    assert re.findall(r"\[\[(.*?)\]\]", page, re.DOTALL) == ["the first one<|im_end|>", "nothing moves<|im_end|>"]
    assert re.search(r"user\n<image 1: \d+ tokens> or <image 2: \d+ tokens>\?<\|im_end\|>", page)
    assert "visual   1: image 150x60, shown as multi_image, 1 views" in page
    assert re.search(r"frames 0 \(0.00s\), 2 \(0.20s\), .*19 \(1.90s\) of 20, 10 per second", page)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["onevision-0-1.html", "onevision-0-2.html"]
    assert (tmp_path / "onevision-0-1.html").read_text(encoding="utf-8").count("<img ") == 2


def test_keys_that_may_be_left_out_are_named_beside_the_file(records, tmp_path, capsys):
    path = records.with_name("scored.json")
    path.write_text(json.dumps([{**record, "score": 3} for record in json.loads(records.read_text())[:3]]))
    words = ["inspect", RECIPE, f"data={path}", *STAGE, "--out", str(tmp_path)]
    assert main(words) == 0
    assert "nothing reads the key 'score'" in capsys.readouterr().out
    assert main([*words, "ignore=score,grade"]) == 0
    assert "no faulty of 3 looked at" in capsys.readouterr().out


def test_an_answer_that_the_limit_cuts_is_shown_cut(records, tmp_path, capsys):
    words = ["inspect", RECIPE, f"data={records}", *STAGE, "--out", str(tmp_path), "--record", "3"]
    main(words)
    length = int(re.search(r"tokens +(\d+),", capsys.readouterr().out)[1])
    assert main([*words, f"stages.4.max_tokens={length - 3}", "stages.4.overlong=cut_answer"]) == 0
    page = capsys.readouterr().out
    assert re.findall(r"\[\[(.*?)\]\]", page, re.DOTALL) == ["hello"]
    assert "cut      3 tokens at the end of the last answer" in page
    assert "3 tokens at the end of the last answer" in (tmp_path / "onevision-0-3.html").read_text()


def test_without_a_file_the_recipes_own_data_is_looked_at(tmp_path, capsys):
    assert main(["inspect", RECIPE, "--stage", "align", "--samples", "5", "--out", str(tmp_path)]) == 0
    page = capsys.readouterr().out
    assert page.startswith("stage align\n")
    assert "no faulty of 5 looked at (1000000 records)" in page


def test_without_a_stage_all_are_looked_at_and_the_last_one_shows_records(records, tmp_path, capsys):
    few = ["data=" + str(records), "--out", str(tmp_path), "--samples", "1"]
    assert main(["inspect", RECIPE, *few]) == 0
    assert len(re.findall("^stage ", capsys.readouterr().out, re.MULTILINE)) == 6
    assert main(["inspect", RECIPE, *few, "--record", "3"]) == 0
    assert capsys.readouterr().out.startswith("stage onevision_again\n")


def test_media_may_lie_elsewhere(records, tmp_path, capsys):
    alone = tmp_path / "alone.json"
    alone.write_bytes(records.read_bytes())
    words = [f"data={alone}", f"images={records.parent}", *STAGE, "--record", "0", "--out", str(tmp_path / "out")]
    assert main(["inspect", RECIPE, *words]) == 0
    assert "[[a red circle<|im_end|>]]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["data=mine.csv"], 2, "nothing reads a file of the suffix '.csv'"),
        (["data=nowhere.json"], 1, "nowhere.json"),
        (["images=pictures"], 2, "name the file too"),
        (["--stage", "onevison"], 2, "Did you mean 'onevision'"),
        (["--samples", "0"], 2, "look at 1 record or more"),
        (["data={records}", "--record", "6"], 2, "there are 6 records, counted from 0"),
        (["data={records}", "--record", "4"], 1, "lost.png"),
        (["data={records}", "--record", "5"], 1, "none of its"),
        (["model/projector=identity", "model/backbone=vicuna_7b"], 2, "use 'linear' or 'mlp'"),
    ],
)
def test_what_cannot_be_inspected_is_refused(records, tmp_path, capsys, words, code, message):
    words = [word.format(records=records) for word in words]
    assert main(["inspect", RECIPE, *words, "--out", str(tmp_path)]) == code
    assert message in capsys.readouterr().err


def test_a_system_needs_data(capsys):
    assert main(["inspect", "instructblip/vicuna_7b"]) == 2
    assert "write data=FILE" in capsys.readouterr().err


def test_the_picture_in_the_docs_is_what_its_script_draws():
    script = runpy.run_path(str(ROOT / "docs/scripts/draw_inspect.py"))
    fresh = np.asarray(script["figure"]().convert("RGB")).astype(int)
    with Image.open(ROOT / "docs/images/inspect.png") as kept:
        shown = np.asarray(kept.convert("RGB")).astype(int)
    assert shown.shape == fresh.shape, "run python docs/scripts/draw_inspect.py"
    changed = (np.abs(shown - fresh).max(-1) > 40).mean()
    assert changed < 0.002, "run python docs/scripts/draw_inspect.py"  # fonts may differ between versions of Pillow
