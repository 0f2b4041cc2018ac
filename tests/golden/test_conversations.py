"""Prompts of the original conversation templates, rebuilt from spans.

conversations.json holds what github.com/LLaVA-VL/LLaVA-NeXT at df17966 (llava/conversation.py) writes.
"""

import json
from pathlib import Path

import pytest

from mmblocks.components import templates
from mmblocks.conversation import Conversation, Visual
from mmblocks.data.llava_json import conversation_of
from mmblocks.errors import DataError

HERE = Path(__file__).parent
OURS = {
    "v1": "vicuna_v1",
    "vicuna_v1": "vicuna_v1",
    "llava_v1": "llava_v1",
    "plain": "plain",
    "llava_llama_3": "llava_llama_3",
    "qwen_1_5": "qwen_1_5",
    "qwen_2": "qwen_2",
    "qwen_2_5": "qwen_2_5",
}
CASES = [
    pytest.param(case, id=f"{case['template']}-{case['scenario']}")
    for case in json.loads((HERE / "conversations.json").read_text())["cases"]
    if case["template"] in OURS and case["source"] == "LLaVA-NeXT"
]
# The original takes an empty answer for an open turn and writes no end of turn after it, or no turn at all.
# Ours is a turn like any other.
EMPTY_ANSWER = {
    "ASSISTANT:USER": "ASSISTANT: </s>USER",
    "assistant\n<|im_start|>user": "assistant\n<|im_end|>\n<|im_start|>user",
    "Describe.<|eot_id|><|start_header_id|>user": (
        "Describe.<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n<|eot_id|><|start_header_id|>user"
    ),
}


def conversation(case, media_root) -> tuple[Conversation, bool]:
    """The case's closed turns as one LLaVA record, and whether an answer is to be written."""
    turns, images = [], []
    for role, said in case["messages"]:
        text, shown = (said[0], said[1]) if isinstance(said, list) else (said, ["IMG"] * (said or "").count("<image>"))
        images += shown
        turns.append({"from": {"u": "human", "a": "gpt"}[role], "value": text})
    still_open = turns[-1]["value"] is None
    turns = turns[:-1] if still_open else turns
    (media_root / "IMG").touch()
    record = {"image": images, "conversations": turns}
    return conversation_of(record, {"image": media_root, "video": media_root}, origin="golden"), still_open


def rendered(spans) -> str:
    return "".join("<image>" if isinstance(span.content, Visual) else span.content for span in spans)


@pytest.mark.parametrize("case", [c for c in CASES if "prompt" in c.values[0] and "empty_answer" not in c.id])
def test_a_prompt_is_the_originals(case, tmp_path):
    template = templates.build(OURS[case["template"]])
    talk, still_open = conversation(case, tmp_path)
    # The original's Llama 3 prompts end in an assistant header even when the last answer is there.
    opened = still_open or case["template"] == "llava_llama_3"
    spans = [*template.spans(talk.messages), *(template.open_answer() if opened else [])]
    assert rendered(spans) == case["prompt"]


@pytest.mark.parametrize("case", [c for c in CASES if "empty_answer" in c.id and "plain" not in c.id])
def test_an_empty_answer_is_a_turn_with_an_end(case):
    template = templates.build(OURS[case["template"]])
    messages = [
        {"role": "user", "content": [{"type": "image", "image": "IMG"}, {"type": "text", "text": "\nDescribe."}]},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "Again?"},
    ]
    ours = rendered([*template.spans(Conversation.of(messages).messages), *template.open_answer()])
    expected = case["prompt"]
    for theirs, correct in EMPTY_ANSWER.items():
        expected = expected.replace(theirs, correct)
    assert ours == expected != case["prompt"]


@pytest.mark.parametrize("case", [c for c in CASES if "error" in c.values[0]])
def test_where_the_original_breaks_plain_names_what_it_takes(case, tmp_path):
    talk, _ = conversation(case, tmp_path)
    with pytest.raises(DataError, match="one user message and its caption, not user, assistant, user"):
        templates.build("plain").spans(talk.messages)


def test_a_plain_prompt_with_an_empty_answer_inside_is_refused():
    # The original drops the empty answer and joins the two questions.
    messages = [
        {"role": role, "content": said} for role, said in [("user", "Describe."), ("assistant", ""), ("user", "Again?")]
    ]
    with pytest.raises(DataError, match="not user, assistant, user"):
        templates.build("plain").spans(Conversation.of(messages).messages)
