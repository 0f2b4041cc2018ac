"""Many questions at a time are answered as each would be alone, share what they have in common, and disturb nobody."""

import asyncio
import random
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import mmblocks
from mmblocks.chat import answer, draw_samples, image, respond, video
from mmblocks.chat.engine import Engine, EngineClosedError, EngineLimits, QueueFullError
from mmblocks.conversation import Conversation, Message, Text
from mmblocks.errors import ConfigError, DataError
from mmblocks.model.generate import Decoding
from tests.families import lively

RED, BLUE = (Image.new("RGB", (60, 40), "red"), Image.new("RGB", (20, 40), "blue"))
CLIP = np.arange(5 * 20 * 30 * 3).astype(np.uint8).reshape(5, 20, 30, 3)
SHORT = Decoding(max_new_tokens=6)
DRAWN = Decoding(max_new_tokens=6, temperature=1.5, seed=3, log_probs=True)
SYSTEM = Message(
    "system", (Text("You are asked about shapes, colours and what moves where. Be short and exact, please."),)
)


@pytest.fixture
def model(tiny_model):
    lively(tiny_model.backbone)
    return tiny_model


@pytest.fixture
def engine(model):
    with Engine(model, EngineLimits(cache_bytes=1 << 20, step_tokens=40)) as made:
        yield made


def ask(*parts, system=False):
    message = Message("user", tuple(Text(part) if isinstance(part, str) else part for part in parts))
    return Conversation((SYSTEM, message) if system else (message,), "test")


QUESTIONS = [
    ask(image(RED), "What colour is the circle?"),
    ask("How many?"),
    ask(video(CLIP), "What is moving?"),
    ask(image(RED), "or", image(BLUE)),
    ask(image(BLUE), "Where is the blue square, and what is beside it?", system=True),
    ask("How many shapes are there in all?", system=True),
]


def wait_until(condition):
    ends = time.monotonic() + 20
    while not condition() and time.monotonic() < ends:
        time.sleep(0.005)
    assert condition()


def count_encoded_views(model):
    """A list that grows by the number of views of every run of the encoder."""
    views = []
    model.encoder.register_forward_pre_hook(lambda _, args: views.append(len(args[0])))
    return views


# The same answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoding", [SHORT, DRAWN], ids=["greedy", "drawn"])
def test_answers_are_those_of_respond(model, engine, decoding):
    requests = [engine.submit(question, decoding) for question in QUESTIONS]
    for request, want in zip(requests, respond(model, QUESTIONS, decoding), strict=True):
        (got,) = request.wait()
        assert replace(got, log_probs=None) == replace(want, log_probs=None)
        if decoding.log_probs:
            torch.testing.assert_close(got.log_probs, want.log_probs, rtol=0, atol=1e-5)


def test_samples_are_those_of_draw_samples(model, engine):
    got = [engine.submit(question, DRAWN, samples=3).wait() for question in QUESTIONS]
    want = draw_samples(model, QUESTIONS, 3, DRAWN)
    assert [[one.ids for one in own] for own in got] == [[one.ids for one in own] for own in want]


@pytest.mark.parametrize("seed", range(4))
def test_nobody_notices_who_else_asks(model, seed):
    """Sixteen readers at random times with random cancels; every answer that is read to its end is right."""
    want = answer(model, QUESTIONS, SHORT)
    limits = EngineLimits(cache_bytes=300 * 512, step_tokens=24, max_running=5)
    wrong, rights = [], []
    with Engine(model, limits) as engine:

        def read_some(number):
            rng = random.Random(100 * seed + number)
            for _ in range(6):
                i = rng.randrange(len(QUESTIONS))
                request = engine.submit(QUESTIONS[i], SHORT)
                if rng.random() < 0.3:
                    for piece in request.stream():
                        if rng.random() < 0.5 or piece.result:
                            break
                    continue
                text = request.wait()[0].text
                (rights if text == want[i] else wrong).append(i)

        threads = [threading.Thread(target=read_some, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until(lambda: engine.read_statistics().running == 0)
    assert not wrong
    assert len(rights) > 40


# A stream ---------------------------------------------------------------------------------------------------------------


def test_pieces_are_the_text_of_the_result(model, engine):
    for question in QUESTIONS:
        *pieces, last = engine.submit(question, SHORT).stream()
        assert "".join(piece.text for piece in [*pieces, last]) == last.result.text
        drawn = [token.id for piece in pieces for token in piece.tokens]
        assert tuple(drawn[: len(last.result.ids)]) == last.result.ids
        assert len(drawn) == last.result.answer_tokens


def test_asyncio_reads_many_at_a_time(model, engine):
    async def read_text(question):
        return "".join([piece.text async for piece in engine.submit(question, SHORT).astream()])

    async def read_all():
        return await asyncio.gather(*map(read_text, QUESTIONS))

    assert asyncio.run(read_all()) == answer(model, QUESTIONS, SHORT)


@pytest.mark.parametrize("by", ["cancel", "reader", "asyncio"])
def test_who_leaves_is_dropped_at_the_next_step(model, by):
    with Engine(model, EngineLimits(cache_bytes=1 << 20)) as engine:
        request = engine.submit(QUESTIONS[1], Decoding(max_new_tokens=400))

        async def read_one():
            pieces = request.astream()
            await anext(pieces)
            await pieces.aclose()

        if by == "cancel":
            request.cancel()
            with pytest.raises(EngineClosedError, match="cancelled"):
                request.wait()
        elif by == "reader":
            next(request.stream())
        else:
            asyncio.run(read_one())
        wait_until(lambda: engine.read_statistics().running == 0)
        statistics = engine.read_statistics()
        assert statistics.answer_tokens < 400
        assert statistics.used_slots == 0
        assert engine.submit(QUESTIONS[1], SHORT).wait()[0].text == answer(model, QUESTIONS[1:2], SHORT)[0]


# What questions share ---------------------------------------------------------------------------------------------------


def test_a_visual_is_encoded_once(model, engine):
    views, rows = count_encoded_views(model), []
    for question in ("What colour?", "Where is it?", "Which shape?"):
        engine.submit(ask(image(RED), question), SHORT).wait()
        rows.append(engine.read_statistics())
    assert len(views) == 1
    assert [(one.visual_misses, one.visual_hits) for one in rows] == [(1, 0), (1, 1), (1, 2)]


def test_visuals_of_several_questions_are_encoded_together(model):
    views = count_encoded_views(model)
    with Engine(model, EngineLimits(step_tokens=4096)) as engine:
        with engine._changed:  # so that all are there before the first is begun
            requests = []
            for colour in ("red", "green", "blue"):
                question = ask(image(Image.new("RGB", (40, 40), colour)), "Which?")
                requests.append(engine.submit(question, SHORT))
        for request in requests:
            request.wait()
    assert len(views) == 1


def test_a_prompt_that_begins_alike_is_not_computed_again(model, engine):
    which_way, which_colour = (ask(video(CLIP), text, system=True) for text in ("Which way?", "What is the colour?"))
    shared, before = [], 0
    for question in (which_way, which_colour, which_way, which_way):
        got = engine.submit(question, SHORT).wait()[0]
        assert got.text == answer(model, [question], SHORT)[0]
        shared.append(engine.read_statistics().shared_tokens - before)
        before += shared[-1]
    nothing, common, common_again, all_but_one = shared
    assert nothing == 0
    assert got.prompt_tokens // 2 < common == common_again < all_but_one == got.prompt_tokens - 1


def test_questions_about_one_video_wait_for_the_first_of_them(model, engine):
    questions = [ask(video(CLIP), f"Question {i}?") for i in range(4)]
    with engine._changed:
        requests = [engine.submit(question, SHORT) for question in questions]
    assert [request.wait()[0].text for request in requests] == answer(model, questions, SHORT)
    statistics = engine.read_statistics()
    assert statistics.visual_misses == 1
    assert statistics.shared_tokens > statistics.prompt_tokens // 2


def test_a_longer_conversation_goes_on_in_its_span(model, engine):
    messages, copied = [], []
    copy_rows = engine._scheduler._prefixes.pool.copy_rows
    engine._scheduler._prefixes.pool.copy_rows = lambda *args: (copied.append(args), copy_rows(*args))
    for turn in range(4):
        messages.append(Message("user", ((image(RED),) if not turn else ()) + (Text(f"Turn {turn}: what is this?"),)))
        before = engine.read_statistics()
        result = engine.submit(Conversation(tuple(messages)), SHORT).wait()[0]
        assert result.text == answer(model, [Conversation(tuple(messages))], SHORT)[0]
        messages.append(Message("assistant", (Text(result.text),)))
        if turn:
            assert engine.read_statistics().shared_tokens - before.shared_tokens > before.prompt_tokens // 4
    assert not copied


def test_what_other_weights_computed_is_not_shared(model, engine):
    engine.submit(QUESTIONS[0], SHORT).wait()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    assert engine.submit(QUESTIONS[0], SHORT).wait()[0].text == answer(model, QUESTIONS[:1], SHORT)[0]
    assert engine.read_statistics().shared_tokens == 0
    assert engine.read_statistics().visual_misses == 2


def test_a_text_whose_positions_turn_by_their_length_is_answered_alone(tiny_spec):
    scaled = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}
    backbone = {**tiny_spec["backbone"], "family": "llama", "further": scaled, "max_tokens": 40}
    model = mmblocks.build({**tiny_spec, "backbone": backbone}, seed=0).eval()
    questions, most = [ask("How many?"), ask("How many? " * 4), ask("How many? " * 3)], 0
    with Engine(model, EngineLimits(step_tokens=4)) as engine:
        with engine._changed:
            requests = [engine.submit(question, SHORT) for question in questions]
        for request, want in zip(requests, answer(model, questions, SHORT), strict=True):
            assert request.wait()[0].text == want
            most = max(most, engine.read_statistics().running)
    assert most <= 1


# Room -------------------------------------------------------------------------------------------------------------------


def test_questions_wait_until_there_is_room(model):
    """A cache for one or two of them at a time; spans of answered ones are given up."""
    longest = max(result.prompt_tokens for result in respond(model, QUESTIONS, SHORT)) + SHORT.max_new_tokens
    per_token = EngineLimits(cache_bytes=1 << 20).count_slots(model)
    with Engine(model, EngineLimits(cache_bytes=(1 << 20) // per_token * (longest + 10))) as engine:
        assert longest <= engine.read_statistics().slots < 2 * longest
        requests = [engine.submit(question, SHORT) for question in QUESTIONS * 3]
        most = 0
        for request, want in zip(requests, answer(model, QUESTIONS, SHORT) * 3, strict=True):
            assert request.wait()[0].text == want
            most = max(most, engine.read_statistics().used_slots)
        assert most <= engine.read_statistics().slots


def test_what_can_never_fit_is_refused(model):
    with Engine(model, EngineLimits(cache_bytes=20_000, max_running=2)) as engine:
        with pytest.raises(DataError, match="answers of up to 900 tokens do not fit"):
            engine.submit(QUESTIONS[0], Decoding(max_new_tokens=900))
        with pytest.raises(ConfigError, match="max_tokens=1024 in all"):
            engine.submit(QUESTIONS[0], Decoding(max_new_tokens=9000))
        with pytest.raises(DataError, match="3 answers of up to 2 tokens do not fit"):
            engine.submit(QUESTIONS[1], Decoding(max_new_tokens=2), samples=3)


def test_a_full_queue_takes_no_more(model):
    with Engine(model, EngineLimits(max_queued=2, max_running=1)) as engine:
        running = engine.submit(QUESTIONS[1], Decoding(max_new_tokens=100))
        next(pieces := running.stream())
        for _ in range(2):
            engine.submit(QUESTIONS[1], SHORT)
        with pytest.raises(QueueFullError, match="2 questions wait"):
            engine.submit(QUESTIONS[1], SHORT)
        pieces.close()
        wait_until(lambda: not engine.read_statistics().queued)
        assert engine.submit(QUESTIONS[1], SHORT).wait()


@pytest.mark.parametrize(
    "limits", [{"cache_bytes": 0}, {"max_running": 0}, {"max_queued": 1.5}, {"step_tokens": True}, {"visual_bytes": -1}]
)
def test_limits_that_cannot_be_are_refused(limits):
    with pytest.raises(ConfigError, match=f"engine: {next(iter(limits))}="):
        EngineLimits(**limits)


@pytest.mark.parametrize("given", [{"samples": 0}, {"samples": 1.5}, {"top_log_probs": -1}, {"top_log_probs": True}])
def test_numbers_that_cannot_be_are_refused(engine, given):
    with pytest.raises(ConfigError, match=f"engine: {next(iter(given))}="):
        engine.submit(QUESTIONS[1], SHORT, **given)


# Faults -----------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_refused_at_once(engine, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png"):
        engine.submit(ask(image(tmp_path / "broken.png"), "What?"))
    with pytest.raises(DataError, match="item 0 is"):
        engine.submit("What?")


def test_an_encoder_that_fails_ends_its_own_question_only(model):
    def refuse(_, args):
        if (args[0] > 0.9).flatten(1).all(1).any():  # a white image
            raise RuntimeError("too bright")

    model.encoder.register_forward_pre_hook(refuse)
    white = ask(image(Image.new("RGB", (40, 40), "white")), "What?")
    with Engine(model) as engine:
        with engine._changed:
            requests = [engine.submit(question, SHORT) for question in (QUESTIONS[0], white, QUESTIONS[2])]
        with pytest.raises(RuntimeError, match="too bright"):
            requests[1].wait()
        got = [requests[0].wait()[0].text, requests[2].wait()[0].text]
        assert got == answer(model, [QUESTIONS[0], QUESTIONS[2]], SHORT)
        wait_until(lambda: engine.read_statistics().running == 0)


def test_an_error_of_the_engine_reaches_every_reader_and_the_next_question_is_answered(model, caplog):
    with Engine(model) as engine:
        scheduler = engine._scheduler

        def fail():
            raise RuntimeError("broken")
            yield

        scheduler.advance = fail
        with engine._changed:
            requests = [engine.submit(question, SHORT) for question in QUESTIONS[:2]]
        for request in requests:
            with pytest.raises(RuntimeError, match="broken"):
                request.wait()
        assert engine.submit(QUESTIONS[1], SHORT).wait()[0].text == answer(model, QUESTIONS[1:2], SHORT)[0]
    assert "all questions end with this error" in caplog.text


# The end ----------------------------------------------------------------------------------------------------------------


def test_a_closed_engine_answers_nobody(model):
    engine = Engine(model)
    request = engine.submit(QUESTIONS[1], Decoding(max_new_tokens=1000))
    engine.close()
    with pytest.raises(EngineClosedError, match="was closed"):
        request.wait()
    with pytest.raises(EngineClosedError, match="takes no more"):
        engine.submit(QUESTIONS[1])
    engine.close()
    assert "mmblocks engine" not in [thread.name for thread in threading.enumerate()]


def test_a_drained_engine_has_answered_everybody(model):
    engine = Engine(model)
    requests = [engine.submit(question, SHORT) for question in QUESTIONS]
    engine.close(drain=True)
    assert [request.wait()[0].text for request in requests] == answer(model, QUESTIONS, SHORT)


def test_draining_ends_after_its_time(model):
    engine = Engine(model)
    request = engine.submit(QUESTIONS[1], Decoding(max_new_tokens=1000))
    begins = time.monotonic()
    engine.close(drain=True, timeout=0.05)
    assert time.monotonic() - begins < 10
    with pytest.raises(EngineClosedError, match="was closed"):
        request.wait()
