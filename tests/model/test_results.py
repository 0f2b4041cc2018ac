"""Results: text, why an answer ended, counts, log-probabilities; the same whatever else is answered."""

import random
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from mmblocks.chat import Chat, answer, draw_samples, respond
from mmblocks.chat.batches import split_by_cost
from mmblocks.conversation import Conversation
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import ConfigError
from mmblocks.model.generate import Decoding, StopSequences, generate, generate_from_embeddings
from mmblocks.model.generation.stopping import AnswerWriter, cut_pieces
from tests.families import family, lively

RED, BLUE = Image.new("RGB", (60, 40), "red"), Image.new("RGB", (20, 40), "blue")
CLIP = np.arange(5 * 20 * 30 * 3).astype(np.uint8).reshape(5, 20, 30, 3)
QUESTIONS = ["What is this?", "How many circles are there?", "Is there a green square?", "What colour is the circle?"]
DRAWN = Decoding(max_new_tokens=10, temperature=1.3, seed=7)
NO_END = StopSequences((), ())


@pytest.fixture
def model(tiny_model):
    lively(tiny_model.backbone)
    return tiny_model


def ask(text, *media):
    shown = [{"type": "image" if isinstance(m, Image.Image) else "video", "source": m} for m in media]
    parts = [{"type": one["type"], one["type"]: one["source"]} for one in shown]
    return Conversation.from_messages([{"role": "user", "content": [*parts, {"type": "text", "text": text}]}])


TALKS = [ask(text, *media) for media in ([], [RED], [CLIP], [RED, BLUE]) for text in QUESTIONS]


@contextmanager
def counted(model):
    """What is run meanwhile: views encoded, and rows of each call of the backbone."""
    seen = {"views": 0, "rows": []}

    def encoded(_module, args, _out):
        seen["views"] += len(args[0])

    hooks = [
        model.encoder.register_forward_hook(encoded),
        model.backbone.lm.get_decoder()
        .layers[0]
        .register_forward_hook(lambda _, args, out: seen["rows"].append(args[0].shape[:2].numel())),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


# What a result holds --------------------------------------------------------------------------------------------------


def test_a_result_counts_what_was_read_and_written(model):
    (result,) = respond(model, [TALKS[4]], Decoding(max_new_tokens=7))
    assert result.prompt_tokens == len(Processor.from_model(model).encode_conversation_prompt(TALKS[4]))
    assert (result.finish_reason, result.answer_tokens, len(result.ids)) == ("length", 7, 7)
    assert result.text == model.backbone.text_tokenizer.decode(result.ids, skip_special_tokens=True).strip()
    assert result.log_probs is None
    assert answer(model, [TALKS[4]], Decoding(max_new_tokens=7)) == [result.text]


@pytest.mark.parametrize(("limit", "reason", "written"), [(4, "length", 4), (5, "stop", 5), (9, "stop", 5)])
def test_an_end_token_stops_an_answer_also_where_it_is_the_last_one_allowed(model, limit, reason, written):
    (free,) = respond(model, TALKS[:1], DRAWN)
    model.backbone.lm.generation_config.eos_token_id = free.ids[4]
    assert free.ids.index(free.ids[4]) == 4
    (result,) = respond(model, TALKS[:1], replace(DRAWN, max_new_tokens=limit))
    assert (result.finish_reason, result.answer_tokens, result.ids) == (reason, written, free.ids[: min(limit, 4)])


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen2", "gemma2", "gpt_oss", "cohere"])
def test_log_probabilities_are_those_of_transformers(name):
    backbone, lengths = family(name), [5, 9]
    x = backbone.embed_tokens(torch.randint(1, 60, (14,)))
    ours = generate_from_embeddings(backbone, x, lengths, Decoding(max_new_tokens=6, log_probs=True), NO_END)
    for one, prompt in zip(ours, x.split(lengths), strict=True):
        want = backbone.lm.generate(
            inputs_embeds=prompt[None],
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=6,
            do_sample=False,
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
        )
        expected = backbone.lm.compute_transition_scores(want.sequences, want.scores, normalize_logits=True)[0]
        assert list(one.ids) == want.sequences[0].tolist()
        torch.testing.assert_close(torch.tensor(one.log_probs), expected, rtol=1e-4, atol=1e-5)  # fp32, other products


@torch.no_grad()
def test_log_probabilities_are_the_models_own_before_temperature_and_penalties():
    backbone = family("qwen2")
    x, decoding = backbone.embed_tokens(torch.randint(1, 60, (9,))), Decoding(max_new_tokens=6, log_probs=True)
    changed = Decoding(max_new_tokens=6, temperature=0.3, top_k=3, repetition_penalty=1.5, seed=1, log_probs=True)
    for settings in (decoding, changed):
        (one,) = generate_from_embeddings(backbone, x, [9], settings, NO_END)
        rows = torch.cat([x, backbone.embed_tokens(torch.tensor(one.ids))])
        logits = backbone.lm(inputs_embeds=rows[None]).logits[0, 8:-1]
        want = logits.log_softmax(-1).gather(1, torch.tensor(one.ids)[:, None]).squeeze(1)
        torch.testing.assert_close(torch.tensor(one.log_probs), want, rtol=1e-4, atol=1e-5)


# Stop texts -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def free(model):
    """A drawn answer without stop texts."""
    decoding = Decoding(max_new_tokens=24, temperature=1.0, seed=3)
    (result,) = respond(model, [TALKS[0]], decoding)
    assert result.finish_reason == "length"
    return result


def texts_across_tokens(tokenizer, ids):
    """Texts that begin in the middle of a token and end in the middle of another."""
    pieces = [tokenizer.decode([token], skip_special_tokens=True) for token in ids]
    for i in range(3, len(ids) - 3):
        first, middle, last = pieces[i : i + 3]
        if (
            len(first) > 1
            and len(last) > 1
            and first[1:] + middle + last[:-1] in tokenizer.decode(ids, skip_special_tokens=True)
        ):
            yield first[1:] + middle + last[:-1]


def test_a_stop_text_cuts_where_it_begins_whatever_the_tokens(model, free):
    whole = model.backbone.text_tokenizer.decode(free.ids, skip_special_tokens=True)
    pieces = [model.backbone.text_tokenizer.decode([token]) for token in free.ids]
    inside = next(piece[1:-1] for piece in pieces if len(piece) > 3 and piece[1:-1] in whole)
    stops = [*texts_across_tokens(model.backbone.text_tokenizer, free.ids), inside]
    assert len(stops) > 1
    for stop in stops:
        decoding = Decoding(max_new_tokens=24, temperature=1.0, seed=3, stop=("never", stop))
        (result,) = respond(model, [TALKS[0]], decoding)
        assert (result.text, result.finish_reason) == (whole.partition(stop)[0].strip(), "stop")
        assert result.ids == free.ids[: result.answer_tokens]
        decode = partial(model.backbone.text_tokenizer.decode, skip_special_tokens=True)
        assert stop in decode(result.ids)
        assert stop not in decode(result.ids[:-1])
        chat = Chat(model, decoding=decoding)
        assert chat.ask(QUESTIONS[0]) == result.text
        assert chat.last_result == result


def test_a_stream_gives_no_character_of_a_stop_text(model, free):
    whole = model.backbone.text_tokenizer.decode(free.ids, skip_special_tokens=True)
    for stop in texts_across_tokens(model.backbone.text_tokenizer, free.ids):
        chat = Chat(model, decoding=Decoding(max_new_tokens=24, temperature=1.0, seed=3, stop=(stop,)))
        assert "".join(chat.stream(QUESTIONS[0])) == whole.partition(stop)[0]
        assert chat.last_result is not None
        assert chat.messages[-1].text == chat.last_result.text == whole.partition(stop)[0].strip()


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["a b", "##", "#c"], ["###"], "a b"),
        (["a##", "b#", "#", "#"], ["###"], "a##b"),
        (["a##"], ["###"], "a##"),
        (["aab", "aac"], ["aac"], "aab"),
        (["xy"], ["y", "xy"], ""),
        (["one", " two", " three"], ["two three", "e t"], "on"),
        (["one", " two"], [], "one two"),
    ],
)
def test_pieces_are_held_back_only_while_they_may_be_a_stop_text(pieces, stops, expected):
    assert "".join(cut_pieces(pieces, stops)) == expected
    assert "".join(cut_pieces(list("".join(pieces)), stops)) == expected


def test_a_stop_text_that_is_a_special_token_ends_an_answer_as_an_end_token(model):
    (free,) = respond(model, TALKS[:1], Decoding(max_new_tokens=12))
    tokenizer = model.backbone.text_tokenizer
    with torch.no_grad():
        head = model.backbone.lm.get_output_embeddings().weight
        head[tokenizer.convert_tokens_to_ids("<|endoftext|>")] = 3 * head[free.ids[5]]
    (result,) = respond(model, TALKS[:1], Decoding(max_new_tokens=12, stop=("<|endoftext|>",)))
    assert result.finish_reason == "stop"
    assert result.answer_tokens == len(result.ids) + 1
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") not in result.ids


def test_a_stop_text_that_a_broken_character_hides_at_first_is_found(model):
    tokenizer = model.backbone.text_tokenizer
    ids = tokenizer.encode("red ü end", add_special_tokens=False)
    assert any("\ufffd" in tokenizer.decode([token]) for token in ids)
    writer = AnswerWriter(model.backbone, StopSequences((), ("ü",)))
    for token in ids:
        if writer.is_unfinished:
            writer.append_token(token, None)
    tokens = writer.to_tokens(log_probs=False)
    assert tokenizer.decode(tokens.ids) == "red ü"


# Whatever else is answered ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoding", [Decoding(max_new_tokens=8, log_probs=True), DRAWN], ids=["greedy", "drawn"])
def test_a_result_is_the_same_alone_and_in_any_batch(model, decoding):
    alone = [respond(model, [talk], decoding)[0] for talk in TALKS]
    for limit in (1, 200, 600, 10**6):
        order = random.Random(limit).sample(range(len(TALKS)), len(TALKS))
        results = respond(model, [TALKS[i] for i in order], decoding, max_batch_tokens=limit)
        for i, result in zip(order, results, strict=True):
            assert (result.ids, result.text, result.finish_reason) == (
                alone[i].ids,
                alone[i].text,
                alone[i].finish_reason,
            )
            if decoding.log_probs:
                torch.testing.assert_close(result.log_probs, alone[i].log_probs, rtol=1e-4, atol=1e-5)
    assert len({one.ids for one in alone}) > len(TALKS) // 2


def test_samples_share_one_prefill_and_each_is_that_of_its_number(model):
    with counted(model) as run:
        samples = draw_samples(model, TALKS[3:6], 5, DRAWN)
    assert sum(run["rows"]) <= sum(own[0].prompt_tokens for own in samples) + 15 * (DRAWN.max_new_tokens - 1)
    assert [own[0] for own in samples] == respond(model, TALKS[3:6], DRAWN)
    assert [own[:2] for own in samples] == draw_samples(model, TALKS[3:6], 2, DRAWN, max_batch_tokens=1)
    assert all(len({one.ids for one in own}) == 5 for own in samples)
    greedy = draw_samples(model, TALKS[:1], 3, Decoding(max_new_tokens=4))
    assert greedy[0] == greedy[0][:1] * 3


def test_prompts_with_different_texts_draw_different_numbers(model):
    with torch.no_grad():
        for parameter in model.backbone.lm.get_output_embeddings().parameters():
            parameter.zero_()  # every token is as likely as any other
    drawn = respond(model, TALKS[:4], DRAWN)
    assert len({one.ids for one in drawn}) == 4


@pytest.mark.parametrize("number", [0, -1, 1.5, True, None])
def test_a_number_of_samples_that_cannot_be_is_refused(tiny_model, number):
    with pytest.raises(ConfigError, match="write how many answers"):
        draw_samples(tiny_model, TALKS[:1], number)


@pytest.mark.parametrize("limit", [0, -5, 1.5, True, None])
def test_a_limit_of_tokens_that_cannot_be_is_refused(tiny_model, limit):
    with pytest.raises(ConfigError, match=r"max_batch_tokens=.* is no limit"):
        respond(tiny_model, TALKS[:1], max_batch_tokens=limit)


# Batches ----------------------------------------------------------------------------------------------------------------


def test_batches_are_of_about_one_length_and_within_the_limit():
    costs = [random.Random(i).randint(10, 500) for i in range(300)]
    batches = list(split_by_cost(costs, [()] * 300, 1000))
    assert sorted(i for batch in batches for i in batch) == list(range(300))
    assert all(len(batch) * max(costs[i] for i in batch) <= 1000 for batch in batches)
    padded = sum(len(batch) * max(costs[i] for i in batch) for batch in batches)
    assert padded < 1.02 * sum(costs)
    assert list(split_by_cost([5000, 10], [(), ()], 1000)) == [[0], [1]]


def test_items_that_show_the_same_follow_each_other():
    costs, keys = [100, 10, 90, 20, 80], [("a",), ("b",), ("c",), ("a",), ()]
    assert list(split_by_cost(costs, keys, 10**6)) == [[0, 3, 2, 4, 1]]


def test_many_conversations_are_run_in_bounded_pieces_and_what_they_show_is_encoded_once(model):
    talks = [ask(f"{text} {i}", RED) for i in range(6) for text in QUESTIONS] + [ask(text) for text in QUESTIONS]
    with counted(model) as run:
        respond(model, talks, Decoding(max_new_tokens=2), max_batch_tokens=300)
    prefills = [rows for rows in run["rows"] if rows > 20]
    assert len(prefills) > 4
    assert max(prefills) <= 300
    with counted(model) as one:
        respond(model, talks[:1], Decoding(max_new_tokens=2))
    assert run["views"] == one["views"]


def test_a_text_whose_positions_turn_by_their_length_is_answered_alone(tiny_spec):
    import mmblocks

    scaled = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}
    backbone = {**tiny_spec["backbone"], "family": "llama", "further": scaled, "max_tokens": 40}
    model = mmblocks.build({**tiny_spec, "backbone": backbone}, seed=0).eval()
    talks = [ask(QUESTIONS[0]), ask(" ".join(QUESTIONS[:2]))]
    with counted(model) as run:
        results = respond(model, talks, Decoding(max_new_tokens=2))
    assert run["rows"] == [results[1].prompt_tokens, 1, results[0].prompt_tokens, 1]


def test_a_packed_batch_gives_the_results_of_its_conversations(model):
    batch = collate([Processor.from_model(model).make_prompt_sample(talk) for talk in TALKS])
    assert generate(model, batch, DRAWN) == respond(model, TALKS, DRAWN)
