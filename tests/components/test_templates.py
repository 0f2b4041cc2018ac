"""Chat templates: what they write, and which of it the model learns to write."""

import pytest

from mmblocks.components import templates
from mmblocks.conversation import Conversation, Message, Text, Visual
from mmblocks.errors import DataError

TALK = [
    {"role": "user", "content": [{"type": "image", "image": "cat.png"}, {"type": "text", "text": "Which animal?"}]},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": "Colour?"},
    {"role": "assistant", "content": "White."},
]
CHATS = {"chatml", "qwen_1_5", "qwen_2", "qwen_2_5", "vicuna_v1", "llava_v1", "llama_3", "llava_llama_3"}


def messages(talk):
    return Conversation.of(talk).messages


def written(spans):
    return "".join(span.content if isinstance(span.content, str) else "<image>" for span in spans)


def learned(spans):
    return "".join(span.content for span in spans if span.learn)


def test_every_template_is_known():
    assert set(templates) == CHATS | {"plain"}


@pytest.mark.parametrize("name", sorted(CHATS))
def test_what_is_learned_is_each_answer_and_its_stop(name):
    template = templates.build(name)
    before = " " if name in ("vicuna_v1", "llava_v1") else ""
    (stop,) = template.stop
    assert learned(template.spans(messages(TALK))) == f"{before}A cat.{stop}{before}White.{stop}"


@pytest.mark.parametrize("name", sorted(CHATS))
def test_what_is_written_before_an_answer_is_the_prompt_for_it(name):
    template = templates.build(name)
    spans = template.spans(messages(TALK))
    last_answer = next(i for i in range(len(spans) - 1, -1, -1) if spans[i].learn and not spans[i - 1].learn)
    prompt = [*template.spans(messages(TALK[:-1])), *template.open_answer()]
    assert written(spans[:last_answer]) == written(prompt)


@pytest.mark.parametrize("name", sorted(CHATS))
def test_a_system_message_replaces_the_templates(name):
    template = templates.build(name)
    told = written(template.spans(messages([{"role": "system", "content": "Answer in verse."}, *TALK])))
    assert told.count("Answer in verse.") == 1
    assert template.system is None or template.system not in told


@pytest.mark.parametrize("name", sorted(CHATS))
def test_an_empty_system_message_leaves_no_system_text(name):
    without = templates.build({"name": name, "system": None}).spans(messages(TALK))
    assert templates.build(name).spans(messages([{"role": "system", "content": ""}, *TALK])) == without


@pytest.mark.parametrize("name", sorted(CHATS))
def test_a_system_message_in_the_middle_is_a_fault(name):
    late = [*TALK[:2], {"role": "system", "content": "Be brief."}, *TALK[2:]]
    with pytest.raises(DataError, match="message 2 is a system message"):
        templates.build(name).spans(messages(late))


def test_chatml_without_system_text_starts_with_the_user():
    assert written(templates.build("chatml").spans(messages(TALK[2:3]))) == "<|im_start|>user\nColour?<|im_end|>\n"


def test_visuals_stand_where_they_are_shown():
    first, second = Visual("image", "1.png"), Visual("video", "2.mp4")
    turn = Message("user", (Text("See "), first, Text(" and "), second, Text(".")))
    spans = templates.build("chatml").spans([turn])
    assert [s.content for s in spans][1:-2] == ["See ", first, " and ", second, "."]


def test_a_visual_in_an_answer_is_not_learned():
    turn = Message("assistant", (Text("Like this: "), Visual("image", "1.png")))
    assert [s.learn for s in templates.build("chatml").spans([turn])] == [False, True, False, True, False]


def test_llama_3_trims_what_people_type():
    spans = templates.build("llama_3").spans(messages([{"role": "user", "content": " Hi.\n"}]))
    assert written(spans) == "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi.<|eot_id|>"


def test_plain_is_the_visual_and_its_caption():
    spans = templates.build("plain").spans(messages(TALK[:2]))
    assert (written(spans), learned(spans)) == ("<image>A cat.\n", "A cat.\n")


def test_plain_without_a_caption_asks_as_it_was_trained():
    shown = messages([{"role": "user", "content": [{"type": "image", "image": "cat.png"}]}])
    template = templates.build("plain")
    assert written([*template.spans(shown), *template.open_answer()]) == "<image>"


def test_plain_needs_something_to_caption():
    with pytest.raises(DataError, match="captions visuals and the user message has none"):
        templates.build("plain").spans(messages(TALK[2:]))
