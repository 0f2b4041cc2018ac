"""Scores of tasks that a run measures: those that `mmblocks eval` gives of the same weights, for any number of processes."""

import json
import logging

import pytest
from PIL import Image

from mmblocks.cli import main
from mmblocks.errors import ConfigError, DataError
from mmblocks.eval.report import TaskReport
from mmblocks.eval.task_settings import PlannedTask
from mmblocks.train import run
from mmblocks.train.checks.run import check_run

ADAPTERS = {"projector": 1e-3, "lora": {"lr": 1e-3, "rank": 4, "dropout": 0.0}}
SHOWN = "red", "blue", "green", "white", "black"


@pytest.fixture
def val(tmp_path):
    """Five questions with images and answers, in LLaVA's format."""
    records = []
    for number, colour in enumerate(SHOWN):
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{colour}.png")
        said = [("human", "<image>\nWhich colour is it?"), ("gpt", f"a {colour} square")]
        turns = [{"from": who, "value": text} for who, text in said]
        records.append({"id": str(number), "image": f"{colour}.png", "conversations": turns})
    (tmp_path / "val.json").write_text(json.dumps(records))
    return str(tmp_path / "val.json")


def ask(val, **more):
    """An evaluation by the loss of the answers and by generated ones."""
    tasks = [
        {"data": val, "metric": "rouge_l", "label": "words", "max_new_tokens": 8},
        {"data": val, "metric": "loss", "label": "likelihood", "limit": 4},
    ]
    return {"every": 2, "tasks": tasks, **more}


def measured(out):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if any(name.startswith("eval/") for name in row)]


def score_saved(model, *words, capsys):
    capsys.readouterr()
    assert main(["eval", str(model), *words, "--device", "cpu", "--json"]) == 0
    return json.loads(capsys.readouterr().out)[0]["values"]


@pytest.mark.parametrize("settings", [{}, {"ema": 0.5}, {"train": ADAPTERS}, {"gradient_checkpointing": True}], ids=str)
def test_the_last_measurement_is_what_eval_gives_of_the_saved_model(settings, val, recipe, tmp_path, capsys):
    train = {"train": settings.pop("train")} if "train" in settings else {}
    stages = [{**recipe["stages"][-1], **train, "steps": 2}]
    run({**recipe, **settings, "stages": stages, "evaluate": ask(val)})
    (row,) = measured(tmp_path / "run")
    model = tmp_path / "run/model"
    words = score_saved(model, f"data={val}", "metric=rouge_l", "max_new_tokens=8", capsys=capsys)
    loss = score_saved(model, f"data={val}", "metric=loss", "--limit", "4", capsys=capsys)
    assert row["eval/words/rouge_l"] == pytest.approx(words["rouge_l"])
    assert row["eval/likelihood/loss"] == pytest.approx(loss["loss"], rel=1e-5)
    assert row["eval/likelihood/perplexity"] > 1


def test_answers_and_tables_of_every_measurement_are_kept(val, recipe, tmp_path, caplog):
    stages = [{**recipe["stages"][-1], "name": "last", "steps": 3}]
    with caplog.at_level(logging.INFO):
        run({**recipe, "stages": stages, "evaluate": ask(val)})
    folders = sorted((tmp_path / "run/evaluation").iterdir())
    assert [folder.name for folder in folders] == ["last-2", "last-3"]
    lines = (folders[0] / "words/predictions.jsonl").read_text().splitlines()
    assert len(lines) == len(SHOWN)
    assert "| words | rouge_l |" in (folders[1] / "results.md").read_text()
    assert "stage last, step 3: words/rouge_l" in caplog.text


@pytest.mark.parametrize("train", [{}, {"train": ADAPTERS}], ids=["all parts", "adapters"])
def test_two_processes_measure_what_one_does(train, val, recipe, undisturbed):
    stages = [{**recipe["stages"][-1], "steps": 2, **train}]
    recipe = {**recipe, "stages": stages, "evaluate": ask(val)}
    (alone,), (both,) = (measured(undisturbed(recipe, ranks=ranks)) for ranks in (1, 2))
    assert both.pop("stage") == alone.pop("stage")
    assert both == pytest.approx(alone, rel=1e-5)


def test_half_precision_answers_too(val, recipe, tmp_path):
    stages = [{**recipe["stages"][-1], "steps": 2, "precision": "bfloat16"}]
    run({**recipe, "stages": stages, "evaluate": ask(val)})
    (row,) = measured(tmp_path / "run")
    assert row["eval/likelihood/loss"] > 0


def test_the_best_weights_are_those_of_the_first_number(val, recipe, tmp_path):
    stages = [{**recipe["stages"][-1], "steps": 6}]
    tasks = [{"data": val, "metric": "loss", "number": "perplexity"}]
    run({**recipe, "stages": stages, "evaluate": {"every": 2, "tasks": tasks}, "keep_best": True})
    rows = measured(tmp_path / "run")
    best = json.loads((tmp_path / "run/best/0.json").read_text())
    assert len({row["eval/data/perplexity"] for row in rows}) == 3
    assert best["eval/data/perplexity"] == min(row["eval/data/perplexity"] for row in rows)
    assert next(name for name in best if name.startswith("eval/")) == "eval/data/perplexity"


def test_an_image_that_is_lost_stops_the_run_or_is_left_out(val, recipe, tmp_path):
    stages = [{**recipe["stages"][-1], "steps": 2}]
    (tmp_path / "blue.png").unlink()
    recipe = {**recipe, "stages": stages, "evaluate": ask(val)}
    with pytest.raises(DataError, match=r"words: .*blue\.png.*documents at fault: 1; .*broken=skip"):
        run(recipe)
    run({**recipe, "broken": "skip", "resume": False})
    assert measured(tmp_path / "run")[0]["eval/words/rouge_l"] >= 0


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ([{"name": "popee", "data": "x"}], "evaluate.tasks.0.name: no task is called 'popee'. Did you mean 'pope'?"),
        ([{"data": "nowhere.json"}], "evaluate.tasks.0.data: nowhere.json does not exist"),
        ([{"data": "VAL"}, {"data": "VAL", "metric": "loss"}], "evaluate.tasks.1: two tasks are called 'data'"),
        ([{"data": "VAL", "label": "a/b"}], "evaluate.tasks.0.label: label='a/b' names a folder"),
        ([{"data": "VAL", "metric": "judge"}], "evaluate.tasks.0: its answers are scored by a judge"),
        ([{"data": "VAL", "metric": "loss", "temperature": 1.0}], "so temperature= has no effect"),
        ([{"data": "VAL", "limit": "few"}], "evaluate.tasks.0.limit: limit='few' is not int | None"),
        (
            [{"data": "VAL", "metrik": "loss"}],
            "evaluate.tasks.0.metrik is not a setting of 'data'. Did you mean 'metric'?",
        ),
        (["pope"], "evaluate.tasks.0: 'pope' is not a task"),
        ([], "evaluate: it names nothing to measure"),
    ],
)
def test_what_cannot_be_measured_is_found_before_a_run_starts(tasks, said, val, recipe):
    given = [{**one, "data": val} if isinstance(one, dict) and one.get("data") == "VAL" else one for one in tasks]
    assert said in "\n".join(map(str, check_run({**recipe, "evaluate": {"tasks": given}})))


def test_a_number_that_a_task_does_not_have_is_named_with_those_it_has(val):
    planned = PlannedTask.from_settings({"data": val, "metric": "loss", "number": "f1"})
    report = TaskReport("data", 1, (), 0, 1, 0.0, {"loss": 1.0, "perplexity": 2.7}, {})
    with pytest.raises(ConfigError, match="it has no number='f1'; write one of loss, perplexity"):
        planned.list_numbers(report)
