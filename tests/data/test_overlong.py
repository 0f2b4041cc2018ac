"""Samples over the limit of tokens: raised with how many there are, left out, or cut at the end of their last answer."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmblocks.batch import IGNORE
from mmblocks.components import templates
from mmblocks.conversation import Conversation, Message, PreferencePair, Text, Visual
from mmblocks.data.inspect.figures import compute_figures
from mmblocks.data.inspect.lint import lint_mixture
from mmblocks.data.mixing.mixture import Draw, Mixture
from mmblocks.data.mixing.overlong import CutRecord, append_cuts, format_cuts, list_cuts
from mmblocks.data.mixing.skipped_records import make_samples
from mmblocks.data.planning.lengths_cache import LengthsCache
from mmblocks.data.planning.measure import measure_draws
from mmblocks.data.sample.encode import TooLong
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import DataError

TEMPLATES = ("chatml", "vicuna_v1", "llama_2", "llava_llama_3", "llava_v0", "gemma_instruct", "mpt", "turns")
PICTURE = Visual("image", Image.new("RGB", (24, 24)))


@pytest.fixture(scope="module")
def processor(tiny_spec):
    return Processor.from_spec(tiny_spec)


def talk(*turns, learn=True):
    """Turns of user and assistant in alternation, each a text or a tuple of parts."""
    messages = []
    for i, turn in enumerate(turns):
        parts = tuple(Text(p) if isinstance(p, str) else p for p in (turn if isinstance(turn, tuple) else (turn,)))
        messages.append(Message(("user", "assistant")[i % 2], parts, learn or i < len(turns) - 1))
    return Conversation(tuple(messages), "talk")


TALK = talk((PICTURE, "\nwhat is it ?"), "a red one", "and now ?", "a blue square in the middle of it")


def limited(processor, limit, overlong="cut_answer"):
    return replace(processor, max_tokens=limit, overlong=overlong)


def encoded(processor, conversation=TALK):
    return processor.encode_item(conversation)[0]


def last_answer(whole):
    """The first and the last row of the last run of learned tokens."""
    learned = [False, *(whole.targets != IGNORE).tolist()][: len(whole)]
    last = max(row for row, is_learned in enumerate(learned) if is_learned)
    return max(row for row in range(last) if not learned[row]) + 1, last


# Cutting --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_cut_sample_is_the_beginning_of_the_whole_one_and_learns_the_same(processor, name):
    processor = replace(processor, template=templates.build(name))
    whole = encoded(processor)
    first, _ = last_answer(whole)
    for limit in range(first + 1, len(whole)):
        cut = encoded(limited(processor, limit))
        assert torch.equal(cut.input_ids, whole.input_ids[:limit])
        assert torch.equal(cut.targets[:-1], whole.targets[: limit - 1])
        assert cut.targets[-1] == IGNORE  # its next token is cut
        assert torch.equal(cut.visual_positions, whole.visual_positions)
        assert (cut.num_cut, cut.plans) == (len(whole) - limit, whole.plans)
        assert (cut.targets[first - 1 :] != IGNORE).any()
    assert encoded(limited(processor, len(whole))).num_cut == 0
    with pytest.raises(TooLong, match=rf"talk: {len(whole)} tokens \(\d+ of them visual\), the limit is {first}"):
        encoded(limited(processor, first))


@pytest.mark.parametrize(
    "conversation",
    [
        talk("what is it ?", "a red one", "and now , after a long long while ?"),
        talk("what is it ?", "a red one in the middle of it", learn=False),
        talk("what is it ?", "a red one", "and now ?", "a red one in the middle of it", learn=False),
        talk("what is it ?", ("look", PICTURE)),
    ],
    ids=["ends in a question", "learns nothing", "ends in an answer that is not learned", "ends in a visual"],
)
def test_questions_visuals_and_answers_that_are_not_learned_are_never_cut(processor, conversation):
    try:
        length = len(encoded(processor, conversation))
    except DataError:  # nothing is trained at all
        length = 20
    with pytest.raises(DataError):
        encoded(limited(processor, length - 8), conversation)


def test_a_prompt_is_never_cut(processor):
    asked = talk("what is it ?", "a red one", "and now , after a long long while ?")
    length = len(processor.encode_conversation_prompt(asked))
    with pytest.raises(TooLong, match=f"the limit is {length - 1}"):
        limited(processor, length - 1).encode_conversation_prompt(asked)


# Sources --------------------------------------------------------------------------------------------------------------

WORDS = (1, 30, 2, 40, 3)
"""Words of the answers of five records; with a limit of 25 tokens two are too long."""
LIMIT = 25


@pytest.fixture
def data(tmp_path):
    records = [
        {
            "id": i,
            "conversations": [{"from": "human", "value": "what ?"}, {"from": "gpt", "value": " ".join(["red"] * n)}],
        }
        for i, n in enumerate(WORDS)
    ]
    (tmp_path / "data.json").write_text(json.dumps(records))
    return {"name": "llava_json", "path": str(tmp_path / "data.json")}


def longest(processor, mixture):
    return max(len(processor.encode_item(mixture[Draw(0, i)])[0]) for i in range(len(WORDS)))


def test_the_error_says_how_many_records_are_too_long_and_at_which_limit_none_would_be(processor, data):
    mixture = Mixture.from_entries([data, {"name": "tinyworld", "task": "text", "size": 3}])
    short = limited(processor, LIMIT, "raise")
    said = r"record 1 \(id 1\): \d+ tokens .*the limit is 25.*Of the 5 records of '0 llava_json .*' 2 are too long; "
    said += rf"with max_tokens={longest(processor, mixture)} none would be\..* Or write overlong: skip"
    with pytest.raises(TooLong, match=said):
        measure_draws(mixture, mixture.draw_all(), short)
    with pytest.raises(TooLong, match=said):
        make_samples(mixture, [Draw(0, 0), Draw(0, 1)], short, "answers", "raise")
    right = limited(processor, longest(processor, mixture), "raise")
    assert measure_draws(mixture, mixture.draw_all(), right).broken == []


def test_lengths_that_were_measured_are_kept_when_others_are_too_long(processor, data, tmp_path):
    mixture = Mixture.from_entries([data])
    cache = LengthsCache.from_settings(tmp_path / "cache", [data], {}, processor)
    with pytest.raises(TooLong):
        measure_draws(mixture, mixture.draw_all(), limited(processor, LIMIT, "raise"), cache=cache)
    assert sorted(draw.record for draw in cache.read()) == [0, 2, 4]


def test_of_a_large_source_some_records_are_looked_at(processor, data, tmp_path, monkeypatch):
    monkeypatch.setattr("mmblocks.data.mixing.overlong.MAX_CHECKED", 2)
    mixture = Mixture.from_entries([data])
    with pytest.raises(TooLong, match=r"Of [23] of the 5 records of .* \d (is|are) too long"):
        make_samples(mixture, [Draw(0, 3)], limited(processor, LIMIT, "raise"), "answers", "raise")


def test_skipping_leaves_out_what_is_too_long_and_nothing_else(processor, data):
    mixture = Mixture.from_entries([data])
    skipping = limited(processor, LIMIT, "skip")
    samples, broken = make_samples(mixture, mixture.draw_all(), skipping, "answers", "raise")
    assert len(samples) == 3
    assert [record.origin[-6:] for record in broken] == ["(id 1)", "(id 3)"]
    measured = measure_draws(mixture, mixture.draw_all(), skipping)
    assert measured.readable.tolist() == [0, 2, 4]
    records = Path(data["path"])
    gone = {"id": 9, "image": "gone.png", "conversations": []}
    records.write_text(json.dumps([*json.loads(records.read_text()), gone]))
    mixture = Mixture.from_entries([data])
    with pytest.raises(DataError, match=r"record 5"):
        make_samples(mixture, [Draw(0, 5)], skipping, "answers", "raise")


def test_what_cutting_takes_is_counted(processor, data, tmp_path):
    mixture, cutting = Mixture.from_entries([data]), limited(processor, LIMIT)
    measured = measure_draws(mixture, mixture.draw_all(), cutting)
    lengths = [len(processor.encode_item(mixture[Draw(0, i)])[0]) for i in range(5)]
    assert measured.cut.tolist() == [max(0, n - LIMIT) for n in lengths]
    assert measured.sizes.tokens.tolist() == [min(n, LIMIT) for n in lengths]
    samples, broken = make_samples(mixture, mixture.draw_all(), cutting, "answers", "raise")
    cut = [one for sample in samples for one in list_cuts([sample], mixture.names[0])]
    assert (broken, [one.tokens for one in cut]) == ([], [lengths[1] - LIMIT, lengths[3] - LIMIT])
    append_cuts(tmp_path / "cut.jsonl", [*cut, cut[0]])  # drawn again in another epoch
    lost = lengths[1] + lengths[3] - 2 * LIMIT
    assert list(format_cuts(tmp_path / "cut.jsonl", {mixture.names[0]: 5})) == [
        f"{mixture.names[0]}: 2 of 5 records lost {lost} tokens at the end of their last answer"
    ]
    assert list(format_cuts(tmp_path / "none.jsonl", {})) == []
    assert cut[0] == CutRecord(mixture[Draw(0, 1)].origin, lengths[1] - LIMIT, mixture.names[0])


def test_both_answers_of_a_pair_count_as_one_record(processor):
    pair = PreferencePair(
        TALK, replace(TALK, messages=(*TALK.messages[:-1], Message("assistant", (Text("red " * 20),))))
    )
    limit = len(encoded(processor)) - 2
    samples = limited(processor, limit).make_training_samples(pair)
    (cut,) = list_cuts(samples, "0 pairs")
    assert cut.tokens == 2 + len(encoded(processor, pair.rejected)) - limit


def test_the_choice_names_the_cache_of_lengths(processor, data, tmp_path):
    def file(overlong):
        return LengthsCache.from_settings(tmp_path, [data], {}, limited(processor, LIMIT, overlong)).file

    assert file("raise") != file("cut_answer")
    cache = LengthsCache(file("cut_answer"))
    mixture, cutting = Mixture.from_entries([data]), limited(processor, LIMIT)
    first = measure_draws(mixture, mixture.draw_all(), cutting, cache=cache)
    assert measure_draws(mixture, mixture.draw_all(), cutting, cache=cache).cut.tolist() == first.cut.tolist()


# Reports --------------------------------------------------------------------------------------------------------------


def test_the_lint_names_the_limit_that_takes_all_and_passes_over_what_is_skipped_or_cut(processor, data):
    mixture = Mixture.from_entries([data])
    report = lint_mixture(mixture, limited(processor, LIMIT, "raise"))
    assert f"2 x longer than the limit of tokens; with max_tokens={longest(processor, mixture)} none" in str(report)
    with pytest.raises(DataError, match="set `overlong`"):
        report.require_no_faults()
    report.require_no_faults(skip_overlong=True)
    cut = lint_mixture(mixture, limited(processor, LIMIT))
    cut.require_no_faults()
    assert "2 x cut at the end of the last answer" in str(cut)
    with pytest.raises(DataError, match="5 x longer"):
        lint_mixture(mixture, limited(processor, 3, "skip")).require_no_faults(skip_overlong=True)


def test_figures_count_cut_samples_as_long_as_they_are_trained(processor, data):
    (figures,) = compute_figures(Mixture.from_entries([data]), limited(processor, LIMIT))
    assert figures.tokens.max() == LIMIT
    assert len(figures.lint.cut) == 2
