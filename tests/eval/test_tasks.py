"""Every task reads made-up documents in its published format and scores known answers to known numbers."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmblocks.conversation import Text
from mmblocks.errors import ConfigError, DataError
from mmblocks.eval.document import ScoredDocument
from mmblocks.eval.tasks import JudgedTask, tasks
from tests.eval.tiny_benchmarks import TINY, VARIANTS, make_png, write_clips, write_json, write_lines, write_table

EVERY = [*TINY.items(), *VARIANTS.items()]
IDS = [*TINY, *(f"{name}, otherwise published" for name in VARIANTS)]
PAGE = Path(__file__).parents[2] / "docs/reference/tasks.md"
LONG = " ".join(["word <image> **B**"] * 3333)


def read_tiny(name, tiny, folder):
    task = tasks.build(name, **tiny.write(folder), **tiny.settings)
    return task, list(task.read_documents())


def score_answers(task, documents, tiny):
    """The rows of a summary, with the judge's scores of the replies."""
    replies = tiny.replies or ("",) * len(documents)
    rows = []
    for document, answer, reply in zip(documents, tiny.answers, replies, strict=True):
        judged = task.read_reply(reply) if tiny.replies else {}
        rows.append(ScoredDocument.from_document(document, answer, {**task.score(document, answer), **judged}))
    return rows


@pytest.mark.parametrize(("name", "tiny"), EVERY, ids=IDS)
def test_known_answers_give_known_numbers(name, tiny, tmp_path):
    task, documents = read_tiny(name, tiny, tmp_path)
    rows = score_answers(task, documents, tiny)
    assert [row.scores.get(tiny.metric) for row in rows] == pytest.approx(list(tiny.scores), abs=1e-6)
    summary = task.summarise(rows)
    assert {key: summary.get(key) for key in tiny.summary} == pytest.approx(tiny.summary, abs=1e-6)


@pytest.mark.parametrize(("name", "tiny"), EVERY, ids=IDS)
def test_a_question_shows_every_image_or_clip_of_its_document(name, tiny, tmp_path):
    task, documents = read_tiny(name, tiny, tmp_path)
    for document in documents:
        conversation = task.ask(document)
        assert conversation.messages[-1].role == "user"
        assert conversation.origin == document.where
        named = set(re.findall(r"<image \d>", conversation.messages[0].text))  # MMMU shows those alone
        assert len(conversation.visuals) == (len(named) or len(document.visuals))
        assert any(isinstance(part, Text) and part.text.strip() for part in conversation.messages[-1].parts)


# The contract of every task -------------------------------------------------------------------------------------------


def test_every_task_has_made_up_documents():
    assert set(TINY) == set(tasks)


@pytest.mark.parametrize("name", tasks)
def test_a_task_says_where_it_comes_from_and_what_it_reads(name):
    entry = tasks[name]
    assert entry.source.startswith("https://")
    assert entry.summary
    assert entry.builder.files
    assert entry.builder.metric
    assert f"| [`{name}`](#" in PAGE.read_text(encoding="utf-8"), "run python docs/scripts/write_tasks.py"


@pytest.mark.parametrize("answer", ["", " ", LONG, "\x00\ud800", "{'pred': 1}", "1e999", "٣"], ids=range(7))
@pytest.mark.parametrize("name", tasks)
def test_every_answer_has_a_score_by_the_rule(name, answer, tmp_path):
    task, documents = read_tiny(name, TINY[name], tmp_path)
    rows = []
    for document in documents:
        scores = task.score(document, answer)
        if isinstance(task, JudgedTask):
            request = task.ask_judge(document, answer)
            assert answer in request.messages[-1]["content"]
            scores = {**scores, **task.read_reply(answer)}
        assert all(score is None or 0 <= score < float("inf") for score in scores.values())
        rows.append(ScoredDocument.from_document(document, answer, scores))
    summary = task.summarise(rows)
    assert summary
    assert all(isinstance(value, float | int) and value == value for value in summary.values())


@pytest.mark.parametrize("name", tasks)
def test_documents_have_keys_of_their_own_and_the_same_each_time(name, tmp_path):
    task, documents = read_tiny(name, TINY[name], tmp_path)
    keys = [document.key for document in documents]
    assert len(set(keys)) == len(keys) == len(task.read_documents())
    assert [document.key for document in task.read_documents()] == keys
    assert all(str(tmp_path) in document.where for document in documents)


@pytest.mark.parametrize("name", tasks)
def test_fields_of_a_document_can_be_written_as_json(name, tmp_path):
    _, documents = read_tiny(name, TINY[name], tmp_path)
    assert all(json.dumps(dict(document.fields)) for document in documents)


@pytest.mark.parametrize("name", tasks)
def test_a_file_of_another_format_shows_what_it_holds(name, tmp_path):
    data = write_lines(tmp_path / "other.jsonl", [{"what": "is this?"}])
    with pytest.raises(DataError, match=r"other.jsonl:record 0: there is no .* but the first is \{.*what: 'is this\?'"):
        tasks.build(name, data=data).read_documents()


def test_listing_tasks_imports_no_torch():
    code = "import sys; from mmblocks.eval.tasks import tasks; list(tasks); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_other_packages_add_tasks_through_an_entry_point():
    assert tasks.entry_point_group == "mmblocks.task"


def test_an_unknown_task_names_the_closest_one():
    with pytest.raises(ConfigError, match=r"no task is called 'mmmu_val'. Did you mean 'mmmu'\?"):
        tasks.build("mmmu_val", data="x")


# Settings and rules ---------------------------------------------------------------------------------------------------


def test_documents_about_one_image_or_clip_are_of_one_cluster(tmp_path):
    clusters = {}
    for name in ("videomme", "mmbench", "gqa", "pope"):
        (tmp_path / name).mkdir()
        _, documents = read_tiny(name, TINY[name], tmp_path / name)
        clusters[name] = [document.cluster for document in documents]
    assert all(len(set(found)) == 1 and found[0] for found in clusters.values()), clusters


def test_a_random_choice_for_an_answer_without_a_letter_is_a_setting(tmp_path):
    settings = TINY["mmmu"].write(tmp_path)
    first = tasks.build("mmmu", **settings, unparsed="random", seed=3)
    document = first.read_documents()[0]
    drawn = [tasks.build("mmmu", **settings, unparsed="random", seed=i).score(document, "neither") for i in range(20)]
    assert {score["accuracy"] for score in drawn} == {0.0, 1.0}
    assert first.score(document, "neither") == drawn[3]
    assert tasks.build("mmmu", **settings).score(document, "neither") == {"accuracy": None}


def test_images_of_mmmu_stand_in_the_order_of_their_names(tmp_path):
    task, documents = read_tiny("mmmu", TINY["mmmu"], tmp_path)
    assert len(task.ask(documents[0]).visuals) == 1  # <image 1> alone, of two
    assert task.ask(documents[2]).visuals == documents[2].visuals


def test_turns_of_a_multi_view_question_are_messages(tmp_path):
    task, documents = read_tiny("interleave", VARIANTS["interleave"], tmp_path)
    messages = task.ask(documents[0]).messages
    assert [(message.role, message.text) for message in messages] == [
        ("user", "\nWhere?"),
        ("assistant", "Here."),
        ("user", "\nAnd now?"),
    ]


@pytest.mark.parametrize("name", [name for name, tiny in TINY.items() if tiny.replies])
def test_without_replies_of_a_judge_there_are_no_judged_figures(name, tmp_path):
    task, documents = read_tiny(name, TINY[name], tmp_path)
    rows = [ScoredDocument.from_document(document, "x", task.score(document, "x")) for document in documents]
    judged = set(task.read_reply("no reply of this kind"))
    assert isinstance(task, JudgedTask)
    assert not any(key.partition("/")[0] in {*judged, "relative", "quality", "overall"} for key in task.summarise(rows))


def test_a_judge_sees_the_published_instruction_where_a_file_names_it(tmp_path):
    (tmp_path / "judge.txt").write_text("Request: $INST$ Answer: $RESPONSE$ Rate it.")
    settings = TINY["longbench_write"].write(tmp_path)
    task = tasks.build("longbench_write", **settings, judge_prompt=str(tmp_path / "judge.txt"))
    (message,) = task.ask_judge(task.read_documents()[0], "Once $INST$.").messages
    assert message == {"role": "user", "content": "Request: Write. Answer: Once $INST$. Rate it."}
    broken = tasks.build("longbench_write", **settings, judge_prompt=str(tmp_path / "none.txt"))
    with pytest.raises(DataError, match=r"none.txt: the judge's instruction cannot be read"):
        broken.ask_judge(task.read_documents()[0], "x")


def test_the_judge_of_llava_bench_sees_context_question_and_both_answers(tmp_path):
    rules = write_json(tmp_path / "rule.json", {"llava_bench_conv": {"role": "Assistant", "prompt": "Rate both."}})
    task = tasks.build("llava_bench", **TINY["llava_bench"].write(tmp_path), rules=rules)
    documents = task.read_documents()
    (message,) = task.ask_judge(documents[0], "A field.").messages
    assert message["content"] == (
        "[Context]\nAll is red.\n\n[Question]\nWhat?\n\n[Assistant 1]\nA red field.\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nA field.\n\n[End of Assistant 2]\n\n[System]\nRate both.\n\n"
    )
    with pytest.raises(DataError, match=r"there is no prompt for 'llava_bench_detail'; name LLaVA's rule.json"):
        task.ask_judge(documents[2], "x")


def test_the_judge_of_mm_vet_completes_a_row(tmp_path):
    task, documents = read_tiny("mmvet", TINY["mmvet"], tmp_path)
    (message,) = task.ask_judge(documents[0], "a and b").messages
    assert message["content"].endswith("\nWhat? | a <AND> b | a and b |")


# Documents that do not fit their task ---------------------------------------------------------------------------------

CONVERSATION = {"question_type": "open-ended", "sub_task": "ScanQA", "answer": "x"}
BAD_ANSWERS = [
    ("mmbench", {"index": "first", "A": "cat", "B": "dog", "answer": "A"}, "'index' is 'first'; write a whole number"),
    (
        "mmmu",
        {"options": "['a', 'b']", "answer": "C", "question_type": "multiple-choice", "image_1": "red.png"},
        "none of its 2",
    ),
    ("interleave", {**CONVERSATION, "question_type": "free"}, "'question_type' is 'free'; write 'open-ended'"),
    ("interleave", {**CONVERSATION, "question": "<image><image> what?"}, "2 markers but 1 images or videos"),
    ("interleave", {**CONVERSATION, "question": '[{"value": "a"}, {"value": "b"}]'}, "that ends with the user's"),
    (
        "interleave",
        {**CONVERSATION, "question": '[{"value": "a <image>"}, {"value": "<image>"}, {"value": "c"}]'},
        "markers but",
    ),
    ("longbench_write", {"prompt": "Write.", "length": "many"}, "'length' is 'many'; write the number of words"),
    ("ai2d", {"options": ["cat", "dog"], "answer": "horse"}, "the answer 'horse' is none of its 2 options"),
    ("ai2d", {"options": "cat", "answer": "A"}, "'options' is 'cat'; write a list"),
    ("mmstar", {"answer": "a red circle"}, "the answer 'a red circle' is none of the letters A to D"),
    ("pope", {"answer": "perhaps"}, "the answer is 'perhaps'; POPE's answers are yes and no"),
    ("vqav2", {"answers": []}, r"'answers' is \[\]; write a list with at least one"),
    ("okvqa", {"answers": "red"}, "'answers' is 'red'; write a list with at least one"),
    ("nlvr2", {"answer": "perhaps", "images": ["red.png"]}, "the answer is 'perhaps'; NLVR2's are true and false"),
    (
        "mmmu",
        {"question": "<image 2>", "answer": "A", "question_type": "open", "image_1": "red.png"},
        "names <image 2>, but the record has 1 images",
    ),
]


@pytest.mark.parametrize(("name", "fields", "message"), BAD_ANSWERS)
def test_a_document_that_does_not_fit_its_task_is_a_fault(name, fields, message, tmp_path):
    (tmp_path / "red.png").write_bytes(make_png())
    record = {"question_id": 1, "question": "Which?", "image": "red.png", **fields}
    task = tasks.build(name, data=write_json(tmp_path / "a.json", [record]))
    with pytest.raises(DataError, match=rf"a.json:record 0: .*{message}"):
        task.ask(task.read_documents()[0])


def test_an_answer_of_mathvista_is_the_text_of_a_choice_even_where_it_is_a_number(tmp_path):
    (tmp_path / "red.png").write_bytes(make_png())
    record = {"pid": "1", "question": "?", "image": "red.png", "choices": ["2", "4", "1"], "answer": "1"}
    task = tasks.build("mathvista", data=write_json(tmp_path / "a.json", [record]))
    (document,) = task.read_documents()
    assert [task.score(document, answer)["accuracy"] for answer in ("C", "B", "1")] == [1.0, 0.0, 1.0]


def test_a_missing_clip_is_a_fault_and_is_never_asked_about(tmp_path):
    row = {
        "video": "4010",
        "qid": 1,
        "question": "why?",
        "answer": 1,
        "type": "CW",
        **dict.fromkeys(["a0", "a1", "a2", "a3", "a4"], "x"),
    }
    data = write_table(tmp_path / "val.csv", [row])
    task = tasks.build("nextqa_mc", data=data, videos=write_clips(tmp_path, "4011.mp4"))
    with pytest.raises(DataError, match=r"val.csv:line 2: the video '4010' is not in .*clips; add the file"):
        task.read_documents()[0]
