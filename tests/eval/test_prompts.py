"""Prompts and decoding are those of lmms-eval's default settings (tests/golden/eval/prompts.json)."""

import json
from pathlib import Path

import pytest

from mmblocks.conversation import Text, Visual
from mmblocks.eval.document import Document
from mmblocks.eval.tasks import tasks

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/eval/prompts.json").read_text())["cases"]
LEFT_OUT = {"nextqa_oe_test"}  # scored by WUPS, which needs WordNet's download
CASES = [case for case in GOLDEN if case["task"] not in LEFT_OUT]
TASKS = {
    **{name: name for name in ("chartqa", "gqa", "ai2d", "mme", "pope", "realworldqa", "mmstar", "mmvet", "videomme")},
    **{name: name for name in ("scienceqa_img", "egoschema_subset", "activitynetqa")},
    "vqav2_val": "vqav2",
    "textvqa_val": "textvqa",
    "docvqa_val": "docvqa",
    "infovqa_val": "infovqa",
    "mmmu_val": "mmmu",
    "mmbench_en_dev": "mmbench",
    "seedbench": "seed",
    "interleave_in_domain": "interleave",
    "mvbench_action_antonym": "mvbench",
    "perceptiontest_val_mc": "perceptiontest",
    "nextqa_mc_test": "nextqa_mc",
    "llava_in_the_wild": "llava_bench",
}
ANSWERS = {"answer": "A", "answers": ["a"], "pope": "yes", "nextqa_mc": "0", "mvbench": "a red cup"}


def make_document(task, record):
    """A record as the task's layout reads it, with an answer, which the golden records do not have."""
    answer = ANSWERS.get(task, ANSWERS["answer"])
    markers = record["question"].count("<image>")
    visual = Visual("video" if "video" in tasks[task].builder.layout.videos else "image", "x.png")
    row = {"answer": answer, "answers": ANSWERS["answers"], **record}
    row |= {name: "x" for name in tasks[task].builder.layout.required if name not in row}
    fields = tasks[task].builder.layout.read_fields(row, "golden")
    return Document("1", fields, (visual,) * max(1, markers), "golden")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["task"])
def test_a_prompt_is_that_of_lmms_eval(case):
    name = TASKS[case["task"]]
    document = make_document(name, case["in"])
    (message,) = tasks.build(name, data="unread").ask(document).messages
    pieces = [part.text if isinstance(part, Text) else "<image>" for part in message.parts]
    in_front = "" if "<image>" in case["out"] else "<image>\n"  # as its class for LLaVA-OneVision puts it
    assert "".join(pieces) == in_front + case["out"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["task"])
def test_decoding_is_that_of_lmms_eval(case):
    decoding = tasks.build(TASKS[case["task"]], data="unread").decoding
    wanted = case["generation_kwargs"] or {}
    assert decoding.max_new_tokens == wanted.get("max_new_tokens", 1024)  # the default of its class for LLaVA-OneVision
    assert decoding.temperature == 0  # do_sample is false throughout, which makes temperatures idle
    assert not wanted.get("do_sample", False)


def test_every_golden_prompt_is_compared():
    assert {case["task"] for case in GOLDEN} == {*TASKS, *LEFT_OUT}
