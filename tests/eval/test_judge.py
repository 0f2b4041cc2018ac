"""A judge is asked once about each answer, whatever its endpoint does; what cannot be read is counted, not scored."""

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from mmblocks.errors import ConfigError, DataError, JudgeError, MissingDependencyError, StorageError
from mmblocks.eval.document import Document, ScoredDocument
from mmblocks.eval.judge import Judge, JudgeUsage, ReferenceJudge, TokenPrice, judge_documents, make_requests
from mmblocks.eval.judge.references import INSTRUCTION
from mmblocks.eval.tasks import JudgedTask, JudgeRequest, tasks
from tests.eval.judge_endpoint import CUT, HALF, KEY, make_completion, serve_endpoint
from tests.eval.tiny_benchmarks import TINY


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve_endpoint() as server:
        yield server


@pytest.fixture
def judge(server, tmp_path):
    return make_judge(server, tmp_path)


def make_judge(server, folder, **settings):
    defaults = {"retries": 2, "first_wait_s": 0.01, "timeout_s": 5.0, "concurrency": 3}
    return Judge("some-model", folder / "cache", server.url, **{**defaults, **settings})


def make_request(content, **settings):
    return JudgeRequest(({"role": "system", "content": "Grade."}, {"role": "user", "content": content}), **settings)


def ask_texts(judge, *contents):
    return {reply.key: reply for reply in judge.ask_all({content: make_request(content) for content in contents})}


# Asking ---------------------------------------------------------------------------------------------------------------


def test_every_request_gets_its_reply(judge):
    replies = ask_texts(judge, "a", "b", "ü and 中")
    assert {key: reply.text for key, reply in replies.items()} == {
        key: f"reply to {key}" for key in ("a", "b", "ü and 中")
    }
    assert not any(reply.cached or reply.fault for reply in replies.values())


def test_a_dry_run_shows_what_is_sent_and_sends_nothing(judge, server, monkeypatch):
    requests = {"one": make_request("a", temperature=0.5, max_tokens=7)}
    monkeypatch.delenv("OPENAI_API_KEY")
    (planned,) = judge.describe_requests(requests)
    assert not server.bodies
    assert (planned.key, planned.url, planned.cached) == ("one", f"{server.url}/chat/completions", False)
    list(judge.ask_all(requests))
    assert server.bodies == [planned.body]
    assert [planned.cached for planned in judge.describe_requests(requests)] == [True]


def test_a_stored_reply_is_not_asked_for_again(judge, server, tmp_path):
    first = ask_texts(judge, "a", "b")
    server.bodies.clear()
    again = ask_texts(make_judge(server, tmp_path), "b", "a")
    assert not server.bodies
    assert {key: reply.text for key, reply in again.items()} == {key: reply.text for key, reply in first.items()}
    assert all(reply.cached and reply.prompt_tokens == 100 for reply in again.values())


@pytest.mark.parametrize("change", [{"temperature": 0.1}, {"max_tokens": 5}, {"attempt": 1}])
def test_another_request_is_asked_anew(judge, server, change):
    ask_texts(judge, "a")
    list(judge.ask_all({"a": make_request("a", **change)}))
    assert len(server.bodies) == 2


def test_requests_with_one_content_are_sent_once(judge, server):
    replies = list(judge.ask_all({"x": make_request("a"), "y": make_request("a")}))
    assert [(reply.key, reply.text, reply.cached) for reply in replies] == [
        ("x", "reply to a", False),
        ("y", "reply to a", True),
    ]
    assert len(server.bodies) == 1


def test_a_damaged_stored_reply_is_asked_for_again(judge, server, caplog):
    ask_texts(judge, "a")
    (stored,) = judge.cache.rglob("*.json")
    for damage in ("", "{", "\xff", '{"reply": {"text": 5}}', "[]", '{"reply": null}'):
        stored.write_bytes(damage.encode("latin-1"))
        assert ask_texts(judge, "a")["a"].text == "reply to a"
    assert len(server.bodies) == 7
    assert "is no stored reply of a judge" in caplog.text


def test_fields_of_the_body_are_added_replaced_and_removed(server, tmp_path):
    judge = make_judge(server, tmp_path, extra_body={"max_tokens": None, "max_completion_tokens": 50, "seed": 1})
    ask_texts(judge, "a")
    (body,) = server.bodies
    assert set(body) == {"model", "messages", "temperature", "max_completion_tokens", "seed"}


def test_no_more_requests_run_at_once_than_are_allowed(server, tmp_path):
    server.always = 0.02
    ask_texts(make_judge(server, tmp_path, concurrency=3), *map(str, range(12)))
    assert server.most_at_once == 3


def test_tokens_are_counted_and_priced_once(judge):
    usage = JudgeUsage()
    requests = {"a": make_request("a"), "b": make_request("b"), "c": make_request("a")}
    for _ in range(2):
        for reply in judge.ask_all(requests):
            usage.add_reply(reply)
    assert (usage.asked, usage.cached, usage.failed) == (2, 4, 0)
    assert (usage.prompt_tokens, usage.reply_tokens) == (200, 20)
    assert usage.compute_cost(TokenPrice(prompt=2.5, reply=10)) == pytest.approx((200 * 2.5 + 20 * 10) / 1e6)


# An endpoint that misbehaves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("misdeeds", [[429, 429], [500], [503, CUT], [HALF, 429], [CUT, CUT]])
def test_what_passes_is_tried_again(judge, server, misdeeds):
    server.misdeeds["a"] = list(misdeeds)
    assert ask_texts(judge, "a", "b")["a"].text == "reply to a"
    assert server.list_asked().count("a") == len(misdeeds) + 1
    assert server.list_asked().count("b") == 1


def test_the_pause_is_the_one_that_the_endpoint_asks_for(judge, server):
    server.misdeeds["a"] = [(429, "{}", {"Retry-After": "0.3"})]
    began = time.monotonic()
    ask_texts(judge, "a")
    assert time.monotonic() - began > 0.3


def test_a_slow_reply_is_asked_for_again(server, tmp_path):
    server.misdeeds["a"] = [1.0]
    replies = ask_texts(make_judge(server, tmp_path, timeout_s=0.3), "a", "b")
    assert replies["a"].text == "reply to a"
    server.misdeeds["c"] = [1.0]
    assert "timed out" in ask_texts(make_judge(server, tmp_path, timeout_s=0.3, retries=0), "c")["c"].fault


@pytest.mark.parametrize(
    ("misdeed", "fault"),
    [
        (400, "no, 400"),
        (
            (200, "<html>busy</html>", {"Content-Type": "text/html"}),
            "no chat completion, it begins '<html>busy</html>'",
        ),
        ((200, "<html>busy</html>"), "no chat completion"),
        ((200, '{"choices": []}'), "no chat completion"),
        ((200, "[1]"), "no chat completion"),
        ((200, "null"), "no chat completion"),
        ((200, ""), "no chat completion"),
        ((200, json.dumps(make_completion(None))), "the reply has no text"),
        ((200, json.dumps(make_completion([1]))), "the reply has no text"),
    ],
)
def test_a_request_without_a_reply_is_a_fault_of_its_own_and_is_not_stored(judge, server, misdeed, fault):
    server.misdeeds["a"] = [misdeed]
    replies = ask_texts(judge, "a", "b")
    assert fault in replies["a"].fault
    assert replies["a"].text is None
    assert replies["b"].text == "reply to b"
    assert server.list_asked().count("a") == 1
    assert ask_texts(judge, "a")["a"].text == "reply to a"


def test_retries_end(judge, server):
    server.misdeeds["a"] = [500] * 10
    assert "no, 500" in ask_texts(judge, "a", "b")["a"].fault
    assert server.list_asked().count("a") == 3


def test_text_that_cannot_be_sent_is_a_fault(judge):
    replies = ask_texts(judge, "\ud800", "b")
    assert replies["b"].text == "reply to b"
    assert replies["\ud800"].fault


def test_an_endpoint_that_cannot_be_reached_is_one_error_that_says_how_to_go_on(judge, server):
    ask_texts(judge, "a")
    with serve_endpoint() as other:
        url = other.url
    closed = Judge("some-model", judge.cache, url, retries=1, first_wait_s=0.01)
    received = []
    with pytest.raises(JudgeError, match=rf"{url} cannot be reached .*tried 2 times.*start again"):
        received.extend(closed.ask_all({key: make_request(key) for key in "abcdefgh"}))
    assert [reply.text for reply in received] == ["reply to a"]


@pytest.mark.parametrize(
    ("misdeed", "message"),
    [
        (401, r"refuses the key \(.*no, 401.*\); set the right key in OPENAI_API_KEY"),
        (404, "name a model that it serves"),
        ((429, '{"error": {"message": "no money", "code": "insufficient_quota"}}'), "quota is used up"),
    ],
)
def test_what_every_request_would_meet_stops_at_once(judge, server, misdeed, message):
    server.always = misdeed
    with pytest.raises(JudgeError, match=message):
        ask_texts(judge, *map(str, range(50)))
    assert len(server.bodies) <= 2 * judge.concurrency


@pytest.mark.parametrize("misdeed", [503, (200, "nonsense")])
def test_an_endpoint_that_only_fails_is_given_up_and_what_came_before_is_kept(server, tmp_path, misdeed):
    judge = make_judge(server, tmp_path, retries=0, concurrency=2)
    ask_texts(judge, "a")
    server.always = misdeed
    with pytest.raises(JudgeError, match=r"10 requests in a row got no reply, the last with: .*start again later"):
        ask_texts(judge, "a", *map(str, range(50)))
    assert len(server.bodies) < 20
    server.always = None
    server.bodies.clear()
    assert all(reply.text for reply in ask_texts(judge, "a", "0").values())
    assert server.list_asked() == ["0"]


def test_the_key_is_written_nowhere(server, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    judge = make_judge(server, tmp_path)
    server.misdeeds["a"] = [(400, json.dumps({"error": {"message": f"bad key {KEY}"}}))]
    server.misdeeds["b"] = [(200, f"nonsense {KEY}")]
    replies = ask_texts(judge, "a", "b", "c")
    server.always = (401, json.dumps({"error": {"message": f"wrong key {KEY}"}}))
    with pytest.raises(JudgeError, match=r"wrong key \*\*\*") as refused:
        ask_texts(judge, "d")
    assert set(server.keys) == {f"Bearer {KEY}"}
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "reply to c" in written
    for text in (written, caplog.text, repr(judge), repr(replies), str(refused.value)):
        assert KEY not in text


def test_the_key_is_that_of_the_named_variable(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OTHER_KEY", "other")
    ask_texts(make_judge(server, tmp_path, key_variable="OTHER_KEY"), "a")
    monkeypatch.delenv("OTHER_KEY")
    ask_texts(make_judge(server, tmp_path, key_variable="OTHER_KEY"), "b")
    assert server.keys == ["Bearer other", "Bearer EMPTY"]
    with pytest.raises(ConfigError, match="needs a key: set the environment variable OTHER_KEY"):
        ask_texts(Judge("some-model", tmp_path / "none", key_variable="OTHER_KEY"), "c")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"concurrency": 0}, "concurrency=0; the least is 1"),
        ({"retries": -1}, "retries"),
        ({"timeout_s": 0}, "timeout"),
    ],
)
def test_settings_that_cannot_work_are_refused(server, tmp_path, setting, message):
    with pytest.raises(ConfigError, match=message):
        make_judge(server, tmp_path, **setting)


def test_an_address_or_a_cache_that_is_none_is_refused_before_anything_is_sent(server, tmp_path):
    for address in ("localhost:8000", "http://", "http://[", "http://host:port/v1", "ftp://host/v1"):
        with pytest.raises(ConfigError, match="localhost:8000/v1"):
            Judge("some-model", tmp_path, address)
    (tmp_path / "cache").write_text("")
    with pytest.raises(ConfigError, match="cache is a file; name a folder"):
        make_judge(server, tmp_path)
    with pytest.raises(StorageError, match="cache"):
        ask_texts(make_judge(server, tmp_path / "cache" / "inside"), "a")
    assert not server.bodies


def test_without_the_package_the_error_says_how_to_install_it(judge, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'mmblocks\[eval\]'"):
        ask_texts(judge, "a")


# Going on -------------------------------------------------------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
from mmblocks.eval.judge import Judge
from mmblocks.eval.judge.references import INSTRUCTION
from mmblocks.eval.tasks import JudgeRequest
judge = Judge("some-model", Path(sys.argv[1]), sys.argv[2], concurrency=2)
for reply in judge.ask_all({str(i): JudgeRequest(({"role": "user", "content": str(i)},)) for i in range(40)}):
    print(reply.key, reply.cached, flush=True)
"""


def start_script(server, folder):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder), server.url], stdout=subprocess.PIPE, text=True
    )


def test_a_killed_run_goes_on_where_it_was(server, tmp_path):
    for number in range(15, 40):  # replies to these come too late
        server.misdeeds[str(number)] = [60.0]
    run = start_script(server, tmp_path)
    received = {run.stdout.readline().split()[0] for _ in range(6)}
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    server.misdeeds.clear()
    rest = start_script(server, tmp_path)
    lines = [line.split() for line in rest.communicate()[0].splitlines()]
    assert sorted(int(key) for key, _ in lines) == list(range(40))
    asked_now = {key for key, cached in lines if cached == "False"}
    assert asked_now >= set(map(str, range(17, 40)))  # at most two were under way
    assert not asked_now & received
    assert set(server.list_asked()) == set(map(str, range(40)))


def test_a_run_that_is_left_stores_what_is_under_way_and_asks_no_more(judge, server):
    server.always = 0.05
    replies = judge.ask_all({str(i): make_request(str(i)) for i in range(30)})
    next(replies)
    replies.close()
    asked = len(server.bodies)
    assert asked <= 2 * judge.concurrency
    assert len(list(judge.cache.rglob("*.json"))) == asked
    time.sleep(0.1)
    assert len(server.bodies) == asked


def test_several_runs_share_a_cache(server, tmp_path):
    server.reply = lambda body: "x" * 5000
    judges = [make_judge(server, tmp_path) for _ in range(4)]
    threads = [threading.Thread(target=ask_texts, args=(judge, *"abcdefgh")) for judge in judges]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(reply.cached and len(reply.text) == 5000 for reply in ask_texts(judges[0], *"abcdefgh").values())
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".json"]


def test_pauses_end_when_a_run_is_left(server, tmp_path):
    server.misdeeds["slow"] = [(429, "{}", {"Retry-After": "30"})]
    replies = make_judge(server, tmp_path).ask_all({key: make_request(key) for key in ("slow", "b")})
    assert next(replies).key == "b"
    began = time.monotonic()
    replies.close()
    assert time.monotonic() - began < 5


# Documents ------------------------------------------------------------------------------------------------------------


def read_tiny(name, folder):
    tiny = TINY[name]
    task = tasks.build(name, **tiny.write(folder), **tiny.settings)
    return task, list(task.read_documents()), tiny


@pytest.mark.parametrize("name", [name for name, tiny in TINY.items() if tiny.replies])
def test_a_judged_task_gets_the_numbers_of_its_replies(name, server, judge, tmp_path):
    task, documents, tiny = read_tiny(name, tmp_path)
    rows = [
        ScoredDocument.from_document(d, answer, task.score(d, answer))
        for d, answer in zip(documents, tiny.answers, strict=True)
    ]
    answers = [(d, f"{answer} #{i}") for i, (d, answer) in enumerate(zip(documents, tiny.answers, strict=True))]
    contents = [task.ask_judge(*answer).messages[-1]["content"] for answer in answers]
    replies = dict(zip(contents, tiny.replies, strict=True))
    server.reply = lambda body: replies[body["messages"][-1]["content"]]
    judgement = judge_documents(task, answers, judge)
    summary = task.summarise(judgement.merge_scores(rows))
    assert {key: summary.get(key) for key in tiny.summary} == pytest.approx(tiny.summary, abs=1e-6)


def test_mm_vet_is_asked_again_at_higher_temperatures(server, judge, tmp_path):
    task, documents, _ = read_tiny("mmvet", tmp_path)
    server.reply = lambda body: "0.5" if body["temperature"] >= 1 else "Correctness: 0.5"
    judgement = judge_documents(task, [(documents[0], "x")], judge)
    assert [body["temperature"] for body in server.bodies] == [0, 0.5, 1]
    assert judgement.scores == {documents[0].key: {"judge_score": 0.5}}
    assert (judgement.unreadable, judgement.usage.asked) == ([], 3)
    server.bodies.clear()
    assert judge_documents(task, [(documents[0], "x")], judge).scores == judgement.scores
    assert not server.bodies


def test_a_reply_that_is_never_read_is_counted_and_not_scored(server, judge, tmp_path):
    task, documents, _ = read_tiny("longbench_write", tmp_path)
    server.reply = lambda body: "Very good."
    answers = [(document, f"Once {i}.") for i, document in enumerate(documents)]
    seen = []
    judgement = judge_documents(task, answers, judge, seen.append)
    keys = {document.key for document in documents}
    assert set(judgement.unreadable) == keys == set(judgement.replies)
    assert all(score is None for scores in judgement.scores.values() for score in scores.values())
    assert len(seen) == len(server.bodies) == 5 * len(documents)
    rows = [ScoredDocument.from_document(d, answer, task.score(d, answer)) for d, answer in answers]
    summary = task.summarise(judgement.merge_scores(rows))
    assert summary["no_answer"] == len(documents)
    assert "quality" not in summary


def test_a_document_that_got_no_reply_is_a_fault_without_scores(server, judge):
    task = ReferenceJudge()
    documents = [Document(key, {"question": f"{key}?", "references": ["yes"]}, (), f"line {key}") for key in "ab"]
    requests = make_requests(task, [(document, "yes") for document in documents])
    server.reply = lambda body: "Grade: 8"
    server.misdeeds[requests["a"].messages[-1]["content"]] = [400]
    judgement = judge_documents(task, [(document, "yes") for document in documents], judge)
    assert judgement.scores == {"b": {"judge": 0.8}}
    assert list(judgement.faults) == ["a"]
    assert (judgement.usage.asked, judgement.usage.failed) == (1, 1)


def test_two_documents_with_one_key_are_refused_before_anything_is_sent(server, judge):
    task = ReferenceJudge()
    document = Document("a", {"question": "q", "references": ["r"]}, (), "val.json, record 2")
    with pytest.raises(DataError, match=r"val\.json, record 2: a second document with the key 'a'"):
        judge_documents(task, [(document, "x"), (document, "y")], judge)
    assert not server.bodies


# The judge of anyone's data -------------------------------------------------------------------------------------------


def test_the_reference_judge_shows_question_references_and_answer():
    task = ReferenceJudge()
    assert isinstance(task, JudgedTask)
    document = Document("a", {"question": "Where?", "references": ["Rome", "Roma"]}, (), "here")
    system, user = task.ask_judge(document, "In Rome.").messages
    assert system["role"] == "system"
    assert user["content"] == (
        "<question>\nWhere?\n</question>\n<reference>\nRome\n</reference>\n<reference>\nRoma\n</reference>\n"
        "<answer>\nIn Rome.\n</answer>"
    )
    with pytest.raises(DataError, match="here: no reference"):
        task.ask_judge(Document("a", {"question": "Where?", "references": []}, (), "here"), "x")


def test_the_page_shows_the_instruction_of_the_reference_judge():
    page = (Path(__file__).parents[2] / "docs/howto/judge.md").read_text(encoding="utf-8")
    assert " ".join(INSTRUCTION.split()) in " ".join(page.split())


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Grade: 7", 0.7),
        ("grade 10", 1.0),
        ("**Grade: 0**\n", 0.0),
        ("8/10", 0.8),
        ("5.", 0.5),
        ("Grade: 7.5", None),
        ("Grade: -3", None),
        ("Grade: 11", None),
        ("Grade: ٣", None),
        ("", None),
        ("The answer is right.", None),
        ("9" * 5000, None),
    ],
)
def test_a_grade_is_a_share_or_not_read(reply, score):
    assert ReferenceJudge().read_reply(reply) == {"judge": score}
