"""Choices by log-likelihood: the likeliest letter by transformers' logits, scored by each task's own rule."""

import re
from string import ascii_uppercase

import pytest
import torch

from mmblocks.cli import main
from mmblocks.cli.eval_words import EvalWords
from mmblocks.data.sample.encode import encode_prompt
from mmblocks.errors import ConfigError
from mmblocks.eval.document import ScoredDocument
from mmblocks.eval.likelihoods import ByLikelihood
from mmblocks.eval.predictions import read_predictions
from mmblocks.eval.report import make_report
from mmblocks.eval.runs import NamedTask, Selection, run_task
from mmblocks.eval.tasks import ChoiceTask, tasks
from tests.eval.tiny_benchmarks import TINY, VARIANTS, write_image, write_json, write_lines, write_mmbench
from tests.families import lively

WITH_CHOICES = [
    *("ai2d", "egoschema_subset", "mmbench", "mmstar", "mvbench", "nextqa_mc", "perceptiontest"),
    *("scienceqa", "scienceqa_img", "seed", "videomme"),
]
EVERY = [(name, tiny) for made in (TINY, VARIANTS) for name, tiny in made.items() if name in WITH_CHOICES]
COLOURS = ["red", "green", "blue", "yellow"]


@pytest.fixture
def model(tiny_model):
    lively(tiny_model.backbone)
    return tiny_model


# Choices of every task ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tasks)
def test_a_task_is_answered_by_likelihood_or_names_those_that_are(name):
    words = EvalWords.from_words([name, "data=test.json", "answer_by=likelihood"])
    if name in WITH_CHOICES:
        (made,) = words.make_tasks()
        assert made.settings["answer_by"] == "likelihood"
    else:
        with pytest.raises(ConfigError, match=f"{name}: answer_by=likelihood .* one of {', '.join(WITH_CHOICES)}"):
            words.make_tasks()


@pytest.mark.parametrize(("name", "tiny"), EVERY)
def test_the_choices_are_the_letters_of_the_prompt_and_one_is_right(name, tiny, tmp_path):
    task = tasks.build(name, **tiny.write(tmp_path), **tiny.settings)
    assert isinstance(task, ChoiceTask)
    for document in task.read_documents():
        prompt = task.ask(document).messages[-1].text
        shown = [letter for letter in ascii_uppercase if re.search(rf"\b{letter}[.:)] ", prompt)]
        assert [*task.list_choices(document)] == shown
        scores = [task.score(document, letter)["accuracy"] for letter in shown]
        assert sorted(scores, key=str) == [0.0] * (len(shown) - 1) + [1.0]


@pytest.mark.parametrize(
    ("question", "letters"),
    [
        ("What is A: or B?\nOptions: A: x, B: y, C: B: z, D: vitamin E.", "ABCD"),
        ("Which?\nChoices:\n(A) one\n(B) CD: two", "AB"),
        ("Is it A. or B.?\nOptions: A: x., B: y.", "AB"),
    ],
)
def test_options_in_the_text_of_mmstar_are_read_in_their_order(question, letters, tmp_path):
    rows = [{"index": 1, "question": question, "answer": "A", "image": write_image(tmp_path)}]
    task = tasks.build("mmstar", data=write_lines(tmp_path / "mmstar.jsonl", rows))
    assert "".join(task.list_choices(task.read_documents()[0])) == letters


# Answers ----------------------------------------------------------------------------------------------------------------


def write_questions(folder):
    """Questions of ScienceQA without an image, about two to four options each."""
    problem = {"hint": "", "image": None, "subject": "x"}
    problems = {
        str(i): {
            **problem,
            "question": f"Which one is {COLOURS[i % 4]}, the circle or the square? {i}",
            "choices": COLOURS[: 2 + i % 3],
            "answer": i % 2,
        }
        for i in range(12)
    }
    write_json(folder / "problems.json", problems)
    write_json(folder / "pid_splits.json", {"test": [*problems]})
    return tasks.build("scienceqa", data=str(folder))


@torch.no_grad()
def choose_by_transformers(model, task, document):
    """The letter of the highest logit behind the prompt: a letter is one token here."""
    tokenizer = model.backbone.text_tokenizer
    settings = {
        "template": model.template,
        "text_tokenizer": tokenizer,
        "placeholder_id": model.backbone.placeholder_id,
    }
    prompt = encode_prompt(task.ask(document), [], **settings)
    (row,) = model.backbone.lm(prompt.input_ids[None]).logits[:, -1]
    letters = "ABCD"[: len(document.fields["choices"])]
    ids = [tokenizer.encode(letter, add_special_tokens=False) for letter in letters]
    assert all(len(one) == 1 for one in ids)
    return letters[int(torch.tensor([row[one[0]] for one in ids]).argmax())]


def test_the_answer_is_the_likeliest_letter_and_the_summary_the_tasks_own(model, tmp_path):
    task = write_questions(tmp_path)
    run_task(model, NamedTask.from_task("scienceqa", ByLikelihood(task)), tmp_path / "run", Selection(), {})
    known = read_predictions(tmp_path / "run")
    documents = [*task.read_documents()]
    expected = [choose_by_transformers(model, task, document) for document in documents]
    assert [known[number].answer for number in range(12)] == expected
    assert len({*expected}) > 1
    rows = [
        ScoredDocument.from_document(document, answer, task.score(document, answer))
        for document, answer in zip(documents, expected, strict=True)
    ]
    assert make_report("scienceqa", ByLikelihood(task), known.values()).values == task.summarise(rows)


def test_rotations_of_mmbench_are_right_together_or_not_at_all(tmp_path, capsys):
    data = write_mmbench(tmp_path)["data"]
    words = ["eval", "mmbench", f"data={data}", "answer_by=likelihood", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert "| mmbench | circular |" in capsys.readouterr().out
    known = read_predictions(tmp_path / "out/mmbench")
    assert all(prediction.answer in "ABC" for prediction in known.values())
    task = tasks.build("mmbench", data=data)
    for number, document in enumerate(task.read_documents()):
        assert known[number].scores == task.score(document, known[number].answer)


def test_a_question_whose_options_cannot_be_read_harms_no_other(model, tmp_path):
    questions = ["Which?\nOptions: A: red, B: blue", "Which?"]
    rows = [
        {"index": i, "question": text, "answer": "A", "image": write_image(tmp_path)}
        for i, text in enumerate(questions)
    ]
    task = tasks.build("mmstar", data=write_lines(tmp_path / "mmstar.jsonl", rows))
    run_task(model, NamedTask.from_task("mmstar", ByLikelihood(task)), tmp_path / "run", Selection(), {})
    answered, fault = read_predictions(tmp_path / "run").values()
    assert answered.answer in "AB"
    assert "no options can be read in 'Which?'" in fault.fault


# Settings -----------------------------------------------------------------------------------------------------------------


def test_a_folder_of_generated_answers_is_not_resumed_by_likelihood(tmp_path, capsys):
    words = ["eval", "mmbench", f"data={write_mmbench(tmp_path)['data']}", "--out", str(tmp_path / "out")]
    assert main([*words, "max_new_tokens=2"]) == 0
    assert main([*words, "answer_by=likelihood"]) == 2
    assert "not {'answer_by': 'likelihood', 'data': " in capsys.readouterr().err


def test_one_of_several_tasks_is_answered_by_likelihood():
    words = ["mmstar,textvqa", "data=test.json", "answer_by=likelihood", "textvqa.answer_by=generation"]
    mmstar, textvqa = EvalWords.from_words(words).make_tasks()
    assert isinstance(mmstar.task, ByLikelihood)
    assert textvqa.task == tasks.build("textvqa", data="test.json")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["mmstar", "answer_by=loglikelihood"], "answer_by='loglikelihood' is not one of"),
        (["mmstar", "answer_by=likelihood", "max_new_tokens=3"], "nothing is generated, so max_new_tokens="),
        (
            ["metric=choice", "answer_by=likelihood"],
            "data: answer_by=likelihood compares options, and this task has none",
        ),
        (["mmstar", "answerby=likelihood"], "Did you mean 'answer_by'"),
    ],
)
def test_words_of_answering_that_do_not_fit_are_refused(words, says):
    with pytest.raises(ConfigError, match=says):
        EvalWords.from_words([*words, "data=test.json"]).make_tasks()
