"""Chat templates: what they write, and which of it the model learns to write."""

import pickle

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mmblocks.components import templates
from mmblocks.conversation import Conversation, Message, Text, Visual
from mmblocks.errors import ConfigError, DataError
from mmblocks.model.checks.composition import find_faults
from mmblocks.model.checks.limits import find_template_faults
from mmblocks.templates.lazy_tokenizer import LazyTextTokenizer

TALK = [
    {"role": "user", "content": [{"type": "image", "image": "cat.png"}, {"type": "text", "text": "Which animal?"}]},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": "Colour?"},
    {"role": "assistant", "content": "White."},
]
STYLES = {
    "blip2": set(),
    "chatml": {"qwen_1_5", "qwen_2", "qwen_2_5"},
    "llama_2": {
        "mistral_instruct",
        "llava_mistral_instruct",
        "llava_llama_2",
        "llava_llama_2_simple",
        "llava_llama_2_mmtag",
    },
    "llama_3": {"llava_llama_3"},
    "llava_v0": {"default", "v0", "llava_v0_mmtag", "v0_mmtag"},
    "plain": {"v0_plain"},
    "tokenizer": set(),
    "turns": {"mpt", "chatml_direct", "mistral_direct", "mistral_orca", "mistral_zephyr", "gemma_instruct"},
    "vicuna_v1": {"v1", "llava_v1", "llava_v1_mmtag", "v1_mmtag"},
}
NO_CHATS = {"blip2", "plain", "v0_plain", "tokenizer"}
CHATS = {name for style, presets in STYLES.items() for name in (style, *presets)} - NO_CHATS
SPACED = STYLES["vicuna_v1"] | STYLES["llava_v0"] | STYLES["llama_2"] | {"vicuna_v1", "llava_v0", "llama_2"}


def messages(talk):
    return Conversation.from_messages(talk).messages


def written(spans):
    return "".join(span.content if isinstance(span.content, str) else "<image>" for span in spans)


def learned(spans):
    return "".join(span.content for span in spans if span.learn)


def test_every_template_is_known():
    assert set(templates) == CHATS | NO_CHATS


@pytest.mark.parametrize("name", sorted(CHATS))
def test_what_is_learned_is_each_answer_and_its_stop(name):
    template = templates.build(name)
    before, after = " " if name in SPACED else "", " " if "[INST]" in written(template.to_spans(messages(TALK))) else ""
    (stop,) = template.stop
    answers = "".join(f"{before}{text}{after}{stop}" for text in ("A cat.", "White."))
    assert learned(template.to_spans(messages(TALK))) == answers


@pytest.mark.parametrize("name", sorted(CHATS))
def test_what_is_written_before_an_answer_is_the_prompt_for_it(name):
    template = templates.build(name)
    spans = template.to_spans(messages(TALK))
    last_answer = next(i for i in range(len(spans) - 1, -1, -1) if spans[i].learn and not spans[i - 1].learn)
    prompt = [*template.to_spans(messages(TALK[:-1])), *template.open_answer()]
    assert written(spans[:last_answer]) == written(prompt)


@pytest.mark.parametrize("name", sorted(CHATS))
def test_a_system_message_replaces_the_templates(name):
    template = templates.build(name)
    told = written(template.to_spans(messages([{"role": "system", "content": "Answer in verse."}, *TALK])))
    assert told.count("Answer in verse.") == 1
    assert template.system is None or template.system not in told


@pytest.mark.parametrize("name", sorted(CHATS))
def test_an_empty_system_message_leaves_no_system_text(name):
    without = templates.build({"name": name, "system": None}).to_spans(messages(TALK))
    assert templates.build(name).to_spans(messages([{"role": "system", "content": ""}, *TALK])) == without


@pytest.mark.parametrize("name", sorted(CHATS))
def test_a_system_message_in_the_middle_is_a_fault(name):
    late = [*TALK[:2], {"role": "system", "content": "Be brief."}, *TALK[2:]]
    with pytest.raises(DataError, match="message 2 is a system message"):
        templates.build(name).to_spans(messages(late))


def test_chatml_without_system_text_starts_with_the_user():
    assert written(templates.build("chatml").to_spans(messages(TALK[2:3]))) == "<|im_start|>user\nColour?<|im_end|>\n"


def test_visuals_stand_where_they_are_shown():
    first, second = Visual("image", "1.png"), Visual("video", "2.mp4")
    turn = Message("user", (Text("See "), first, Text(" and "), second, Text(".")))
    spans = templates.build("chatml").to_spans([turn])
    assert [s.content for s in spans][1:-2] == ["See ", first, " and ", second, "."]


def test_a_visual_in_an_answer_is_not_learned():
    turn = Message("assistant", (Text("Like this: "), Visual("image", "1.png")))
    assert [s.learn for s in templates.build("chatml").to_spans([turn])] == [False, True, False, True, False]


def test_llama_3_trims_what_people_type():
    spans = templates.build("llama_3").to_spans(messages([{"role": "user", "content": " Hi.\n"}]))
    assert written(spans) == "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi.<|eot_id|>"


def test_plain_is_the_visual_and_its_caption():
    spans = templates.build("plain").to_spans(messages(TALK[:2]))
    assert (written(spans), learned(spans)) == ("<image>A cat.\n", "A cat.\n")


def test_plain_without_a_caption_asks_as_it_was_trained():
    shown = messages([{"role": "user", "content": [{"type": "image", "image": "cat.png"}]}])
    template = templates.build("plain")
    assert written([*template.to_spans(shown), *template.open_answer()]) == "<image>"


def test_blip2_shows_everything_first_and_says_words_without_roles():
    spans = templates.build({"name": "blip2", "end": "</s>"}).to_spans(messages([*TALK, TALK[0]]))
    assert written(spans) == "<image><image>Which animal? A cat.</s> Colour? White.</s> Which animal?"
    assert learned(spans) == " A cat.</s> White.</s>"


def test_a_caption_of_blip2_without_a_question_begins_at_once():
    shown = {"role": "user", "content": [{"type": "image", "image": "cat.png"}]}
    spans = templates.build("blip2").to_spans(messages([shown, {"role": "assistant", "content": "a cat"}]))
    assert (written(spans), learned(spans)) == ("<image>a cat\n", "a cat\n")


def test_plain_needs_something_to_caption():
    with pytest.raises(DataError, match="captions visuals and the user message has none"):
        templates.build("plain").to_spans(messages(TALK[2:]))


@pytest.mark.parametrize("name", sorted(name for name in CHATS if name.endswith("mmtag")))
def test_mmtag_templates_write_tags_around_visuals(name):
    shown = templates.build(name).to_spans(messages([{"role": "system", "content": ""}, *TALK[:1]]))
    assert "<Image><image></Image>Which animal?" in written(shown)


def test_gemma_has_no_system_turn_and_opens_the_first_question_with_it():
    told = messages([{"role": "system", "content": "Answer in verse."}, *TALK[2:]])
    assert written(templates.build("gemma_instruct").to_spans(told)) == (
        "<start_of_turn>user\nAnswer in verse.\n\nColour?<end_of_turn>\n<start_of_turn>model\nWhite.<end_of_turn>\n"
    )


# The text tokenizer's own chat template ------------------------------------------------------------------------------

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRIMMED = CHATML.replace("m.content", "m.content | trim")
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if quick %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def with_chat(jinja):
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.chat_template = jinja
    return tokenizer


def own(jinja, **settings):
    return templates.build({"name": "tokenizer", **settings}, text_tokenizer=lambda: with_chat(jinja))


def test_the_tokenizers_own_chatml_gives_the_spans_of_ours():
    theirs, ours = own(CHATML), templates.build("chatml")
    spans = theirs.to_spans(messages(TALK))
    assert (written(spans), learned(spans)) == (
        written(ours.to_spans(messages(TALK))),
        learned(ours.to_spans(messages(TALK))),
    )
    assert [s.content for s in spans if isinstance(s.content, Visual)] == [messages(TALK)[0].parts[0]]
    assert (theirs.stop, theirs.open_answer()) == (ours.stop, ours.open_answer())


def test_its_text_is_what_the_tokenizer_renders():
    talk = [{"role": "system", "content": "Be brief."}, *TALK[2:]]
    rendered = with_chat(CHATML).apply_chat_template(talk, tokenize=False)
    assert written(own(CHATML).to_spans(messages(talk))) == rendered


def test_a_template_that_trims_is_followed():
    spans = own(TRIMMED).to_spans(
        messages([{"role": "user", "content": " Hi.\n"}, {"role": "assistant", "content": "Ho. "}])
    )
    assert written(spans) == "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\nHo.<|im_end|>\n"
    assert learned(spans) == "Ho.<|im_end|>"


def test_what_it_writes_in_front_of_an_answer_is_learned_unless_the_prompt_has_it():
    spans = own(THINKING).to_spans(messages(TALK[:2]))
    assert learned(spans) == "<think>\n\n</think>\n\nA cat.<|im_end|>"
    quick = own(THINKING, arguments={"quick": True})
    assert learned(quick.to_spans(messages(TALK[:2]))) == "A cat.<|im_end|>"
    assert written(quick.open_answer()) == "<|im_start|>assistant\n<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("jinja", "rewrites"),
    [(CHATML, False), (TRIMMED, False), (THINKING, True), (THINKING.replace("quick", "true"), True)],
)
def test_whether_earlier_answers_are_written_otherwise_is_found_out(jinja, rewrites):
    assert own(jinja).rewrites_answers == rewrites


def test_an_answer_that_will_be_rewritten_is_not_learned_in_the_middle_of_a_conversation():
    with pytest.raises(ConfigError, match="rewrites earlier answers"):
        own(THINKING, arguments={"quick": True}).to_spans(messages(TALK))


def test_an_answer_is_learned_behind_its_prompt_where_no_conversation_begins_with_that():
    greeting = own(CHATML.replace("assistant\n{% endif", "assistant\nWell, {% endif"))
    spans = greeting.to_spans(messages(TALK[:2]))
    prompt = [*greeting.to_spans(messages(TALK[:1])), *greeting.open_answer()]
    assert written(spans) == written(prompt) + "A cat.<|im_end|>"
    assert learned(spans) == "A cat.<|im_end|>"
    assert greeting.rewrites_answers


@pytest.mark.parametrize(
    ("jinja", "error", "reason"),
    [
        (None, ConfigError, "has no chat template; choose a template by name"),
        (CHATML.replace("m.content", "m.content | upper"), DataError, "drops, moves or rewrites text of messages"),
        (CHATML.replace("messages %}", "messages if m.role != 'user' %}"), DataError, "drops, moves or rewrites"),
        ("{{ raise_exception('no system role') }}", DataError, "refuses this conversation: no system role"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", ConfigError, "writes nothing after an answer"),
    ],
)
def test_a_chat_template_that_cannot_be_learned_from_is_refused(jinja, error, reason):
    with pytest.raises(error, match=reason):
        own(jinja).to_spans(messages(TALK[2:]))


# What `check` asks of a template -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("llama_3", "'<|begin_of_text|>', '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>'"),
        ("llama_2", "'<s>', '</s>'"),
        ("vicuna_v1", "'</s>'"),
        ("mistral_zephyr", "'</s>'"),
        ("gemma_instruct", "'<start_of_turn>', '<end_of_turn>'"),
    ],
)
def test_a_template_whose_texts_the_tokenizer_lacks_is_refused_by_check(name, missing, tiny_spec):
    (fault,) = find_faults({**tiny_spec, "template": name})
    assert (fault.key, missing in fault.message) == ("model.template", True)
    assert "answers would never end" in fault.message


@pytest.mark.parametrize("name", ["chatml", "qwen_2", "mpt", "chatml_direct", "llava_v0"])
def test_a_template_whose_texts_are_known_passes(name, tiny_spec):
    assert find_faults({**tiny_spec, "template": name}) == []


def test_a_stop_in_plain_text_must_be_writable():
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")))
    (fault,) = find_template_faults("model.template", templates.build("llava_v0"), words)
    assert "does not have '###' as a token, so answers would never end" in fault.message


def test_check_says_when_the_tokenizer_has_no_template_of_its_own(tiny_spec):
    (fault,) = find_faults({**tiny_spec, "template": "tokenizer"})
    assert "has no chat template; choose a template by name" in fault.message


def test_a_data_worker_gets_the_tokenizer_and_not_what_reads_it():
    class Backbone:
        text_tokenizer = with_chat(CHATML)

        def __reduce__(self):
            raise AssertionError("the backbone itself must stay here")

    template = templates.build("tokenizer", text_tokenizer=LazyTextTokenizer.from_backbone(Backbone()))
    sent = pickle.loads(pickle.dumps(template))
    assert sent.to_spans(messages(TALK)) == template.to_spans(messages(TALK))
