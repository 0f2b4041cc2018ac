"""Sequences that join and leave between steps are answered as each would be alone."""

import random

import pytest
import torch

from mmblocks.errors import ConfigError
from mmblocks.model.generate import Decoding, StopSequences, generate_from_embeddings
from mmblocks.model.generation import batch_graphs, batching
from mmblocks.model.generation.batching import Batcher, SequenceState
from mmblocks.model.generation.pool import KVPool
from tests.families import FAMILIES, family
from tests.recordings import record

NO_END = StopSequences((), ())
LENGTHS = (5, 17, 1, 30, 2, 11)


@pytest.fixture
def backbone():
    return family("qwen2")


def make_prompts(backbone, lengths=LENGTHS):
    return [torch.randn(n, backbone.dim) for n in lengths]


def make_state(batcher, x, decoding, stop=NO_END, **settings):
    span = batcher.pool.reserve_span(len(x) + decoding.max_new_tokens)
    return SequenceState(batcher.backbone, x, span, decoding, stop, **settings)


def run_all(batcher, states, seed=0):
    """Steps until all have ended; states join at random times. Returns ids and failures."""
    rng, waiting, failures = random.Random(seed), [*states], []
    while waiting or batcher.running:
        while waiting and (not batcher.running or rng.random() < 0.4):
            batcher.running.append(waiting.pop(0))
        failures += batcher.step().failures
    return [state.drawn for state in states], failures


def write_alone(backbone, x, decoding, stop=NO_END, **settings):
    (answer,) = generate_from_embeddings(backbone, x, [len(x)], decoding, stop, **settings)
    return answer


@pytest.mark.parametrize("step_tokens", [4, 64])
@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_those_of_a_sequence_alone(name, step_tokens):
    backbone, decoding = family(name), Decoding(max_new_tokens=8)
    prompts = make_prompts(backbone)
    batcher = Batcher(backbone, KVPool(200), step_tokens)
    got, failures = run_all(batcher, [make_state(batcher, x, decoding) for x in prompts], seed=step_tokens)
    assert got == [list(write_alone(backbone, x, decoding).ids) for x in prompts]
    assert not failures


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(max_new_tokens=9, temperature=1.5, seed=4),
        Decoding(max_new_tokens=9, temperature=1.5, top_k=5, top_p=0.8, seed=4),
        Decoding(max_new_tokens=9, repetition_penalty=3.0),
        Decoding(max_new_tokens=9, min_new_tokens=6),
        Decoding(max_new_tokens=9, log_probs=True),
    ],
    ids=str,
)
def test_each_sequence_has_its_own_rule(backbone, decoding):
    prompts, end = make_prompts(backbone), StopSequences((3, 7, 11, 12, 13, 14, 15, 16), ())
    batcher = Batcher(backbone, KVPool(300), 16)
    other = Decoding(max_new_tokens=5, temperature=0.7, seed=1)
    states = [make_state(batcher, x, decoding, end, random_key=(i, 0)) for i, x in enumerate(prompts)]
    others = [make_state(batcher, x, other, NO_END) for x in prompts]
    _, failures = run_all(batcher, [state for pair in zip(states, others, strict=True) for state in pair])
    assert not failures
    for i, (x, state) in enumerate(zip(prompts, states, strict=True)):
        want = write_alone(backbone, x, decoding, end, prompt_keys=[i])
        got = state.writer.to_tokens(log_probs=decoding.log_probs)
        assert (got.ids, got.finish_reason, got.answer_tokens) == (want.ids, want.finish_reason, want.answer_tokens)
        if decoding.log_probs:
            torch.testing.assert_close(got.log_probs, want.log_probs, rtol=0, atol=1e-5)


def test_ngrams_are_not_repeated(backbone):
    backbone.lm.generation_config.no_repeat_ngram_size = 2
    decoding, prompts = Decoding(max_new_tokens=12), make_prompts(backbone)
    batcher = Batcher(backbone, KVPool(300), 16)
    got, _ = run_all(batcher, [make_state(batcher, x, decoding) for x in prompts])
    assert got == [list(write_alone(backbone, x, decoding).ids) for x in prompts]


def test_several_answers_share_one_run_of_the_prompt(backbone):
    decoding, (x,) = Decoding(max_new_tokens=6, temperature=2.0, seed=9), make_prompts(backbone, [20])
    batcher, rows = Batcher(backbone, KVPool(100), 8), []
    backbone.lm.get_decoder().layers[0].register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[1]))
    spans = [batcher.pool.reserve_span(26) for _ in range(2)]
    siblings = [
        SequenceState(backbone, None, span, decoding, NO_END, random_key=(0, i)) for i, span in enumerate(spans, 1)
    ]
    first = make_state(batcher, x, decoding, siblings=siblings)
    run_all(batcher, [first])
    assert rows == [20] + [3] * 5
    want = generate_from_embeddings(backbone, x, [20], decoding, NO_END, samples=3)
    assert [tuple(one.drawn) for one in (first, *siblings)] == [one.ids for one in want]


def test_a_token_comes_with_the_likeliest(backbone):
    (x,), decoding = make_prompts(backbone, [6]), Decoding(max_new_tokens=3, log_probs=True)
    batcher = Batcher(backbone, KVPool(100), 8)
    state = make_state(batcher, x, decoding, top_log_probs=4)
    batcher.running.append(state)
    tokens = []
    while batcher.running:
        tokens += [token for _, token in batcher.step().tokens]
    for token in tokens:
        assert len(token.top) == 4
        assert token.top[0] == (token.id, pytest.approx(token.log_prob, abs=1e-6))
        assert [p for _, p in token.top] == sorted((p for _, p in token.top), reverse=True)


def test_long_prompts_run_in_parts_beside_those_who_write(backbone):
    batcher, decoding = Batcher(backbone, KVPool(200), 10), Decoding(max_new_tokens=20)
    writing, reading = (make_state(batcher, x, decoding) for x in make_prompts(backbone, [3, 45]))
    batcher.running.append(writing)
    batcher.step()
    batcher.running.append(reading)
    for number in range(5):
        assert not reading.drawn
        assert len(writing.drawn) == number + 1
        batcher.step()
    assert len(reading.drawn) == 1


def test_while_nobody_writes_prompts_run_in_larger_parts(backbone):
    batcher, rows = Batcher(backbone, KVPool(200), 10), []
    backbone.lm.get_decoder().layers[0].register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[1]))
    run_all(batcher, [make_state(batcher, x, Decoding(max_new_tokens=1)) for x in make_prompts(backbone, [95])])
    assert rows == [40, 40, 15]


def test_one_that_cannot_be_run_ends_no_other(backbone, monkeypatch):
    """A layer that refuses rows with a number that is not finite, as a device does that reports an error."""

    def refuse(_, args):
        if not args[0].isfinite().all():
            raise RuntimeError("not finite")

    backbone.lm.get_decoder().layers[1].register_forward_pre_hook(refuse)
    decoding, prompts = Decoding(max_new_tokens=7), make_prompts(backbone)
    batcher = Batcher(backbone, KVPool(300), 16)
    broken = make_state(batcher, torch.full((4, backbone.dim), torch.nan), decoding)
    states = [make_state(batcher, x, decoding) for x in prompts]
    got, ((failed, cause),) = run_all(batcher, [*states[:3], broken, *states[3:]])
    assert failed is broken
    assert str(cause) == "not finite"
    assert [got[i] for i in (0, 1, 2, 4, 5, 6)] == [list(write_alone(backbone, x, decoding).ids) for x in prompts]


def test_a_rule_that_fails_ends_its_own_sequences_only(backbone, monkeypatch):
    make_sampler = batching.TokenSampler

    def refuse(rule, device):
        if rule.temperature == 3:
            raise ConfigError("no such rule")
        return make_sampler(rule, device)

    monkeypatch.setattr(batching, "TokenSampler", refuse)
    prompts, batcher = make_prompts(backbone, [4, 9]), Batcher(backbone, KVPool(100), 16)
    good, bad = (
        make_state(batcher, x, Decoding(max_new_tokens=4, temperature=t, seed=0))
        for x, t in zip(prompts, (2, 3), strict=True)
    )
    _, failures = run_all(batcher, [good, bad])
    assert [(state, str(cause)) for state, cause in failures] == [(bad, "no such rule")]
    assert len(good.drawn) == 4


@pytest.mark.parametrize("name", ["qwen2", "gemma2", "gpt_oss", "phi3"])
def test_autocast_runs_in_its_own_type(name):
    backbone, decoding = family(name), Decoding(max_new_tokens=5, log_probs=True)
    prompts, batcher = make_prompts(backbone), Batcher(backbone, KVPool(200), 8)
    with torch.autocast("cpu", torch.bfloat16):
        states = [make_state(batcher, x, decoding) for x in prompts]
        _, failures = run_all(batcher, states)
        want = [write_alone(backbone, x, decoding) for x in prompts]
    assert not failures
    assert {buffer.dtype for buffer in (*batcher.pool._keys, *batcher.pool._values)} == {torch.bfloat16}
    for state, one in zip(states, want, strict=True):  # the first token of each, by the same prompt
        assert state.writer.to_tokens(log_probs=True).log_probs[0] == pytest.approx(one.log_probs[0], abs=0.1)


# Captured steps ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def captured(monkeypatch):
    """Graphs that are recordings; the list grows by each that is captured."""
    made = []

    def capture(run, **settings):
        made.append(run)
        return record(run, **settings)

    monkeypatch.setattr(batch_graphs, "capture_cuda_graph", capture)
    monkeypatch.setattr(batch_graphs, "reasons_against_capture", lambda *_: [])
    monkeypatch.setattr(batch_graphs, "SHORTEST", 16)
    monkeypatch.setattr(batch_graphs, "USES_BEFORE_CAPTURE", 1)
    return made


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("qwen3_moe", "mixtral", "gpt_oss")])
def test_captured_steps_write_the_same_answers(name, captured):
    backbone, decoding = family(name), Decoding(max_new_tokens=12)
    prompts, batcher = make_prompts(backbone), Batcher(backbone, KVPool(300), 8)
    for seed in range(2):
        states = [make_state(batcher, x, decoding) for x in prompts]
        got, failures = run_all(batcher, states, seed=seed)
        assert got == [list(write_alone(backbone, x, decoding).ids) for x in prompts]
        assert not failures
        for state in states:
            batcher.pool.release_span(state.span)
    assert 2 <= len(captured) <= 9  # by numbers of sequences and lengths of spans


def test_rows_to_spare_change_nothing_of_others(backbone, captured):
    decoding, batcher = Decoding(max_new_tokens=10), Batcher(backbone, KVPool(100), 64)
    prompts = make_prompts(backbone, [3, 4, 5])
    got, _ = run_all(batcher, [make_state(batcher, x, decoding) for x in prompts])
    assert got == [list(write_alone(backbone, x, decoding).ids) for x in prompts]
    assert captured


def test_a_pool_without_a_slot_to_spare_runs_uncaptured(backbone, captured):
    (x,), decoding = make_prompts(backbone, [4]), Decoding(max_new_tokens=10)
    batcher = Batcher(backbone, KVPool(14), 64)
    got, _ = run_all(batcher, [make_state(batcher, x, decoding)])
    assert got == [list(write_alone(backbone, x, decoding).ids)]
    assert not captured


def test_other_weights_are_captured_anew(backbone, captured):
    (x,), decoding = make_prompts(backbone, [4]), Decoding(max_new_tokens=10)
    batcher = Batcher(backbone, KVPool(100), 64)
    run_all(batcher, [make_state(batcher, x, decoding)])
    for parameter in backbone.parameters():
        parameter.data = parameter.data * 1.5
    batcher.drop_graphs()
    got, _ = run_all(batcher, [make_state(batcher, x, decoding)])
    assert got == [list(write_alone(backbone, x, decoding).ids)]
    assert len(captured) == 2


def test_a_step_that_cannot_be_captured_runs_as_it_is(backbone, captured, monkeypatch, caplog):
    def refuse(run, **_):
        raise RuntimeError("the host waits\nfor something")

    monkeypatch.setattr(batch_graphs, "capture_cuda_graph", refuse)
    (x,), decoding = make_prompts(backbone, [4]), Decoding(max_new_tokens=10)
    batcher = Batcher(backbone, KVPool(100), 64)
    with caplog.at_level("INFO"):
        got, _ = run_all(batcher, [make_state(batcher, x, decoding)])
    assert got == [list(write_alone(backbone, x, decoding).ids)]
    assert caplog.text.count("steps are not captured (the host waits)") == 1
