"""Questions about drawings: what is held out stays out of training, and what counts as an answer."""

import json

from tests.weights.emoji import CATEGORIES, KINDS, Thing, make_question, read_things, write_training_files
from tests.weights.measures import count_exact


def write_entries(folder):
    """An emoji.json of 300 things with drawings of all hands, and some that are left out."""
    shown = {f"has_img_{hand}": True for hand in ("google", "twitter", "facebook")}
    names = [f"THING {i}" for i in range(300)]
    entries = [
        {"name": name, "category": category, "image": f"{name}.png", **shown}
        for name, category in zip(names, [*CATEGORIES] * 60, strict=True)
    ]
    left_out = [
        {**entries[0], "name": "CLOCK FACE ONE OCLOCK"},
        {**entries[0], "name": "GRIN", "category": "Smileys & Emotion"},
        {**entries[0], "name": "NOT BY FACEBOOK", "has_img_facebook": False},
    ]
    (folder / "emoji.json").write_text(json.dumps([*entries, *left_out]))
    return folder


def test_held_out_things_are_in_no_training_record(tmp_path):
    things = read_things(write_entries(tmp_path))
    assert len(things) == 300
    held_out = [thing for thing in things if thing.is_held_out]
    assert 0 < len(held_out) < 80
    write_training_files(tmp_path, tmp_path)
    for file, records in (("captions.jsonl", 2), ("questions.jsonl", 6)):
        text = (tmp_path / file).read_text()
        assert len(text.splitlines()) == records * (300 - len(held_out))
        assert "facebook" not in text
        assert not [thing.name for thing in held_out if f'"{thing.name}"' in text or f"{thing.name}.png" in text]


def test_which_asks_about_two_things_of_a_category_that_are_both_held_out_or_both_not(tmp_path):
    things = read_things(write_entries(tmp_path))
    by_name = {thing.name: thing for thing in things}
    for thing in things:
        options = make_question("which", thing, things, seed=1).text.removeprefix("Is this ")[:-1].split(" or ")
        assert thing.name in options
        one, other = (by_name[name] for name in options)
        assert one != other
        assert (one.category, one.is_held_out) == (other.category, other.is_held_out)


def test_answers_count_when_they_are_exact_and_names_of_the_right_category_are_counted_apart():
    things = [Thing("red apple", "food", "a.png"), Thing("bread", "food", "b.png"), Thing("drum", "object", "c.png")]
    questions = [make_question(kind, things[0], things[:2], seed=0) for kind in KINDS for _ in range(2)]
    answers = [" Red apple", "bread", "food", "object", "bread", "red apple "]
    counted = {row["measure"]: (row["value"], row["of"]) for row in count_exact(questions, answers, things)}
    assert counted == {"name": (1, 2), "category": (1, 2), "which": (1, 2), "category of the name": (2, 2)}
