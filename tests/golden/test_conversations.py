"""Prompts of the original conversation templates, rebuilt from spans.

conversations.json holds what github.com/LLaVA-VL/LLaVA-NeXT at df17966 (llava/conversation.py) writes, and for the
templates v0_mmtag and v1_mmtag what the older github.com/haotian-liu/LLaVA writes.
"""

import json
import re
from pathlib import Path

import pytest

from mmblocks.components import templates
from mmblocks.conversation import Conversation, Visual
from mmblocks.data.records.llava_json import to_conversation
from mmblocks.errors import DataError

HERE = Path(__file__).parent
CASES = [
    pytest.param(case, id=f"{case['template']}-{case['scenario']}")
    for case in json.loads((HERE / "conversations.json").read_text())["cases"]
]
PLAIN = ("plain", "v0_plain")
MMTAG = ("llava_v0_mmtag", "llava_v1_mmtag", "llava_llama_2_mmtag", "v0_mmtag", "v1_mmtag")
# The original's v0 has an example turn of 1700 characters in front, and so takes the first question for a later one.
WITH_EXAMPLE = ("default", "v0")
EXAMPLE = re.compile(
    r"(?<=###)Human: (What are the key differences.*?)###Assistant: (.*?instability\.\n)###", re.DOTALL
)
# The original takes an empty answer for an open turn and writes no end of turn after it, or no turn at all.
# Ours is a turn like any other.
EMPTY_ANSWER = [
    ("ASSISTANT:USER", "ASSISTANT: </s>USER"),
    ("Assistant:Human", "Assistant: ###Human"),
    ("[/INST]<s>[INST]", "[/INST]  </s><s>[INST]"),
    ("[/INST][INST]", "[/INST]  </s>[INST]"),
    ("assistant\n<|im_start|>user", "assistant\n<|im_end|><|im_start|>user"),
    ("<|assistant|>\n<|user|>", "<|assistant|>\n</s><|user|>"),
    ("model\n<start_of_turn>user", "model\n<end_of_turn>\n<start_of_turn>user"),
    (
        "Describe.<|eot_id|><|start_header_id|>user",
        "Describe.<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n<|eot_id|><|start_header_id|>user",
    ),
]


def test_every_template_of_the_original_is_there():
    assert {case.values[0]["template"] for case in CASES} <= set(templates)


def conversation(case, media_root) -> tuple[Conversation, bool]:
    """The case's closed turns as one LLaVA record, and whether an answer is to be written."""
    turns, images = [], []
    for role, said in case["messages"]:
        text, shown = (said[0], said[1]) if isinstance(said, list) else (said, ["IMG"] * (said or "").count("<image>"))
        images += shown
        turns += _turns(case, role, text, fronted=isinstance(said, list))
    still_open = turns[-1]["value"] is None
    turns = turns[:-1] if still_open else turns
    (media_root / "IMG").touch()
    record = {"image": images, "conversations": turns}
    placement = "as_written" if case["template"] in WITH_EXAMPLE else "lone_first"
    roots = {"image": media_root, "video": media_root}
    return to_conversation(record, roots, origin="golden", placement=placement), still_open


def _turns(case, role, text, *, fronted):
    """A message; the original's _mmtag templates show a picture in a turn of its own, answered by "Received."."""
    speaker = {"u": "human", "a": "gpt"}[role]
    if not (fronted and case["template"] in MMTAG):
        return [{"from": speaker, "value": text}]
    asked = text.replace("<image>", "").strip()
    return [
        {"from": speaker, "value": "<image>"},
        {"from": "gpt", "value": "Received."},
        {"from": speaker, "value": asked},
    ]


def rendered(spans) -> str:
    return "".join("<image>" if isinstance(span.content, Visual) else span.content for span in spans)


def expected(case) -> str:
    """The original's prompt; _mmtag templates wrap every visual here, there only what a server sends."""
    prompt = EXAMPLE.sub("", case["prompt"]) if case["template"] in WITH_EXAMPLE else case["prompt"]
    if case["template"] in MMTAG:
        prompt = prompt.replace("<Image><image></Image>", "<image>").replace("<image>", "<Image><image></Image>")
    return prompt


@pytest.mark.parametrize("case", [c for c in CASES if "prompt" in c.values[0] and "empty_answer" not in c.id])
def test_a_prompt_is_the_originals(case, tmp_path):
    template = templates.build(case["template"])
    talk, still_open = conversation(case, tmp_path)
    # The original's Llama 3 prompts end in an assistant header even when the last answer is there.
    opened = still_open or case["template"] == "llava_llama_3"
    spans = [*template.to_spans(talk.messages), *(template.open_answer() if opened else [])]
    assert rendered(spans) == expected(case)


@pytest.mark.parametrize("case", [c for c in CASES if c.values[0]["template"] in WITH_EXAMPLE and "two_turns" in c.id])
def test_with_the_example_as_a_first_turn_v0_is_the_originals_to_the_letter(case, tmp_path):
    talk, still_open = conversation(case, tmp_path)
    asked, answered = EXAMPLE.search(case["prompt"]).groups()
    example = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    template = templates.build(case["template"])
    spans = template.to_spans([*Conversation.from_messages(example).messages, *talk.messages])
    assert rendered([*spans, *(template.open_answer() if still_open else [])]) == case["prompt"]


@pytest.mark.parametrize("case", [c for c in CASES if "empty_answer" in c.id and "plain" not in c.id])
def test_an_empty_answer_is_a_turn_with_an_end(case):
    template = templates.build(case["template"])
    messages = [
        {"role": "user", "content": [{"type": "image", "image": "IMG"}, {"type": "text", "text": "\nDescribe."}]},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "Again?"},
    ]
    ours = rendered([*template.to_spans(Conversation.from_messages(messages).messages), *template.open_answer()])
    without = prompt = expected(case)
    for theirs, correct in EMPTY_ANSWER:
        newline = "<|im_end|>\n<|im_start|>user" if "qwen" in case["template"] else "<|im_end|><|im_start|>user"
        prompt = prompt.replace(theirs, correct.replace("<|im_end|><|im_start|>user", newline))
    assert ours == prompt != without


@pytest.mark.parametrize("case", [c for c in CASES if "error" in c.values[0]])
def test_where_the_original_breaks_plain_names_what_it_takes(case, tmp_path):
    talk, _ = conversation(case, tmp_path)
    assert case["template"] in PLAIN
    with pytest.raises(DataError, match="one user message and its caption, not user, assistant, user"):
        templates.build(case["template"]).to_spans(talk.messages)


def test_a_plain_prompt_with_an_empty_answer_inside_is_refused():
    # The original drops the empty answer and joins the two questions.
    messages = [
        {"role": role, "content": said} for role, said in [("user", "Describe."), ("assistant", ""), ("user", "Again?")]
    ]
    with pytest.raises(DataError, match="not user, assistant, user"):
        templates.build("plain").to_spans(Conversation.from_messages(messages).messages)
