"""lmms-eval itself runs the plug-in on made-up documents; its scores are those of mmblocks' own task on the same file.

pytest -m lmms tests/lmms
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

import mmblocks
from mmblocks.eval.document import ScoredDocument
from tests.lmms import made_up

pytestmark = pytest.mark.lmms
METRICS = ("accuracy", "precision", "recall", "f1", "yes_ratio")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return made_up.write_documents(tmp_path_factory.mktemp("data") / "pope.parquet", 12)


@pytest.fixture(scope="module")
def folder(data):
    """A folder with a trained tiny model."""
    made_up.write_model(data.parent / "model", *made_up.open_task(data))
    return data.parent


@pytest.fixture(scope="module")
def model(folder):
    return mmblocks.load(folder / "model").eval()


def run_lmms_eval(environment, folder, tasks, *options):
    """Results by task, as lmms-eval writes them."""
    site = next(environment.glob("lib/python*/site-packages/lmms_eval"))
    included = made_up.write_tasks(folder / "tasks", folder / "pope.parquet", site)
    out = folder / "_".join(("out", *tasks, *(option.strip("-") for option in options)))
    command = [
        *(str(environment / "bin/python"), "-m", "lmms_eval", "--model", "mmblocks", *options),
        *("--model_args", f"pretrained={folder / 'model'},device=cpu", "--include_path", str(included)),
        *("--tasks", ",".join(tasks), "--output_path", str(out), "--batch_size", "1", "--verbosity", "DEBUG"),
    ]
    settings = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env={**inherited, **settings}, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    (results,) = out.rglob("*_results.json")
    return json.loads(Path(results).read_text())["results"]


def summarise_answers(model, data):
    """The table of mmblocks' own task, as shares."""
    task, documents = made_up.open_task(data)
    answers = mmblocks.answer(model, [task.ask(document) for document in documents], task.decoding)
    rows = [
        ScoredDocument.from_document(document, answer, task.score(document, answer))
        for document, answer in zip(documents, answers, strict=True)
    ]
    return {name: task.summarise(rows)[name] / 100 for name in METRICS}


def count_right_choices(model, data):
    """The share of documents whose answer has the highest log-probability per token."""
    _, documents = made_up.open_task(data)
    prompts = [mmblocks.Conversation(ask_bare(document), document.where) for document in documents]
    scores = mmblocks.score(model, prompts, [["yes", "no"]] * len(prompts))
    chosen = ["yes" if yes.log_prob / yes.tokens >= no.log_prob / no.tokens else "no" for yes, no in scores]
    right = [word == document.fields["answer"] for word, document in zip(chosen, documents, strict=True)]
    return sum(right) / len(right)


def ask_bare(document):
    """The message of a document without a suffix."""
    text = mmblocks.conversation.Text(f"\n{document.fields['question']}")
    return (mmblocks.conversation.Message("user", (*document.visuals, text)),)


@pytest.mark.parametrize("options", [(), ("--force_simple",)], ids=["chat", "simple"])
def test_scores_of_pope_are_those_of_our_own_task(environment, folder, model, options):
    found = run_lmms_eval(environment, folder, ["made_up_pope"], *options)["made_up_pope"]
    expected = summarise_answers(model, folder / "pope.parquet")
    assert 0 < expected["accuracy"] < 1
    names = {"f1": "f1_score"}
    assert {name: found[f"pope_{names.get(name, name)},none"] for name in METRICS} == pytest.approx(expected)


def test_the_accuracy_of_choices_is_that_of_our_log_probabilities(environment, folder, model):
    found = run_lmms_eval(environment, folder, ["made_up_choice"], "--force_simple")["made_up_choice"]
    expected = count_right_choices(model, folder / "pope.parquet")
    assert 0 < expected < 1
    assert found["acc,none"] == pytest.approx(expected)
