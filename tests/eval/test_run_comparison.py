"""Two runs compared: the numbers, and the page with what was shown to the models."""

import base64
import html
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from mmblocks.assets import find_media
from mmblocks.cli import main
from mmblocks.errors import DataError
from mmblocks.eval import comparison_page, runs
from mmblocks.eval.comparing import compare_runs, to_json
from mmblocks.eval.metrics.direction import is_lower_better
from mmblocks.eval.own_data import OwnData, OwnLoss
from mmblocks.eval.runs import NamedTask, Selection, run_task
from mmblocks.eval.stored_runs import StoredRun
from mmblocks.eval.task_settings import make_named_task
from mmblocks.eval.tasks import tasks
from mmblocks.model.generation.results import Result, Score

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 30), "blue": (30, 30, 220)}
RIGHT = [*COLOURS]
PICTURE = re.compile(r'<img alt="([^"]*)" src="data:image/jpeg;base64,([^"]+)">')


def write_data(folder, name="val.json", questions=None, visuals=None):
    """Own data of an image of each colour, 640 pixels wide."""
    records = []
    for number, (colour, rgb) in enumerate(COLOURS.items()):
        Image.new("RGB", (640, 480), rgb).save(folder / f"{colour}.png")
        question = questions[number] if questions else "Which colour?"
        talk = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": colour}]
        shown = visuals[number] if visuals else {"image": f"{colour}.png"}
        if "video" in shown:
            talk[0]["value"] = talk[0]["value"].replace("<image>", "<video>")
        records.append({"id": colour, **shown, "conversations": talk})
    (folder / name).write_text(json.dumps(records))
    return str(folder / name)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Write a run whose answers are given; nothing else of it is made up."""

    def write_run(name, task, answers, task_name="data"):
        def answer(model, conversations, decoding):
            return [Result((), text, "stop", 1, 1) for text in answers]

        monkeypatch.setattr(runs, "respond", answer)
        run_task(None, NamedTask.from_task(task_name, task), tmp_path / name / task_name, Selection(), {})

    return write_run


@pytest.fixture
def pair(run, tmp_path):
    """The second run is better on red, worse on blue, and equal on green."""
    data = write_data(tmp_path)
    run("a", OwnData(data), ["<b>pink", "green", "blue"])
    run("b", OwnData(data), ["red", "green", ""])
    return tmp_path / "a", tmp_path / "b"


def make_page(pair, tmp_path):
    assert main(["eval", "--compare", *map(str, pair), "--out", str(tmp_path / "out")]) == 0
    return (tmp_path / "out/comparison.html").read_text()


def list_pictures(page):
    return [
        (description, Image.open(io.BytesIO(base64.b64decode(content))))
        for description, content in PICTURE.findall(page)
    ]


def list_articles(page):
    """(class, text) of each document."""
    found = re.findall(r'<article class="(\w+)">(.*?)</article>', page, re.DOTALL)
    return [(name, html.unescape(re.sub(r"<[^>]+>", " ", article))) for name, article in found]


# Numbers --------------------------------------------------------------------------------------------------------------


def test_documents_that_share_an_image_are_one_cluster_in_both_intervals(run, tmp_path):
    shared = [{"image": "red.png"}, {"image": "red.png"}, {"image": "blue.png"}]
    data = write_data(tmp_path, visuals=shared)
    run("a", OwnData(data), ["?", "?", "?"])
    run("b", OwnData(data), ["red", "green", "?"])
    (found,) = compare_runs(tmp_path / "a", tmp_path / "b")
    (metric,) = found.metrics
    assert (metric.documents, metric.clusters) == (3, 2)
    assert metric.difference == pytest.approx(2 / 3)
    assert metric.bootstrap == (0.0, 1.0)  # of two clusters, one drawn twice
    assert metric.paired.p_value > 0.3
    assert compare_runs(tmp_path / "a", tmp_path / "b") == [found]


def test_a_lower_loss_is_better_and_is_no_share(tmp_path, monkeypatch, capsys):
    data = write_data(tmp_path)
    for name, losses in (("a", (0.5, 2.0, 0.25)), ("b", (0.25, 3.0, 0.25))):
        likelihoods = [[Score(-loss, 1, False, ())] for loss in losses]
        monkeypatch.setattr(runs, "score", lambda *_, likelihoods=likelihoods: likelihoods)
        run_task(None, NamedTask.from_task("data", OwnLoss(data)), tmp_path / name / "data", Selection(), {})
    page = make_page((tmp_path / "a", tmp_path / "b"), tmp_path)
    assert "| data | loss (lower is better) | +0.250 |" in capsys.readouterr().out
    (_, better), (_, worse) = list_articles(page)
    assert [name for name, _ in list_articles(page)] == ["better", "worse"]
    assert "0.500" in better
    assert "3.000" in worse
    assert len(list_pictures(page)) == 2


def test_less_is_better_of_losses_only():
    assert [is_lower_better(name) for name in ("loss", "perplexity", "exact", "rouge_l")] == [True, True, False, False]


def test_json_has_all_numbers_and_all_documents_that_changed(pair, tmp_path, capsys):
    assert main(["eval", "--compare", *map(str, pair), "--out", str(tmp_path / "out"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "out/comparison.json").read_text())
    (task,) = printed
    (metric,) = task["metrics"]
    assert (metric["difference"], metric["documents"], metric["clusters"]) == (0.0, 3, 3)
    assert metric["bootstrap_95"][0] < 0 < metric["bootstrap_95"][1]
    better, worse = task["changes"]
    assert (better["key"], better["is_better"], better["reference"]) == ("#0", True, ["red"])
    assert better["first"] == {"answer": "<b>pink", "score": 0.0}
    assert (worse["is_better"], worse["second"]["score"]) == (False, None)


def test_without_a_folder_nothing_is_written(pair, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert main(["eval", "--compare", *map(str, pair)]) == 0
    assert "--out DIR writes a page of the documents that changed" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


def test_the_table_that_is_printed_is_written(pair, tmp_path, capsys):
    make_page(pair, tmp_path)
    printed, written = capsys.readouterr().out, (tmp_path / "out/comparison.md").read_text()
    assert printed.startswith(written)
    assert "| data | exact | +0.0 |" in written
    assert "Documents that became better: 1, worse: 1." in written


# Which documents are compared -----------------------------------------------------------------------------------------


def test_runs_on_different_files_of_a_name_are_refused(run, tmp_path):
    run("a", OwnData(write_data(tmp_path)), RIGHT)
    run("b", OwnData(write_data(tmp_path, "other.json", ["What?", "Where?", "When?"])), RIGHT)
    with pytest.raises(
        DataError, match=r"no document in common \(3 have the same key, but were asked another question\)"
    ):
        compare_runs(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    "changed",
    [
        {"questions": ["Which colour?", "Is it green?", "Which colour?"]},
        {"visuals": [{"image": "red.png"}, {"image": "blue.png"}, {"image": "blue.png"}]},
    ],
)
def test_documents_about_which_something_else_was_asked_are_left_out(run, tmp_path, capsys, changed):
    run("a", OwnData(write_data(tmp_path)), ["?", "?", "?"])
    run("b", OwnData(write_data(tmp_path, "other.json", **changed)), RIGHT)
    assert main(["eval", "--compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"\| data \| exact \| \+100\.0 .* \| 2 \| 2 \|", printed)
    assert "Of the same key, but asked another question or about another image: 1" in printed


def test_the_same_data_in_another_folder_are_the_same_documents(run, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"of_{name}").mkdir()
        run(name, OwnData(write_data(tmp_path / f"of_{name}")), RIGHT)
    (found,) = compare_runs(tmp_path / "a", tmp_path / "b")
    assert (found.documents, found.unequal) == (3, 0)


# The page -------------------------------------------------------------------------------------------------------------


def test_the_page_shows_each_changed_document_with_its_image(pair, tmp_path):
    page = make_page(pair, tmp_path)
    (first, better), (second, worse) = list_articles(page)
    assert (first, second) == ("better", "worse")
    for text in ("Which colour?", "<b>pink", "reference", "red", "100.0", "val.json"):
        assert text in better
    assert "no answer was read" in worse
    (_, red), (_, blue) = list_pictures(page)
    assert red.size == blue.size == (320, 240)
    for picture, colour in ((red, "red"), (blue, "blue")):
        assert picture.getpixel((9, 9)) == pytest.approx(COLOURS[colour], abs=3)  # JPEG rounds
    assert "<b>pink" not in page
    assert "prefers-color-scheme: dark" in page
    assert not re.search(r'<script|<link|(src|href)="(?!data:)', page)


def test_of_a_video_there_are_a_few_frames(run, tmp_path):
    video = str(find_media("video.mp4"))
    data = write_data(tmp_path, visuals=[{"video": video}, {"image": "green.png"}, {"image": "blue.png"}])
    run("a", OwnData(data), ["?", "green", "blue"])
    run("b", OwnData(data), RIGHT)
    pictures = list_pictures(make_page((tmp_path / "a", tmp_path / "b"), tmp_path))
    assert len(pictures) == comparison_page.FRAMES
    assert pictures[0][0] == "frame 0, 0.00 s"
    assert all(max(picture.size) <= 160 for _, picture in pictures)


def write_shorter(folder):
    records = json.loads((folder / "val.json").read_text())
    (folder / "val.json").write_text(json.dumps(records[:1]))


@pytest.mark.parametrize(
    ("change", "pictures", "says"),
    [
        (lambda folder: (folder / "val.json").unlink(), 0, r"val\.json"),
        (lambda folder: (folder / "blue.png").unlink(), 1, r"blue\.png does not exist"),
        (lambda folder: (folder / "blue.png").write_bytes(b"no image"), 1, r"blue\.png: not an image"),
        (lambda folder: write_data(folder, questions=["Which colour?", "", "Is it?"]), 1, "have changed.* prompt"),
        (lambda folder: write_data(folder, visuals=[{"image": "red.png"}] * 3), 1, r"have changed.* image or video"),
        (write_shorter, 1, "have changed since the run; there are 1 documents now"),
        (lambda folder: (folder / "a/data/settings.json").write_text("{}"), 0, "KeyError"),
    ],
)
def test_a_document_that_is_gone_or_has_changed_has_no_picture_but_a_reason(pair, tmp_path, change, pictures, says):
    change(tmp_path)
    page = make_page(pair, tmp_path)
    assert len(list_articles(page)) == 2
    assert len(list_pictures(page)) == pictures
    faults = re.findall('<p class="fault">Images and videos are not shown: (.*)</p>', html.unescape(page))
    assert len(faults) == 2 - pictures
    assert all(re.search(says, fault) for fault in faults)


def test_more_documents_than_the_page_shows_are_counted(run, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison_page, "MAX_SHOWN", 2)
    data = write_data(tmp_path)
    run("a", OwnData(data, metric="rouge_l"), ["?", "green and so on", "?"])
    run("b", OwnData(data, metric="rouge_l"), RIGHT)
    page = make_page((tmp_path / "a", tmp_path / "b"), tmp_path)
    assert "<h3>3 better</h3>" in page
    assert "The 2 of the largest differences are shown, 1 are left out" in page
    assert [key for key in ("#0", "#1", "#2") if f"<h4>{key}</h4>" in page] == ["#0", "#2"]
    assert len(to_json(compare_runs(tmp_path / "a", tmp_path / "b"))[0]["changes"]) == 3


def test_a_long_answer_is_folded(run, tmp_path):
    data, long = write_data(tmp_path), "green " * 1000
    run("a", OwnData(data), ["red", long, "blue"])
    run("b", OwnData(data), RIGHT)
    page = make_page((tmp_path / "a", tmp_path / "b"), tmp_path)
    (folded,) = re.findall(r"</summary>(.*?)</details>", page)
    assert folded == long
    assert f"... ({len(long)} characters)</summary>" in page


def test_a_benchmark_is_read_again_by_its_name(run, tmp_path):
    content = base64.b64encode(find_media("image.png").read_bytes()).decode()
    rows = [
        ("index", "image", "question", "answer", "category"),
        *((str(i), content, "Yes?", "Yes", "x") for i in "78"),
    ]
    (tmp_path / "pope.tsv").write_text("\n".join("\t".join(row) for row in rows) + "\n")
    task = tasks.build({"name": "pope_lmms", "data": str(tmp_path / "pope.tsv")})
    run("a", task, ["yes", "no"], "pope_lmms")
    run("b", task, ["yes", "yes"], "pope_lmms")
    page = make_page((tmp_path / "a", tmp_path / "b"), tmp_path)
    ((_, article),) = list_articles(page)
    assert article.split()[0] == "8"
    assert len(list_pictures(page)) == 1
    assert StoredRun.from_folder(tmp_path / "a/pope_lmms").named.task == task


def test_a_task_is_made_of_plain_settings():
    pope = make_named_task({"name": "pope", "data": "x.tsv", "max_new_tokens": 5})
    assert (pope.name, pope.task, pope.decoding.max_new_tokens) == ("pope", tasks.build("pope", data="x.tsv"), 5)
    own = make_named_task({"data": "x.json", "metric": "anls", "ignore": ("a",)})
    assert (own.name, own.task) == ("data", OwnData("x.json", ignore=("a",), metric="anls"))
    assert make_named_task({"data": "x.json", "metric": "loss"}).task == OwnLoss("x.json")


def test_two_runs_of_the_command_are_compared_as_a_page(tmp_path):
    data = write_data(tmp_path)
    for name, words in (("a", []), ("b", ["max_new_tokens=1"])):
        assert main(["eval", f"data={data}", "metric=rouge_l", *words, "--out", str(tmp_path / name)]) == 0
    page = make_page((tmp_path / "a", tmp_path / "b"), tmp_path)
    assert len(list_articles(page)) == len(list_pictures(page))
    assert not list(Path(tmp_path / "a").glob("comparison*"))
