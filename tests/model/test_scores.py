"""Scores of continuations are the log-probabilities of transformers, each prompt run once, whatever else is scored."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from mmblocks.assets import resolve_source
from mmblocks.backbones.text_tokenizer import read_text_tokenizer
from mmblocks.batch import IGNORE
from mmblocks.chat import score
from mmblocks.components import templates
from mmblocks.conversation import Conversation, Message, Text
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.continuations import encode_continuations
from mmblocks.data.sample.encode import TooLong, encode_for_training, encode_prompt
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import DataError
from mmblocks.model.generation.scoring import count_key_rows, score_continuations
from mmblocks.shapes import Size, VisualShape
from tests.families import FAMILIES, family, lively

RED, BLUE = Image.new("RGB", (60, 40), "red"), Image.new("RGB", (20, 40), "blue")
CLIP = np.arange(5 * 20 * 30 * 3).astype(np.uint8).reshape(5, 20, 30, 3)
ANSWERS = ["yes", "a red circle", "no", "The green square is left of the blue circle.", "A"]


@pytest.fixture
def model(tiny_model):
    lively(tiny_model.backbone)
    return tiny_model


def ask(text, *media):
    kinds = ["image" if isinstance(one, Image.Image) else "video" for one in media]
    parts = [{"type": kind, kind: one} for kind, one in zip(kinds, media, strict=True)]
    return Conversation.from_messages([{"role": "user", "content": [*parts, {"type": "text", "text": text}]}])


TALKS = [
    ask("What is this?", RED),
    ask("How many circles are there?"),
    ask("And here?", CLIP),
    ask("Is it?", RED, BLUE),
]


def expected_scores(backbone, x, continuations):
    """By transformers: every continuation behind the prompt, one forward for each."""
    for ids in continuations:
        rows = torch.cat([x, backbone.embed_tokens(torch.tensor(ids))])
        logits = backbone.lm(inputs_embeds=rows[None], use_cache=False).logits[0, len(x) - 1 : -1].float()
        own = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).squeeze(1)
        yield own, logits.argmax(-1).tolist() == ids


# As transformers computes them ----------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_scores_as_transformers_does(name):
    backbone, lengths = family(name), [7, 12, 1]
    x = backbone.embed_tokens(torch.randint(1, 60, (20,)))
    drawn = random.Random(0)
    continuations = [
        [[drawn.randrange(1, 60) for _ in range(n)] for n in counts] for counts in ([1, 6, 2], [9], [1, 1])
    ]
    for prompt, texts in zip(x.split(lengths), continuations, strict=True):  # one that is greedy
        mask = torch.ones(1, len(prompt), dtype=torch.int64)
        settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
        texts.append(backbone.lm.generate(inputs_embeds=prompt[None], attention_mask=mask, **settings)[0].tolist())
    found = score_continuations(backbone, x, lengths, continuations)
    for prompt, texts, scores in zip(x.split(lengths), continuations, found, strict=True):
        for (want, is_greedy), ids, one in zip(expected_scores(backbone, prompt, texts), texts, scores, strict=True):
            torch.testing.assert_close(torch.tensor(one.log_probs), want, rtol=1e-4, atol=1e-5)  # fp32, other products
            assert (one.tokens, one.is_greedy) == (len(ids), is_greedy)
            assert one.log_prob == pytest.approx(sum(one.log_probs), rel=1e-12)
        assert scores[-1].is_greedy


@torch.no_grad()
def test_all_continuations_of_a_prompt_are_run_behind_it_once(monkeypatch):
    backbone, rows, heads = family("qwen2"), [], []
    layers = backbone.lm.get_decoder().layers
    layers[0].register_forward_hook(lambda _, args, out: rows.append(args[0].shape[:2].numel()))
    backbone.lm.get_output_embeddings().register_forward_hook(lambda _, args, out: heads.append(len(args[0])))
    x = backbone.embed_tokens(torch.randint(1, 60, (20,)))
    score_continuations(backbone, x, [12, 8], [[[1, 2, 3], [4], [5, 6]], [[7], [8]]])
    assert rows == [20 + 2 + 1]
    assert sum(heads) == 3 + 1 + 2 + 1 + 1
    assert count_key_rows(12, [[1, 2, 3], [4], [5, 6]]) == 12 + 14 + 13


@torch.no_grad()
def test_half_precision_scores_as_transformers_does_in_it():
    backbone = family("qwen2").bfloat16()
    x = backbone.embed_tokens(torch.randint(1, 60, (9,)))
    (scores,) = score_continuations(backbone, x, [9], [[[1, 2, 3, 4], [5]]])
    for (want, _), one in zip(expected_scores(backbone, x, [[1, 2, 3, 4], [5]]), scores, strict=True):
        torch.testing.assert_close(torch.tensor(one.log_probs), want, rtol=0.02, atol=0.05)  # bf16 has three digits


# Conversations ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_continuation_costs_what_training_on_it_loses(model):
    """The loss of an answer is that of its text and of its <|im_end|>; the score is that of the text."""
    processor = Processor.from_model(model)
    for talk, scores in zip(TALKS, score(model, TALKS, [ANSWERS] * len(TALKS)), strict=True):
        for text, one in zip(ANSWERS, scores, strict=True):
            answered = Conversation((*talk.messages, Message("assistant", (Text(text),))))
            batch = collate([processor.make_training_sample(answered)])
            losses = model.compute_row_losses(batch)
            assert one.tokens == len(losses) - 1
            torch.testing.assert_close(torch.tensor(one.log_probs), -losses[:-1], rtol=1e-4, atol=1e-5)
            assert one.is_greedy == bool(model.compute_row_hits(batch)[:-1].all())


def test_scores_do_not_depend_on_what_else_is_scored(model):
    texts = [ANSWERS, ANSWERS[:1], ANSWERS[1:3], ["red", "blue"]]
    alone = [score(model, [talk], [own])[0] for talk, own in zip(TALKS, texts, strict=True)]
    one_by_one = [[score(model, [TALKS[0]], [[text]])[0][0] for text in ANSWERS]]
    for limit in (1, 300, 10**6):
        order = random.Random(limit).sample(range(4), 4)
        found = score(model, [TALKS[i] for i in order], [texts[i] for i in order], max_batch_tokens=limit)
        compare(found, [alone[i] for i in order])
    compare([alone[0]], one_by_one)


def compare(found, expected):
    assert [[(one.tokens, one.is_greedy) for one in own] for own in found] == [
        [(one.tokens, one.is_greedy) for one in own] for own in expected
    ]
    for mine, other in zip(found, expected, strict=True):
        for one, same in zip(mine, other, strict=True):
            torch.testing.assert_close(one.log_probs, same.log_probs, rtol=1e-4, atol=1e-5)  # fp32, other products


def test_many_prompts_are_run_in_bounded_pieces_and_what_they_show_is_encoded_once(model):
    rows, views = [], []
    model.backbone.lm.get_decoder().layers[0].register_forward_hook(
        lambda _, args, out: rows.append(args[0].shape[:2].numel())
    )
    model.encoder.register_forward_hook(lambda _, args, out: views.append(len(args[0])))
    talks = [ask(f"What is this? {i}", RED) for i in range(20)]
    score(model, talks, [["yes", "no"]] * 20, max_batch_tokens=300)
    assert len(rows) > 4
    assert max(rows) <= 300
    assert len(views) == 1


def test_continuations_of_earlier_turns_stand_behind_them(model):
    talk = Conversation(
        (*TALKS[1].messages, Message("assistant", (Text("two"),)), Message("user", (Text("And squares?"),)))
    )
    (scores,) = score(model, [talk], [["two", "three"]])
    processor = Processor.from_model(model)
    answered = Conversation((*talk.messages, Message("assistant", (Text("two"),))))
    sample = processor.make_training_sample(answered)
    with torch.no_grad():
        losses = model.compute_row_losses(collate([sample]))
    own = losses[-1 - scores[0].tokens : -1]
    torch.testing.assert_close(torch.tensor(scores[0].log_probs), -own, rtol=1e-4, atol=1e-5)


# What a continuation is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["chatml", "vicuna_v1", "llava_v0", "llama_2", "llama_3", "gemma_instruct", "plain", "blip2"]
)
@pytest.mark.parametrize("text", ["yes", "a red circle.", " A", "two\nlines"])
def test_a_continuation_has_the_ids_that_training_learns_without_the_end(name, text, built_tiny_model):
    tokenizer, template = read_text_tokenizer(resolve_source("mmblocks:tinyworld_text")), templates.build(name)
    settings = {"template": template, "text_tokenizer": tokenizer, "placeholder_id": 0}
    talk = ask("" if name == "plain" else "What is it?", RED)
    plans = built_tiny_model.router.plan([VisualShape("image", Size(40, 60), 1)])
    prompt = encode_prompt(talk, plans, **settings)
    (ids,) = encode_continuations(talk, prompt, [text], template=template, text_tokenizer=tokenizer)
    answered = Conversation((*talk.messages, Message("assistant", (Text(text),))))
    targets = encode_for_training(answered, plans, **settings).targets
    learned = targets[targets != IGNORE].tolist()
    assert ids == learned[: len(ids)]
    assert tokenizer.decode(ids).strip() == text.strip()
    assert tokenizer.decode(learned[len(ids) :]).strip(" ") in (*template.stop, "")
    assert len(learned) > len(ids)


def test_where_a_token_would_hold_both_prompt_and_continuation_each_is_tokenised_by_itself():
    tokenizer = read_text_tokenizer(resolve_source("mmblocks:tinyworld_text"))
    template = templates.build("turns", user_head="", end="", assistant_head=" The c", special=())
    assert len(tokenizer.encode(" colour", add_special_tokens=False)) == 1
    talk = ask("What?")
    prompt = encode_prompt(talk, [], template=template, text_tokenizer=tokenizer, placeholder_id=0)
    found = encode_continuations(talk, prompt, ["olour", "ircle is red"], template=template, text_tokenizer=tokenizer)
    assert found == [tokenizer.encode(text, add_special_tokens=False) for text in ("olour", "ircle is red")]
    assert tokenizer.decode([*prompt.input_ids.tolist(), *found[0]]) == "What? The colour"


def test_a_text_without_a_token_is_refused_and_so_is_one_that_does_not_fit(tiny_model):
    with pytest.raises(DataError, match="the continuation '' has no token; leave it out"):
        score(tiny_model, TALKS[:1], [["yes", ""]])
    with pytest.raises(TooLong, match=r"tokens and \d+ of the continuation 'red red"):
        score(tiny_model, TALKS[:1], [["red " * 1000]])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["yes", "no"], "item 0 is 'yes'; give a list of texts for each conversation"),
        ([["yes"], []], r"item 1 is \[\]"),
        ([["yes"], [5]], r"item 1 is \[5\]"),
        ([["yes"]], "there are 1 lists for 2 conversations"),
        ("yes", "'yes' is no list"),
        (None, "None is no list"),
    ],
)
def test_continuations_are_lists_of_texts(tiny_model, given, says):
    with pytest.raises(DataError, match=f"continuations: .*{says}"):
        score(tiny_model, TALKS[:2], given)


def test_no_conversations_have_no_scores(tiny_model):
    assert score(tiny_model, [], []) == []
