"""Conversations to ids: every token where it belongs, and nothing learned but answers."""

import itertools
import random
import re

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mmblocks.batch import IGNORE
from mmblocks.components import templates
from mmblocks.conversation import Conversation, Message, Text, Visual
from mmblocks.data.sample.encode import encode_for_training, encode_prompt, make_training_runs
from mmblocks.errors import ConfigError, DataError
from mmblocks.shapes import RoutedPlan, VisualPlan

PLACEHOLDER = 9999
SPECIALS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>")
HEADERS = ("<|start_header_id|>", "<|end_header_id|>")


def byte_tokenizer(*, bos=None):
    """One token per byte, except that two newlines are one token and "ab" is one."""
    newline = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("\n")[0][0]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, newline * 2, "ab"])}
    backend = Tokenizer(models.BPE(vocab, [(newline, newline), ("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([*SPECIALS, *HEADERS])
    if bos is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos)


TOKENIZER = byte_tokenizer()


def plan(num_tokens, *told):
    return RoutedPlan("image", VisualPlan((), num_tokens, inline_texts=told))


def settings(template="chatml", tokenizer=TOKENIZER):
    return {"template": templates.build(template), "text_tokenizer": tokenizer, "placeholder_id": PLACEHOLDER}


def talk(*turns, origin="talk.json:record 3"):
    """Turns of user and assistant in alternation; a text or a list of texts and visuals each."""
    messages = []
    for i, turn in enumerate(turns):
        parts = turn if isinstance(turn, list) else [turn]
        role = ("user", "assistant")[i % 2]
        messages.append(Message(role, tuple(Text(p) if isinstance(p, str) else p for p in parts)))
    return Conversation(tuple(messages), origin)


def decoded_targets(encoded, tokenizer=TOKENIZER):
    return tokenizer.decode([t for t in encoded.targets.tolist() if t != IGNORE], skip_special_tokens=False)


def decoded_text(encoded, tokenizer=TOKENIZER):
    """The ids as text, each placeholder as a middle dot."""
    dot = tokenizer("·", add_special_tokens=False)["input_ids"]
    ids = [i for token in encoded.input_ids.tolist() for i in (dot if token == PLACEHOLDER else [token])]
    return tokenizer.decode(ids, skip_special_tokens=False)


CAT, DOG, CLIP = Visual("image", "cat.png"), Visual("image", "dog.png"), Visual("video", "video.mp4")


def test_a_conversation_reads_as_its_template_writes_it():
    encoded = encode_for_training(talk([CAT, "\nWhat?"], "A cat."), [plan(3)], **settings())
    assert decoded_text(encoded) == (
        "<|im_start|>user\n···\nWhat?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n"
    )


def test_targets_are_the_answers_of_every_turn_and_their_ends():
    encoded = encode_for_training(talk("Hi", "Hello!", "Bye", "See you."), [], **settings())
    assert decoded_targets(encoded) == "Hello!<|im_end|>See you.<|im_end|>"


def test_a_target_is_the_id_of_the_next_row():
    encoded = encode_for_training(talk([CAT, "What?"], "A cat."), [plan(2)], **settings())
    ids, targets = encoded.input_ids.tolist(), encoded.targets.tolist()
    assert all(target in (IGNORE, following) for target, following in zip(targets, [*ids[1:], IGNORE], strict=True))
    first = next(i for i, target in enumerate(targets) if target != IGNORE)
    assert TOKENIZER.decode(ids[: first + 1], skip_special_tokens=False).endswith("<|im_start|>assistant\n")


def test_the_row_before_a_first_word_is_trained_even_when_it_is_visual():
    encoded = encode_for_training(talk([CAT], "ab"), [plan(2)], **settings("plain"))
    ab, newline = TOKENIZER("ab\n")["input_ids"]
    assert encoded.input_ids.tolist() == [PLACEHOLDER, PLACEHOLDER, ab, newline]
    assert encoded.targets.tolist() == [IGNORE, ab, newline, IGNORE]


def test_interleaved_visuals_stand_where_they_are_shown_with_their_own_counts():
    shown = talk(["One ", CAT, " two ", DOG, CLIP, "?"], "Three.")
    encoded = encode_for_training(shown, [plan(2), plan(1), plan(4)], **settings())
    assert "user\nOne ·· two ·····?<|im_end|>" in decoded_text(encoded)
    rows = encoded.visual_positions.tolist()
    assert [encoded.input_ids[row].item() for row in rows] == [PLACEHOLDER] * 7
    assert rows == sorted(rows)
    assert (encoded.input_ids == PLACEHOLDER).sum() == 7


def test_a_visual_inside_an_answer_is_not_a_target():
    encoded = encode_for_training(talk("Show one.", ["Here: ", CAT, " done."]), [plan(5)], **settings())
    assert decoded_targets(encoded) == "Here:  done.<|im_end|>"


def test_a_text_that_looks_like_the_placeholder_is_no_visual():
    encoded = encode_for_training(
        talk(["ab", CAT], "ab"), [plan(1)], **{**settings(), "placeholder_id": TOKENIZER("ab")["input_ids"][0]}
    )
    assert encoded.visual_positions.numel() == 1
    assert decoded_targets(encoded) == "ab<|im_end|>"


CHATS = sorted(set(templates) - {"plain", "v0_plain", "tokenizer"})
"""Templates of several turns; `tokenizer` has its own tests (components/test_templates.py)."""


@pytest.mark.parametrize("name", CHATS)
def test_any_talk_trains_exactly_its_answers(name):
    rng = random.Random(name)
    alphabet = ["a", "b", "ab", "\n", "\n\n", " ", "é", "猫", "🐈", ".", ":"]
    template = templates.build(name)
    (stop,) = template.stop
    in_brackets = "llama_2" in name or name.endswith("mistral_instruct")
    before = " " if "v1" in name or "v0" in name or name in ("default", "blip2") or in_brackets else ""
    stop = f" {stop}" if in_brackets else stop
    for _ in range(20):
        said = ["x" + "".join(rng.choices(alphabet, k=rng.randint(1, 12))) + "x" for _ in range(6)]
        visuals = [[CAT] * rng.randint(0, 2) for _ in range(3)]
        turns = [[*visuals[i // 2], text] if i % 2 == 0 else text for i, text in enumerate(said)]
        plans = [plan(rng.randint(1, 3)) for shown in visuals for _ in shown]
        encoded = encode_for_training(talk(*turns), plans, **settings(name))
        assert decoded_targets(encoded) == "".join(f"{before}{answer}{stop}" for answer in said[1::2])
        assert encoded.visual_positions.numel() == sum(p.plan.num_tokens for p in plans)


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("answer", ["A cat.", "\nA cat.", "ab\n\n"])
def test_a_training_sample_begins_with_its_prompt(name, answer):
    """Also where one token would cover the header's newline and the answer's: the model never sees that token."""
    told = talk([CAT, "\nWhat?"], "A\n\n", "And?\n", answer)
    asked = Conversation(told.messages[:-1], told.origin)
    whole = encode_for_training(told, [plan(2)], **settings(name))
    prompt = encode_prompt(asked, [plan(2)], **settings(name))
    assert whole.input_ids[: len(prompt)].tolist() == prompt.input_ids.tolist()


def test_text_that_is_not_cut_keeps_the_tokens_of_the_whole_prompt():
    encoded = encode_prompt(talk("a\n\nab"), [], **settings())
    whole = "<|im_start|>user\na\n\nab<|im_end|>\n<|im_start|>assistant\n"
    assert encoded.input_ids.tolist() == TOKENIZER(whole)["input_ids"]


def test_a_prompt_has_no_targets_and_ends_where_the_answer_begins():
    encoded = encode_prompt(talk([CAT, "What?"], "A cat.", "Sure?"), [plan(1)], **settings())
    assert encoded.num_labelled == 0
    assert decoded_text(encoded).endswith("Sure?<|im_end|>\n<|im_start|>assistant\n")


def test_a_tokenizers_bos_stands_once_at_the_start():
    tokenizer = byte_tokenizer(bos="<s>")
    encoded = encode_for_training(
        talk([CAT, "a", DOG, "b"], "c"), [plan(1), plan(1)], **settings("vicuna_v1", tokenizer)
    )
    assert encoded.input_ids.tolist().count(tokenizer.bos_token_id) == 1
    assert encoded.input_ids[0] == tokenizer.bos_token_id


def test_a_bos_comes_before_a_visual_that_opens_the_text():
    tokenizer = byte_tokenizer(bos="<s>")
    encoded = encode_for_training(talk([CAT], "a"), [plan(1)], **settings("plain", tokenizer))
    assert encoded.input_ids.tolist()[:2] == [tokenizer.bos_token_id, PLACEHOLDER]
    assert encoded.visual_positions.tolist() == [1]


def test_a_bos_that_the_template_writes_is_not_doubled():
    tokenizer = byte_tokenizer(bos="<|begin_of_text|>")
    encoded = encode_prompt(talk("Hi"), [], **settings("llama_3", tokenizer))
    assert encoded.input_ids.tolist().count(tokenizer.bos_token_id) == 1


def test_an_explicit_system_message_is_given_and_not_learned():
    told = talk("Hi", "Hello!")
    verse = Conversation((Message("system", (Text("In verse."),)), *told.messages), told.origin)
    encoded = encode_for_training(verse, [], **settings("qwen_2"))
    assert decoded_text(encoded).startswith("<|im_start|>system\nIn verse.<|im_end|>\n<|im_start|>user")
    assert decoded_targets(encoded) == "Hello!<|im_end|>"


def test_original_targets_train_headers_and_every_newline():
    encoded = encode_for_training(talk("a\nb", "c"), [], **settings(), targets="original")
    assert decoded_text(encoded).startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    system, user = "\n<|im_end|>\n", "<|im_start|>\n\n<|im_end|>\n"
    assert decoded_targets(encoded) == f"{system}{user}<|im_start|>assistant\nc<|im_end|>\n"


def test_original_targets_need_a_template_that_the_original_has():
    class Mine:
        stop = ()

    with pytest.raises(ConfigError, match="known for LLaVA's own templates, not for Mine"):
        encode_for_training(talk("a", "b"), [], **{**settings(), "template": Mine()}, targets="original")


# Texts between the rows of a visual -------------------------------------------------------------------------------------

STAMPED = plan(4, (0, "at 0s: "), (2, " at 1s: "), (4, " end"))


def test_told_texts_stand_between_the_rows_of_their_visual():
    encoded = encode_for_training(talk(["See ", CLIP, "\nWhat?"], "A cat."), [STAMPED], **settings())
    assert "user\nSee at 0s: ·· at 1s: ·· end\nWhat?<|im_end|>" in decoded_text(encoded)


def test_visual_positions_count_rows_and_no_told_text():
    encoded = encode_for_training(talk([CLIP, CAT, "?"], "A cat."), [STAMPED, plan(3)], **settings())
    positions = encoded.visual_positions
    assert positions.numel() == 7
    assert encoded.input_ids[positions].tolist() == [PLACEHOLDER] * 7
    assert (encoded.input_ids == PLACEHOLDER).sum() == 7
    assert [b - a for a, b in itertools.pairwise(positions.tolist())] == [1, 1 + len(" at 1s: "), 1, 1 + 4, 1, 1]


def test_told_text_is_tokenised_together_with_what_adjoins_it():
    joined = plan(2, (0, "b"), (1, "\n"), (2, "a"))
    encoded = encode_prompt(talk(["a", CAT, "b"]), [joined], **settings())
    ids = encoded.input_ids.tolist()
    (ab,), (newline,) = TOKENIZER("ab")["input_ids"], TOKENIZER("\n")["input_ids"]
    begin = ids.index(PLACEHOLDER)
    assert ids[begin - 1 : begin + 4] == [ab, PLACEHOLDER, newline, PLACEHOLDER, ab]


def test_texts_told_between_two_visuals_join():
    encoded = encode_prompt(talk([CAT, DOG, "?"]), [plan(1, (1, "a")), plan(1, (0, "b"))], **settings())
    (ab,) = TOKENIZER("ab")["input_ids"]
    assert encoded.input_ids.tolist().count(ab) == 1


@pytest.mark.parametrize("targets", ["answers", "original"])
def test_told_text_is_never_learned(targets):
    spaced = plan(4, (0, "x\n<|im_start|>a\n"), (3, "\n"), (4, "\n"))
    bare = encode_for_training(talk([CLIP, "What?"], "A\ncat."), [plan(4)], **settings(), targets=targets)
    told = encode_for_training(talk([CLIP, "What?"], "A\ncat."), [spaced], **settings(), targets=targets)
    assert len(told) == len(bare) + 7
    assert decoded_targets(told) == decoded_targets(bare)
    ids, learned = told.input_ids.tolist(), told.targets.tolist()
    assert all(t in (IGNORE, following) for t, following in zip(learned, [*ids[1:], IGNORE], strict=True))


def test_told_text_inside_an_answer_is_given_and_cut_from_it():
    shown = talk("Show one.", ["a", CAT, "b"])
    encoded = encode_for_training(shown, [plan(2, (0, "b"), (2, "a"))], **settings())
    assert decoded_targets(encoded) == "ab<|im_end|>"
    assert "assistant\nab··ab<|im_end|>" in decoded_text(encoded)


@pytest.mark.parametrize("name", CHATS)
def test_a_training_sample_begins_with_its_prompt_when_texts_are_told(name):
    told = talk(["a", CLIP, "\nWhat?"], "A\n\n", [CAT, "b"], "\nab")
    asked = Conversation(told.messages[:-1], told.origin)
    plans = [plan(3, (0, "b"), (1, "\n"), (3, "\n")), plan(2, (2, "a"))]
    whole = encode_for_training(told, plans, **settings(name))
    prompt = encode_prompt(asked, plans, **settings(name))
    assert whole.input_ids[: len(prompt)].tolist() == prompt.input_ids.tolist()
    assert torch.equal(prompt.visual_positions, whole.visual_positions)
    assert prompt.num_labelled == 0


@pytest.mark.parametrize("plans", [[], [plan(1)], [plan(1)] * 3])
def test_plans_are_one_per_visual(plans):
    with pytest.raises(DataError, match=rf"talk.json:record 3: {len(plans)} plans for 2 visuals"):
        encode_for_training(talk([CAT, DOG, "?"], "Two."), plans, **settings())


@pytest.mark.parametrize("targets", ["answers", "original"])
def test_a_training_sample_without_an_answer_is_a_fault(targets):
    with pytest.raises(DataError, match=r"talk.json:record 3: none of its .* tokens is an answer"):
        encode_for_training(talk("Hi"), [], **settings(), targets=targets)


def test_a_long_sample_is_refused_and_never_cut():
    told = talk([CAT, "What?"], "A cat.")
    length = len(encode_for_training(told, [plan(100)], **settings()))
    assert len(encode_for_training(told, [plan(100)], **settings(), max_tokens=length)) == length
    fault = rf"talk.json:record 3: {length} tokens \(100 of them visual\), the limit is {length - 1}"
    with pytest.raises(DataError, match=fault):
        encode_for_training(told, [plan(100)], **settings(), max_tokens=length - 1)


def test_a_prompt_ends_with_a_question():
    with pytest.raises(DataError, match=r"talk.json:record 3: there is nothing to answer"):
        encode_prompt(talk("Hi", "Hello!"), [], **settings())


def test_a_templates_fault_names_the_record():
    with pytest.raises(DataError, match=r"talk.json:record 3: the template 'plain' takes one user message"):
        encode_for_training(talk("a", "b", "c", "d"), [], **settings("plain"))


def test_original_targets_do_not_drop_a_visual_with_the_first_answer():
    greeted = Conversation((Message("assistant", (CAT,)), *talk("Hi", "Hello!").messages), "talk.json:record 3")
    with pytest.raises(DataError, match=r"talk.json:record 3: message 0 is an answer with a visual"):
        encode_for_training(greeted, [plan(1)], **settings(), targets="original")


def test_a_tokenizer_without_offsets_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ConfigError, match="the text tokenizer Slow does not say which characters"):
        encode_prompt(talk("Hi"), [], **settings(tokenizer=Slow()))


# Counting -------------------------------------------------------------------------------------------------------------

HOSTILE = ("a", "ab", "\n", "\n\n", " ", "", "猫", "🐈", "<s>", "</s>", "<|im_end|>", "<|im_start|>", "at 1s: ")


ORIGINAL = {"chatml", "gemma_instruct", "llama_2", "llama_3", "plain", "v0", "vicuna_v1"}
"""Templates whose targets LLaVA's own preprocessing knows; presets of them aside."""


def hostile_talk(rng):
    """A conversation of any roles, with empty parts, control tokens and visuals anywhere, and plans with inline texts."""
    messages, plans = [], []
    for role in rng.choice([("user", "assistant"), ("user", "assistant") * 2, ("assistant", "user", "assistant")]):
        parts = []
        for _ in range(rng.randint(0, 3)):
            if rng.random() < 0.4:
                rows = rng.choice((0, 1, 2, 7))
                places = sorted(rng.randint(0, rows) for _ in range(rng.randint(0, 2)))
                plans.append(plan(rows, *((place, rng.choice(HOSTILE[:5])) for place in places)))
                parts.append(CAT)
            else:
                parts.append(Text("".join(rng.choices(HOSTILE, k=rng.randint(0, 6)))))
        messages.append(Message(role, tuple(parts), rng.random() < 0.8))
    return Conversation(tuple(messages), "talk"), plans


@pytest.mark.parametrize("targets", ["answers", "original"])
@pytest.mark.parametrize("name", sorted(set(templates) - {"tokenizer"}))
def test_what_is_counted_is_what_is_encoded(name, targets):
    rng, compared = random.Random(f"{name} {targets}"), 0
    tokenizers = [TOKENIZER, byte_tokenizer(bos="<s>")]
    for _ in range(60):
        conversation, plans = hostile_talk(rng)
        given = settings(name, rng.choice(tokenizers))
        given |= {"targets": targets, "overlong": "cut_answer", "max_tokens": rng.choice((None, rng.randint(5, 90)))}
        placeholder_id = given.pop("placeholder_id")
        try:
            encoded = encode_for_training(conversation, plans, placeholder_id=placeholder_id, **given)
        except (DataError, ConfigError) as fault:
            with pytest.raises(type(fault), match=re.escape(str(fault))):
                make_training_runs(conversation, plans, **given)
            continue
        counted = make_training_runs(conversation, plans, **given)
        compared += 1
        assert len(counted) == encoded.input_ids.numel()
        assert counted.num_visual == encoded.visual_positions.numel() == sum(p.plan.num_tokens for p in plans)
        assert counted.num_labelled == int((encoded.targets != IGNORE).sum())
        assert (counted.plans, counted.num_cut) == (encoded.plans, encoded.num_cut)
    assert compared or (targets == "original" and name not in ORIGINAL)


def test_no_row_is_made_for_a_visual_token_that_is_only_counted():
    """More rows than any memory holds."""
    given = settings()
    del given["placeholder_id"]
    text = make_training_runs(talk([CAT, "What?"], "A cat."), [plan(1)], **given)
    counted = make_training_runs(talk([CAT, "What?"], "A cat."), [plan(10**15)], **given)
    assert len(counted) == len(text) + 10**15 - 1
    assert counted.num_labelled == text.num_labelled
    with pytest.raises(DataError, match="1000000000000000 of them visual"):
        make_training_runs(talk([CAT, "What?"], "A cat."), [plan(10**15)], **given, max_tokens=8)
