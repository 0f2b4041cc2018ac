"""A command that is killed and started again ends with the table of one that was not: nothing is asked twice.

.ci/run also runs this file where the wheel is installed.
"""

import base64
import json
import signal
import subprocess
import sys
import time

import pytest

from mmblocks.assets import find_media
from mmblocks.cli import main
from mmblocks.eval.runs import DOCUMENTS_AT_ONCE
from tests.eval.tiny_benchmarks import write_json, write_table

DOCUMENTS = 4 * DOCUMENTS_AT_ONCE
QUESTIONS = {"How many shapes are there?": "3", "What colour is the triangle?": "blue", "What shape is red?": "circle"}
DEADLINE_S = 120.0


def write_llava(folder):
    """Records of LLaVA's .json, each with one of three images in a folder of their own."""
    (folder / "images").mkdir()
    images = ["image.png", "first.png", "second.png"]
    for name in images:
        (folder / "images" / name).write_bytes(find_media(name).read_bytes())
    records = []
    for number in range(DOCUMENTS):
        question, answer = [*QUESTIONS.items()][number % 3]
        talk = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
        records.append({"id": str(number), "image": images[number // 3 % 3], "conversations": talk})
    data = write_json(folder / "val.json", records)
    return [f"data={data}", f"images={folder / 'images'}", "metric=exact"]


def write_mmbench(folder):
    """VLMEvalKit's table: images as base64, and two rotations of each question."""
    image = base64.b64encode(find_media("image.png").read_bytes()).decode()
    rows = []
    for number in range(DOCUMENTS):
        options = ["red", "blue", "green"] if number % 2 == 0 else ["green", "red", "blue"]
        index = number // 2 + (number % 2) * 1_000_000
        rows.append(
            {
                "index": index,
                "image": image if number == 0 else "0",
                "question": f"Which colour is shape {number // 2}?",
            }
            | {**dict(zip("ABC", options, strict=True)), "answer": "AB"[number % 2], "category": f"c{number // 2 % 3}"}
        )
    return ["mmbench", f"data={write_table(folder / 'MMBench_DEV_EN.tsv', rows)}", "max_new_tokens=4"]


def start(words):
    command = [sys.executable, "-m", "mmblocks", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill_once_answers_are_written(process, predictions):
    deadline = time.monotonic() + DEADLINE_S
    while process.poll() is None and time.monotonic() < deadline:
        if predictions.is_file() and predictions.stat().st_size:
            break
        time.sleep(0.005)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, f"it ended before it was killed: {errors}"


def read_complete_lines(path):
    with path.open(encoding="utf-8") as file:
        return [line for line in file if line.endswith("\n")]


@pytest.mark.parametrize(("task", "write"), [("data", write_llava), ("mmbench", write_mmbench)])
def test_a_killed_evaluation_is_resumed_to_the_same_table(task, write, tmp_path, capsys):
    words, whole, killed = ["eval", *write(tmp_path), "--out"], tmp_path / "whole", tmp_path / "killed"
    predictions = killed / task / "predictions.jsonl"
    kill_once_answers_are_written(start([*words, str(killed)]), predictions)
    kept = read_complete_lines(predictions)
    assert 0 < len(kept) < DOCUMENTS
    assert not (killed / "results.csv").exists()
    resumed = start([*words, str(killed)])
    assert main([*words, str(whole)]) == 0
    table, errors = resumed.communicate()
    assert (resumed.returncode, table) == (0, capsys.readouterr().out), errors
    assert (killed / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()
    lines = read_complete_lines(predictions)
    assert lines[: len(kept)] == kept
    assert "".join(lines) == predictions.read_text(encoding="utf-8")
    assert [json.loads(line)["number"] for line in lines] == [*range(DOCUMENTS)]
