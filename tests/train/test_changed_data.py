"""A run that goes on knows its data: what has changed since it stopped is said with the first record that differs."""

import json
import logging
import os
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from mmblocks.errors import DataError, TrainingInterrupted
from mmblocks.train import run, stage_run

RECORDS = 6
RATES = {"projector": 1e-3, "backbone": 1e-3}
CURE = "Put the data back as they were, resume with the changed data by resume_changed_data=true, or begin anew with resume=false."


def record(number, answer=None):
    said = [("human", f"<image>\nwhat color ? {number}"), ("gpt", answer or f"red {number}")]
    return {"id": number, "image": f"{number}.png", "conversations": [{"from": w, "value": v} for w, v in said]}


def write(folder, records, **dump):
    (folder / "d.json").write_text(json.dumps(records, **dump))


def draw(path, value, size=24):
    Image.new("RGB", (size, size), (value,) * 3).save(path)


def fill(folder):
    for number in range(RECORDS):
        draw(folder / f"{number}.png", 30 * number)
    write(folder, list(map(record, range(RECORDS))))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a test works; paths in recipes are relative to it."""
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


STAGES = {
    "samples": {"steps": 6, "global_batch_size": 2},
    "epochs": {"epochs": 2, "global_batch_size": 2},
    "packed samples": {"steps": 6, "global_batch_size": 2, "pack_tokens": 512},
    "tokens": {"steps": 6, "step_tokens": 400, "pack_tokens": 200},
    "length": {"steps": 6, "global_batch_size": 2, "order": "length"},
}


@pytest.fixture(scope="module")
def recipe(tiny_spec):
    def of(kind="samples", **settings):
        stage = {"name": "all", "data": [{"name": "llava_json", "path": "d.json"}], "train": RATES, **STAGES[kind]}
        own = {"model": tiny_spec, "out": "run", "threads": 1, "save_every": 2, "log_every": 1}
        return {**own, "stages": [stage], **settings}

    return of


@pytest.fixture(scope="module")
def stopped_run(recipe, tmp_path_factory):
    """A folder with data and a run that stopped on them after a save, of each kind of stage once."""
    made = {}

    def of(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("stopped")
            fill(made[kind])
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(made[kind])
                stopped(recipe(kind))
        return made[kind] / "run"

    return of


@pytest.fixture
def stop(folder, stopped_run):
    """The working folder holds a run that stopped."""
    return lambda kind="samples": shutil.copytree(stopped_run(kind), folder / "run")


def stopped(recipe, at=4):
    """Run until the `at`th step, where somebody stops it; a state was saved before."""
    real, calls = stage_run.Stepper.__call__, []

    def step(*arguments):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_run.Stepper, "__call__", step)
        with pytest.raises(TrainingInterrupted):
            run(recipe)


def other_order(folder):
    write(folder, list(map(record, reversed(range(RECORDS)))))


def edited_answer(folder):
    write(folder, [record(number, "blue" if number == 3 else None) for number in range(RECORDS)])


def other_picture(folder):
    draw(folder / "2.png", 255)


def larger_picture(folder):
    draw(folder / "4.png", 120, size=100)


def one_more(folder):
    write(folder, list(map(record, [*range(RECORDS), 0])))


def one_less(folder):
    write(folder, list(map(record, range(RECORDS - 1))))


CHANGES = {
    other_order: r"the records stand in another order: \S*d.json:record 0 \(id 5\) says what \S*d.json:record 5 said "
    r"\(6 of the 6 records that are drawn differ\)",
    edited_answer: r"\S*d.json:record 3 \(id 3\) says something else: its text was edited",
    other_picture: r"\S*d.json:record 2 \(id 2\) shows another image or video under the same name: \S*2.png",
    larger_picture: r"\S*d.json:record 4 \(id 4\) shows another image or video under the same name: \S*4.png",
    one_more: r"'0 llava_json \S*d.json' held 6 records then and holds 7 now",
    one_less: r"'0 llava_json \S*d.json' held 6 records then and holds 5 now",
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_data_are_refused_with_the_first_difference(change, folder, recipe, stop):
    stop()
    change(folder)
    with pytest.raises(
        DataError, match=rf"^stage 'all' was at step 2 of other data: {CHANGES[change]}.*{re.escape(CURE)}$"
    ):
        run(recipe())


@pytest.mark.parametrize("kind", STAGES)
@pytest.mark.parametrize("change", [edited_answer, other_picture])
def test_every_kind_of_stage_knows_its_data(kind, change, folder, recipe, stop):
    stop(kind)
    change(folder)
    with pytest.raises(DataError, match=CHANGES[change]):
        run(recipe(kind))


def touch(folder):
    for file in folder.glob("*.*"):
        os.utime(file)


def copy(folder):
    for file in folder.glob("*.*"):
        fresh = shutil.copyfile(file, folder / f".{file.name}")
        Path(fresh).replace(file)


def other_white_space(folder):
    write(folder, list(map(record, range(RECORDS))), indent=3)


@pytest.mark.parametrize("kind", ["samples", "tokens"])
@pytest.mark.parametrize("change", [touch, copy, other_white_space])
def test_the_same_data_written_anew_are_no_change(change, kind, folder, recipe, stop, caplog):
    stop(kind)
    change(folder)
    with caplog.at_level(logging.WARNING):
        run(recipe(kind))
    assert "other data" not in caplog.text


def test_changed_data_are_taken_where_that_is_asked_for_and_said(folder, recipe, stop, caplog):
    stop()
    edited_answer(folder)
    allowed = recipe(resume_changed_data=True)
    with caplog.at_level(logging.WARNING):
        stopped(allowed, at=3)
    said = "resume_changed_data: stage 'all' resumes at step 2 with other data: d.json:record 3 (id 3) says"
    assert said in caplog.text
    caplog.clear()
    run(recipe())  # its states were made of these data
    assert "other data" not in caplog.text


def test_data_that_were_put_back_are_the_same(folder, recipe, stop):
    stop()
    edited_answer(folder)
    with pytest.raises(DataError, match="other data"):
        run(recipe())
    write(folder, list(map(record, range(RECORDS))))
    run(recipe())


def test_a_run_that_begins_anew_asks_nothing_of_the_old_data(folder, recipe, stop):
    stop()
    edited_answer(folder)
    run(recipe(resume=False))


def test_data_of_a_stage_that_has_not_begun_may_change(folder, recipe):
    """The run stops in the first step of its second stage."""
    two = recipe()
    two["stages"] = [{**two["stages"][0], "name": name, "steps": 2} for name in ("first", "second")]
    stopped(two, at=3)
    edited_answer(folder)
    run(two)


def test_fingerprints_of_finished_stages_are_removed(folder, recipe):
    two = recipe()
    two["stages"] = [{**two["stages"][0], "name": name} for name in ("first", "second")]
    stopped(two, at=10)
    assert [path.name[:10] for path in (folder / "run" / "state").glob("*.npz")] == ["records-1-"]


def test_a_lost_file_of_fingerprints_costs_the_place_of_the_difference_alone(folder, recipe, stop):
    stop()
    for path in (folder / "run" / "state").glob("*.npz"):
        path.write_bytes(path.read_bytes()[:100])
    edited_answer(folder)
    with pytest.raises(DataError, match="other data: its records are drawn or packed in another way"):
        run(recipe())


def test_a_record_that_is_mended_or_breaks_is_a_difference(folder, recipe):
    (folder / "1.png").rename(folder / "away.png")
    stopped(recipe(broken="skip"))
    (folder / "away.png").rename(folder / "1.png")
    with pytest.raises(DataError, match=r"record 1 \(id 1\) could not be used then, and can be now"):
        run(recipe(broken="skip"))
    (folder / "1.png").unlink()
    (folder / "4.png").unlink()
    with pytest.raises(DataError, match=r"record 4.*4.png does not exist.*could be read then"):
        run(recipe(broken="skip"))


def test_held_out_data_that_change_are_warned_of(folder, recipe, caplog):
    held_out = folder / "held_out"
    held_out.mkdir()
    draw(held_out / "0.png", 60)
    write(held_out, [record(0)])
    evaluate = {"data": [{"name": "llava_json", "path": "held_out/d.json"}], "every": 2}
    stopped(recipe(evaluate=evaluate))
    write(held_out, [record(0, "green")])
    with caplog.at_level(logging.WARNING):
        run(recipe(evaluate=evaluate))
    assert "evaluate.data has changed: held_out/d.json:record 0 (id 0) says something else" in caplog.text


def test_two_processes_refuse_changed_data_with_the_words_of_one(folder, recipe, trained, killed_in_step, capfd):
    assert trained(recipe(), ranks=2, patch=killed_in_step(4), seconds=60) != [0, 0]
    edited_answer(folder)
    capfd.readouterr()
    assert trained(recipe(), ranks=2, seconds=60) == [1, 1]
    said = re.findall(
        rf"DataError: stage 'all' was at step 2 of other data: {CHANGES[edited_answer]}", capfd.readouterr().err
    )
    assert len(said) == 2
