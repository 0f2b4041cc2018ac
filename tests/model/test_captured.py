"""Decoding with captured steps, on the CPU: a recording runs the same operations on the same tensors, as a CUDA graph does."""

from itertools import chain

import pytest
import torch

from mmblocks.model.generate import Decoding, StopSequences
from mmblocks.model.generation import drawing, step, writing
from mmblocks.model.generation.step import DecodingStep
from mmblocks.model.generation.store import KVCache
from mmblocks.model.generation.writing import decode_answers, prefill_prompts
from tests.families import FAMILIES, family
from tests.recordings import record

NO_END = StopSequences((), ())
LENGTHS = [5, 9, 1]


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Graphs that are recordings, and steps that are started before tokens are looked at."""
    for module in (step, drawing):
        monkeypatch.setattr(module, "capture_cuda_graph", record)
    monkeypatch.setattr(writing, "STEPS_AHEAD", {"cpu": 2})


def decode(backbone, decoding, stop=NO_END, *, rounds=1, capture=False, streamer=None):
    """The answers of `rounds` runs by one step, of other prompts each time."""
    decoding_step, answers = DecodingStep(backbone, KVCache(len(LENGTHS)), torch.device("cpu")), []
    for seed in range(rounds):
        torch.manual_seed(seed)
        x = backbone.embed_tokens(torch.randint(1, 60, (sum(LENGTHS),)))
        decoding_step.store.truncate_to(0)
        decoding_step.store.reserve_slots(max(LENGTHS) + decoding.max_new_tokens)
        logits = prefill_prompts(backbone, decoding_step.store, x, LENGTHS)
        if capture:
            decoding_step.capture_graph()
        keys = [(seed, i) for i in range(len(LENGTHS))]
        answers.append(decode_answers(decoding_step, logits, decoding, stop, keys=keys, streamer=streamer))
        drawn = [a.answer_tokens for a in answers[-1]]
        assert decoding_step.store.lengths == [n + d - 1 for n, d in zip(LENGTHS, drawn, strict=True)]
    return answers


RULES = [
    {},
    {"log_probs": True},
    {"temperature": 1.3, "seed": 3},
    {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "seed": 3},
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 1.7, "min_new_tokens": 6, "temperature": 0.8, "seed": 1},
]


@torch.no_grad()
@pytest.mark.parametrize("settings", RULES, ids=str)
def test_captured_steps_and_draws_write_the_same_answers(settings, as_on_a_gpu):
    backbone, decoding, ends = (
        family("qwen2"),
        Decoding(max_new_tokens=20, **settings),
        StopSequences((3, 7, 11, 20), ()),
    )
    want, got = ([*chain(*decode(backbone, decoding, ends, rounds=3, capture=c))] for c in (False, True))
    assert len({len(answer.ids) for answer in want}) > 1
    assert [(a.ids, a.finish_reason) for a in got] == [(a.ids, a.finish_reason) for a in want]
    for ours, theirs in zip(got, want, strict=True):  # float32: sums over visible slots or over all
        assert ours.log_probs == (None if theirs.log_probs is None else pytest.approx(theirs.log_probs, abs=1e-5))


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("qwen3_moe", "mixtral", "gpt_oss")])
def test_families_have_steps_that_can_be_captured(name, as_on_a_gpu):
    backbone, decoding = family(name), Decoding(max_new_tokens=12)
    assert decode(backbone, decoding, rounds=2, capture=True) == decode(backbone, decoding, rounds=2)


@torch.no_grad()
def test_more_tokens_than_random_numbers_are_drawn_at_once(as_on_a_gpu):
    backbone, decoding = family("qwen2"), Decoding(max_new_tokens=150, temperature=1.5, seed=2)
    assert decode(backbone, decoding, capture=True) == decode(backbone, decoding)


@torch.no_grad()
def test_a_rule_is_captured_once_and_another_one_anew(monkeypatch, as_on_a_gpu):
    captured = []

    def count(run, **settings):
        captured.append(run)
        return record(run, **settings)

    monkeypatch.setattr(drawing, "capture_cuda_graph", count)
    backbone = family("qwen2")
    decode(backbone, Decoding(max_new_tokens=12), rounds=3, capture=True)
    assert len(captured) == 1


@torch.no_grad()
def test_n_grams_are_compared_on_the_host_and_so_drawn_uncaptured(as_on_a_gpu):
    backbone, decoding = family("qwen2"), Decoding(max_new_tokens=20)
    backbone.lm.generation_config.no_repeat_ngram_size = 2
    assert decode(backbone, decoding, capture=True) == decode(backbone, decoding)


class Tokens:
    def __init__(self):
        self.values = []

    def put(self, value):
        self.values.append(value.tolist())

    def end(self):
        self.values.append("end")


@torch.no_grad()
def test_a_streamer_gets_no_token_that_was_drawn_ahead(monkeypatch):
    backbone, decoding = family("qwen2"), Decoding(max_new_tokens=30)
    (whole,) = decode(backbone, decoding)
    ends = StopSequences(tuple(answer.ids[4] for answer in whole), ())
    at_once, ahead = Tokens(), Tokens()
    want = decode(backbone, decoding, ends, streamer=at_once)
    monkeypatch.setattr(writing, "STEPS_AHEAD", {"cpu": 2})
    assert decode(backbone, decoding, ends, streamer=ahead) == want
    assert ahead.values == at_once.values
    assert 1 < len(at_once.values) <= 6
