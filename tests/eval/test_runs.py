"""Runs of evaluation: nothing is asked twice, faults are counted, a stopped run ends with the same table."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mmblocks
from mmblocks.assets import find_media, find_tiny_model
from mmblocks.cli import main
from mmblocks.cli.eval_words import EvalWords
from mmblocks.errors import ConfigError, DataError
from mmblocks.eval import runs
from mmblocks.eval.comparing import compare_runs
from mmblocks.eval.own_data import OwnData, OwnLoss
from mmblocks.eval.picture import make_figure
from mmblocks.eval.predictions import read_predictions
from mmblocks.eval.report import TaskReport, make_report
from mmblocks.eval.runs import NamedTask, Selection, run_task
from tests.eval.judge_endpoint import KEY, serve_endpoint

ASKED = {"How many shapes are there?": "3", "What colour is the triangle?": "blue", "What shape is red?": "a circle"}


@pytest.fixture(scope="module")
def model():
    return mmblocks.load(find_tiny_model())


@pytest.fixture
def data(tmp_path):
    """Six records: two of each question, the last of an image that is not there."""
    records = []
    for number, (text, answer) in enumerate([*ASKED.items()] * 2):
        image = str(find_media("image.png")) if number < 5 else "missing.png"
        talk = [{"from": "human", "value": f"<image>\n{text}"}, {"from": "gpt", "value": answer}]
        records.append({"id": str(number), "image": image, "conversations": talk})
    (tmp_path / "val.json").write_text(json.dumps(records))
    return str(tmp_path / "val.json")


def named(data, **decoding):
    return NamedTask.from_task("own", OwnData(data), **decoding)


def test_answers_are_those_of_answer_and_scores_those_of_the_metric(model, data, tmp_path):
    run_task(model, named(data), tmp_path / "run", Selection(), {})
    known = read_predictions(tmp_path / "run")
    asked = [named(data).task.ask(named(data).task.read_documents()[i]) for i in range(5)]
    assert [known[i].answer for i in range(5)] == mmblocks.answer(model, asked)
    assert known[0].answer == "3"
    assert known[0].scores == {"exact": 1.0}
    assert "missing.png" in known[5].fault
    report = make_report("own", OwnData(data), known.values())
    assert (report.documents, len(report.faults)) == (6, 1)
    right = sum(known[i].answer == answer for i, answer in enumerate([*ASKED.values(), *[*ASKED.values()][:2]]))
    assert report.values["exact"] == pytest.approx(100 * right / 5)


def test_a_run_that_was_stopped_asks_nothing_twice_and_gives_the_same_table(model, data, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "DOCUMENTS_AT_ONCE", 2)
    whole, stopped, asked = tmp_path / "whole", tmp_path / "stopped", []
    run_task(model, named(data), whole, Selection(), {})
    respond = runs.respond

    def respond_once(model, conversations, decoding):
        if asked:
            raise KeyboardInterrupt
        asked.extend(conversations)
        return respond(model, conversations, decoding)

    monkeypatch.setattr(runs, "respond", respond_once)
    with pytest.raises(KeyboardInterrupt):
        run_task(model, named(data), stopped, Selection(), {})
    with (stopped / "predictions.jsonl").open("a") as file:
        file.write('{"number": 2, "ans')  # the process ended in the middle of a line
    asked.clear()
    monkeypatch.setattr(runs, "respond", lambda *given: asked.extend(given[1]) or respond(*given))
    run_task(model, named(data), stopped, Selection(), {})
    assert len(asked) == 3

    def answers(folder):
        return [(p.number, p.key, p.answer, p.scores, p.fault) for p in read_predictions(folder).values()]

    assert answers(stopped) == answers(whole)


def test_a_fault_is_asked_again_once_its_file_is_there(model, data, tmp_path):
    run_task(model, named(data), tmp_path / "run", Selection(), {})
    (tmp_path / "missing.png").write_bytes(find_media("image.png").read_bytes())
    run_task(model, named(data), tmp_path / "run", Selection(), {})
    assert not any(prediction.fault for prediction in read_predictions(tmp_path / "run").values())


def test_an_image_that_cannot_be_decoded_harms_no_other_document(model, data, tmp_path):
    content = find_media("image.png").read_bytes()
    (tmp_path / "missing.png").write_bytes(content[: len(content) // 2])
    run_task(model, named(data), tmp_path / "run", Selection(), {})
    known = read_predictions(tmp_path / "run")
    assert [bool(known[i].fault) for i in range(6)] == [False] * 5 + [True]
    assert "missing.png" in known[5].fault


@pytest.mark.parametrize(
    ("changed", "says"),
    [({"decoding": {"max_new_tokens": 3}}, "decoding="), ({"about_model": {"model": "other"}}, "model=")],
)
def test_a_folder_of_other_settings_is_refused(model, data, tmp_path, changed, says):
    run_task(model, named(data), tmp_path / "run", Selection(limit=1), {})
    with pytest.raises(ConfigError, match=rf"holds answers with {says}.*name another folder in --out"):
        run_task(
            model,
            named(data, **changed.get("decoding", {})),
            tmp_path / "run",
            Selection(),
            changed.get("about_model", {}),
        )


def test_processes_share_the_documents():
    numbers = Selection(7, 1).select_numbers(10)
    shares = [Selection(7, 1, rank, 3).take_share(numbers) for rank in range(3)]
    assert sorted(number for share in shares for number in share) == sorted(numbers)
    assert Selection(7, 1).select_numbers(10) != Selection(7, 2).select_numbers(10)


def test_a_limit_of_length_is_counted(model, data, tmp_path):
    run_task(model, named(data, max_new_tokens=1), tmp_path / "run", Selection(), {})
    assert make_report("own", OwnData(data), read_predictions(tmp_path / "run").values()).cut > 0


def test_where_nothing_was_answered_the_first_fault_is_said(model, data, tmp_path):
    records = json.loads(Path(data).read_text())[5:]
    Path(data).write_text(json.dumps(records))
    run_task(model, named(data), tmp_path / "run", Selection(), {})
    with pytest.raises(DataError, match=r"own: no document was answered: .*missing\.png"):
        make_report("own", OwnData(data), read_predictions(tmp_path / "run").values())


def test_two_processes_give_the_table_of_one(data, tmp_path, capsys):
    words = ["eval", f"data={data}", "metric=exact", "--out"]
    assert main([*words, str(tmp_path / "one")]) == 0
    expected = capsys.readouterr().out
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mmblocks"]
    done = subprocess.run([*command, *words, str(tmp_path / "two")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected
    assert (tmp_path / "two/data/predictions-1.jsonl").read_text().count("\n") == 3


def test_the_picture_has_a_bar_for_each_number_of_each_task():
    reports = [
        TaskReport("pope", 10, (), 0, 20, 1.0, {"f1": 80.0, "f1/category/random": 75.0, "no_answer": 1.0}, {"f1": 5.0}),
        TaskReport("mme", 4, ("a.png: missing",), 0, 8, 1.0, {"perception": 1200.0}, {}),
    ]
    first, second = make_figure(reports).axes
    assert [bar.get_width() for bar in first.patches] == [80.0, 75.0]
    assert [label.get_text() for label in first.get_yticklabels()] == ["f1", "f1/category/random"]
    assert second.get_title(loc="left") == "mme: 3 documents"


# Comparison -----------------------------------------------------------------------------------------------------------


def test_two_runs_are_compared_document_by_document(model, data, tmp_path):
    for name, settings in (("a", {}), ("b", {"max_new_tokens": 1})):
        run_task(model, named(data, **settings), tmp_path / name / "own", Selection(), {})
    (same,) = compare_runs(tmp_path / "a", tmp_path / "a")
    assert (same.documents, same.changes) == (5, [])
    (changed,) = compare_runs(tmp_path / "a", tmp_path / "b")
    flipped = {change.before.key for change in changed.changes}
    known = [read_predictions(tmp_path / name / "own") for name in "ab"]
    assert flipped == {known[0][i].key for i in range(5) if known[0][i].scores != known[1][i].scores}


def test_folders_without_a_common_task_say_what_they_hold(tmp_path):
    with pytest.raises(DataError, match=r"holds no task, .* no task; compare two folders"):
        compare_runs(tmp_path, tmp_path)


# The command ----------------------------------------------------------------------------------------------------------


def test_the_command_writes_its_table_and_resumes(data, tmp_path, capsys):
    words = ["eval", f"data={data}", "metric=exact", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert re.search(r"^\| data \| exact | [\d.]+ \| .* \| 5 \|$", first, re.MULTILINE)
    assert "| data | documents that could not be read | 1 |" in first
    assert main(words) == 0
    assert capsys.readouterr().out == first
    assert (tmp_path / "out/results.md").read_text() == first
    assert (tmp_path / "out/results.png").read_bytes().startswith(b"\x89PNG")
    assert main(["eval", "--compare", str(tmp_path / "out"), str(tmp_path / "out")]) == 0
    assert "| data | exact | +0.0 |" in capsys.readouterr().out


def test_a_published_benchmark_is_evaluated_from_its_file(tmp_path, capsys):
    rows = [
        {
            "index": i,
            "image_path": str(find_media("image.png")),
            "question": text,
            "answer": "Yes",
            "category": "random",
        }
        for i, text in enumerate(["Is there a triangle?", "Is there a cat?"])
    ]
    lines = ["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)]
    (tmp_path / "pope.tsv").write_text("\n".join(lines) + "\n")
    assert main(["eval", "pope", f"data={tmp_path / 'pope.tsv'}", "--limit", "2", "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert (report["task"], report["documents"]) == ("pope", 2)
    assert {"f1", "accuracy"} <= report["values"].keys()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pop", "data=x"], "'pop' is neither a task nor a folder nor org/name. Did you mean 'pope'"),
        ([], "no task is named; write one of .*or data=FILE"),
        (["org/m", "pop", "data=x"], "no task is called 'pop'.* Did you mean 'pope'"),
        (["pope,tiny", "data=x"], "'tiny' stands alone"),
        (["a", "b", "c"], "write a model, then tasks"),
        (["data=x", "metirc=exact"], r"nothing reads metirc=.* Did you mean 'metric'"),
        (["data=x", "metric=exat"], r"metric='exat' is not known\. Did you mean 'exact'"),
        (["data=x", "max_new_tokens=many"], "max_new_tokens"),
    ],
)
def test_words_that_nothing_reads_say_what_to_write(words, says, capsys):
    assert main(["eval", *words]) == 2
    assert re.search(says, capsys.readouterr().err)


def test_settings_are_of_all_tasks_or_of_one():
    words = EvalWords.from_words(["m", "pope,vqav2", "data=a", "pope.data=b", "vqav2.rule=lmms", "max_new_tokens=5"])
    pope, vqav2 = words.make_tasks()
    assert (pope.settings["data"], vqav2.settings["data"], vqav2.settings["rule"]) == ("b", "a", "lmms")
    assert pope.decoding.max_new_tokens == vqav2.decoding.max_new_tokens == 5
    assert words.model == "m"


def test_the_selftest_compares_with_the_original_scorers(capsys):
    assert main(["eval", "--selftest"]) == 0
    assert re.search(r"\d{3} golden cases of the original scorers, 0 differ", capsys.readouterr().out)


# Likelihoods ----------------------------------------------------------------------------------------------------------


def test_the_loss_of_a_file_is_that_of_all_tokens_of_its_answers(model, data, tmp_path):
    task = OwnLoss(data)
    run_task(model, NamedTask.from_task("own", task), tmp_path / "run", Selection(), {})
    report = make_report("own", task, read_predictions(tmp_path / "run").values())
    documents = task.read_documents()
    asked = [documents[i] for i in range(5)]
    likelihoods = mmblocks.score(
        model, [task.ask(document) for document in asked], [document.fields["references"] for document in asked]
    )
    total = sum(one.log_prob for (one,) in likelihoods), sum(one.tokens for (one,) in likelihoods)
    assert report.values["loss"] == pytest.approx(-total[0] / total[1])
    assert report.values["perplexity"] == pytest.approx(math.exp(-total[0] / total[1]))
    assert (report.documents, len(report.faults)) == (6, 1)


def test_a_right_answer_is_likelier_than_a_wrong_one(data, tmp_path, capsys):
    def find_loss():
        assert main(["eval", f"data={data}", "metric=loss", "--limit", "1", "--json"]) == 0
        return json.loads(capsys.readouterr().out)[0]["values"]["loss"]

    right = find_loss()
    Path(data).write_text(Path(data).read_text().replace('"3"', '"a green ring"'))
    assert find_loss() > right + 1


def test_decoding_has_no_effect_on_a_loss(data, capsys):
    assert main(["eval", f"data={data}", "metric=loss", "max_new_tokens=3"]) == 2
    assert "nothing is generated, so max_new_tokens= has no effect" in capsys.readouterr().err


def test_a_model_that_was_trained_on_in_its_folder_is_another(data, tmp_path, capsys):
    model = mmblocks.load(find_tiny_model())
    words = ["eval", str(tmp_path / "model"), f"data={data}", "--device", "cpu", "--out", str(tmp_path / "out")]
    mmblocks.save(model, tmp_path / "model")
    assert main(words) == 0
    assert main(words) == 0
    with torch.no_grad():
        for weight in model.projector.parameters():
            weight.add_(1e-3)
    shutil.rmtree(tmp_path / "model")
    mmblocks.save(model, tmp_path / "model")
    assert main(words) == 2
    assert "holds answers with model=" in capsys.readouterr().err


# The judge ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve_endpoint() as server:
        yield server


def test_a_judge_scores_what_no_rule_does(data, tmp_path, capsys, endpoint):
    endpoint.reply = lambda body: "Grade: 7"
    words = ["eval", f"data={data}", "metric=judge", "--out", str(tmp_path / "out"), "--judge-url", endpoint.url]
    assert main(words) == 0
    assert "no judge was asked; name one with --judge" in capsys.readouterr().out
    assert main([*words, "--judge-dry-run"]) == 0
    planned = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(planned) == 5
    assert endpoint.bodies == []
    assert main([*words, "--judge", "some-judge"]) == 0
    table = capsys.readouterr().out
    assert "| data | judge | 70 |" in table
    assert "judge some-judge: 3 replies, 2 stored ones" in table  # two questions are asked twice
    asked = {str(body["messages"]) for body in endpoint.bodies}
    assert asked == {str(request["body"]["messages"]) for request in planned}
    assert main([*words, "--judge", "some-judge"]) == 0
    assert "0 replies, 5 stored ones" in capsys.readouterr().out
    assert len(endpoint.bodies) == 3


def test_a_reply_that_cannot_be_read_is_counted_and_scores_nothing(data, tmp_path, capsys, endpoint):
    endpoint.reply = lambda body: "I like it."
    words = ["eval", f"data={data}", "metric=judge", "--out", str(tmp_path), "--judge-url", endpoint.url]
    assert main([*words, "--judge", "some-judge", "--limit", "1"]) == 0
    assert "1 that could not be read" in capsys.readouterr().out


def test_a_judge_is_not_asked_where_its_replies_would_be_lost(data, capsys, endpoint):
    assert main(["eval", f"data={data}", "metric=judge", "--judge-url", endpoint.url, "--judge", "some-judge"]) == 2
    assert "replies of a judge are kept in the folder --out" in capsys.readouterr().err
    assert endpoint.bodies == []
