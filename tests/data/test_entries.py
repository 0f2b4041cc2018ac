"""Entries of a stage's data: which records are taken, what every question ends in, how weights are shared out."""

import json

import numpy as np
import pytest

from mmblocks.conversation import Conversation, Message, PreferencePair, Text, Visual
from mmblocks.data.mixing.mixture import Draw, Mixture
from mmblocks.data.mixing.wrapped_sources import ConcatenatedSource, PromptedSource, choose_indices
from mmblocks.data.sources import sources
from mmblocks.errors import ConfigError, DataError

PROMPT = "Answer the question using a single word or phrase."


def records(path, *names):
    turns = lambda name: [{"from": "human", "value": name}, {"from": "gpt", "value": "x"}]  # noqa: E731
    path.write_text(json.dumps([{"conversations": turns(name)} for name in names]))
    return str(path)


@pytest.fixture
def ten(tmp_path):
    return {"name": "llava_json", "path": records(tmp_path / "ten.json", *map(str, range(10)))}


def asked(mixture, source=0):
    return [mixture[Draw(source, i)].messages[0].text for i in range(len(mixture.sources[source]))]


@pytest.mark.parametrize(
    ("subset", "kept"),
    [
        ("all", range(10)),
        ("first:3", range(3)),
        ("first:25%", range(3)),
        ("first:0.1%", range(1)),
        ("end:2", (8, 9)),
        ("end:30", range(10)),
    ],
)
def test_an_entry_takes_a_part_of_its_source(ten, subset, kept):
    assert asked(Mixture.from_entries([{**ten, "subset": subset}])) == [str(i) for i in kept]


def test_records_taken_at_random_are_those_of_the_seed():
    drawn = choose_indices(1000, "random:10%")
    assert len(set(drawn.tolist())) == 100
    assert (np.diff(drawn) > 0).all()
    assert np.array_equal(drawn, choose_indices(1000, "random:100:0"))
    assert not np.array_equal(drawn, choose_indices(1000, "random:10%:1"))
    assert np.array_equal(choose_indices(1000, "random:10%:1"), choose_indices(1000, "random:10%", seed=(1,)))


@pytest.mark.parametrize(
    ("use", "fault"),
    [
        ({"subset": "first"}, r"data.1.subset: 'first' chooses no records. Write all, first:N"),
        ({"subset": "last:3"}, "'last:3' chooses no records"),
        ({"subset": "first:-3"}, "chooses no records"),
        ({"subset": "first:1.5"}, "chooses no records"),
        ({"subset": 3}, "3 chooses no records"),
        ({"subset": "end:120%"}, "Write a percentage up to 100%"),
        ({"subset": "end:3:7"}, "'end:3:7' has a seed, but nothing is drawn. Write end:3"),
        ({"subset": "end:0"}, "data.1: this source holds no conversation"),
        ({"weight": 0}, "data.1.weight: weight=0 is no share of the samples"),
        ({"prompt": 1}, "prompt=1 is not a text"),
        ({"tack": "all"}, "has no setting 'tack'"),
    ],
)
def test_a_use_that_makes_no_sense_is_refused(ten, use, fault):
    with pytest.raises(ConfigError, match=fault):
        Mixture.from_entries([ten, {**ten, **use}])


def talk(*parts, answer="x"):
    return Conversation((Message("user", parts), Message("assistant", (Text(answer),))))


PICTURE = Visual("image", "a.png")


@pytest.mark.parametrize(
    ("parts", "ended"),
    [
        ((Text("Which colour?"),), (Text(f"Which colour?\n{PROMPT}"),)),
        ((PICTURE, Text("\nWhich colour?\n")), (PICTURE, Text(f"\nWhich colour?\n{PROMPT}"))),
        ((Text("Which is "), PICTURE), (Text("Which is "), PICTURE, Text(f"\n{PROMPT}"))),
        ((PICTURE,), (PICTURE, Text(f"\n{PROMPT}"))),
        ((), (Text(PROMPT),)),
    ],
)
def test_a_prompt_stands_on_a_line_of_its_own_below_the_question(parts, ended):
    prompted = PromptedSource([talk(*parts)], PROMPT)
    assert prompted[0] == talk(*ended)


def test_every_question_ends_in_the_prompt_and_nothing_else_does():
    twice = Conversation((Message("system", (Text("Be kind."),)), *talk(Text("a")).messages, *talk(Text("b")).messages))
    texts = [m.text for m in PromptedSource([twice], PROMPT)[0].messages]
    assert texts == ["Be kind.", f"a\n{PROMPT}", "x", f"b\n{PROMPT}", "x"]


def test_both_of_a_pair_are_asked_alike():
    pair = PromptedSource([PreferencePair(talk(Text("a")), talk(Text("a"), answer="y"))], PROMPT)[0]
    assert [t.messages[0].text for t in (pair.chosen, pair.rejected)] == [f"a\n{PROMPT}"] * 2


def test_an_entry_of_several_files_is_several_sources_that_share_its_weight(ten, tmp_path):
    records(tmp_path / "two.json", "a", "b")
    several = {"name": "llava_json", "path": str(tmp_path / "{ten,two}.json"), "weight": 3, "prompt": "Say."}
    mixture = Mixture.from_entries([several, {**ten, "subset": "first:1"}])
    assert mixture.weights == (2.5, 0.5, 1.0)
    assert [len(source) for source in mixture.sources] == [10, 2, 1]
    assert asked(mixture, 1) == ["a\nSay.", "b\nSay."]
    assert [name.partition(" ")[0] for name in mixture.names] == ["0", "0", "1"]
    assert mixture.names[1].endswith("two.json")
    taken = Mixture.from_entries([{**several, "subset": "end:3"}])
    assert asked(taken) == ["9\nSay.", "a\nSay.", "b\nSay."]


def test_sources_in_a_row_are_read_by_number():
    row = ConcatenatedSource(["ab", "", "cde"], ["one", "none", "two"])
    assert [row[i] for i in range(5)] == list("abcde")
    assert row[-1] == "e"
    with pytest.raises(IndexError):
        row[5]


# The mixture YAML ---------------------------------------------------------------------------------------------------


def mixture_file(folder, text):
    (folder / "m.yaml").write_text(text)
    return str(folder / "m.yaml")


def test_a_mixture_file_is_several_sources(ten, tmp_path):
    (tmp_path / "deep").mkdir()
    records(tmp_path / "deep/two.json", "a", "b")
    path = mixture_file(
        tmp_path,
        "datasets:\n- json_path: ten.json\n  sampling_strategy: random:30%\n"
        "- {json_path: deep/two.json, prompt: Say., images: deep}\n",
    )
    mixture = Mixture.from_entries([{"name": "llava_mixture", "path": path, "seed": 1}])
    assert [len(source) for source in mixture.sources] == [3, 2]
    assert asked(mixture, 1) == ["a\nSay.", "b\nSay."]
    assert mixture.names[1].endswith("m.yaml: deep/two.json")
    drawn = {
        tuple(asked(Mixture.from_entries([{"name": "llava_mixture", "path": path, "seed": s}]))) for s in range(20)
    }
    assert len(drawn) > 5
    assert all(len(set(one)) == 3 for one in drawn)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("datasets: []", "m.yaml: there is no list 'datasets'"),
        ("- a", "there is no list 'datasets'"),
        ("datasets: [a]", "datasets.0: 'a' is not a dataset. Write json_path: FILE"),
        ("datasets: [{json_paths: a.json}]", "datasets.0.json_paths is not a setting. Did you mean 'json_path'"),
        ("datasets: [{json_path: 3}]", "json_path=3 is not str"),
        (
            "datasets: [{json_path: ten.json, sampling_strategy: 'half:1'}]",
            "datasets.0.sampling_strategy: 'half:1' chooses",
        ),
        ("datasets: [{", "m.yaml: not YAML"),
        ("datasets: [{json_path: gone.json}]", r"datasets.0: .*gone.json does not exist; paths are relative to"),
        ("datasets: [{json_path: ten.csv}]", r"ten.csv: its name ends in '.csv'"),
    ],
)
def test_a_fault_in_a_mixture_file_has_its_place(ten, tmp_path, text, fault):
    (tmp_path / "ten.csv").touch()
    with pytest.raises((ConfigError, DataError), match=fault):
        sources.build("llava_mixture", path=mixture_file(tmp_path, text))
