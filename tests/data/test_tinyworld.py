"""TinyWorld is a pure function of its arguments, its answers are true, and what is held out is never trained on."""

import random
from collections import Counter

import numpy as np
import pytest

from mmblocks.assets import FOLDER
from mmblocks.data import tinyworld
from mmblocks.data.sources import sources
from mmblocks.data.tinyworld import TASKS, ask, build_tokenizer, draw, make_labelled_image, make_record
from mmblocks.data.tinyworld.scene import COLOURS, SHAPES, Scene, Thing, sample_moving, sample_one_colour, sample_still
from mmblocks.errors import ConfigError


def texts(made):
    return ["".join(p.get("text", f"<{p['type']}>") for p in m["content"]) for m in made["messages"]]


def pixels(made):
    parts = [p for m in made["messages"] for p in m["content"]]
    return [np.asarray(p.get("image", p.get("video"))) for p in parts if p["type"] != "text"]


@pytest.mark.parametrize("task", TASKS)
def test_a_record_is_a_function_of_its_arguments(task):
    one, same, other = make_record(task, 3, turns=3), make_record(task, 3, turns=3), make_record(task, 4, turns=3)
    assert texts(one) == texts(same)
    assert all(np.array_equal(a, b) for a, b in zip(pixels(one), pixels(same), strict=True))
    assert texts(one) != texts(other) or pixels(one)[0].shape != pixels(other)[0].shape


@pytest.mark.parametrize("sample", [sample_still, sample_moving])
def test_no_held_out_scene_is_ever_drawn_for_training(sample):
    trained = {sample(random.Random(i), "train") for i in range(3000)}
    held_out = {sample(random.Random(i), "heldout") for i in range(3000)}
    assert trained.isdisjoint(held_out)
    assert {s.split for s in trained} == {"train"}
    assert {s.split for s in held_out} == {"heldout"}


def test_the_split_does_not_depend_on_the_order_in_which_things_are_listed():
    things = (Thing("red", "circle", 0, 0), Thing("blue", "ring", 2, 1), Thing("red", "cross", 1, 1))
    assert len({Scene(tuple(order)).split for order in (things, things[::-1], things[1:] + things[:1])}) == 1


def test_every_kind_of_question_is_asked_about_as_often():
    kinds = Counter(make_record("single", i)["kind"] for i in range(1000))
    assert set(kinds) == set(ask.SINGLE)
    assert min(kinds.values()) > 150


SCENE = Scene((Thing("red", "circle", 0, 0), Thing("blue", "ring", 2, 1), Thing("white", "cross", 1, 2)))


def all_asked(asker, subject):
    return dict(pair for seed in range(60) if (pair := asker(subject, random.Random(seed))))


def test_answers_say_what_is_there():
    assert all_asked(ask.colour, SCENE) == {
        "What colour is the circle?": "circle red",
        "What colour is the ring?": "ring blue",
        "What colour is the cross?": "cross white",
    }
    assert all_asked(ask.shape, SCENE)["What shape is blue?"] == "blue ring"
    assert all_asked(ask.count, SCENE) == {"How many shapes are there?": "3"}
    assert all_asked(ask.where, SCENE)["Where is the white cross?"] == "white cross middle right"
    assert all_asked(ask.left_right, SCENE)["Is the white cross left or right of the blue ring?"] == (
        "white cross middle right, blue ring bottom centre, so right"
    )
    assert ask.describe(SCENE, random.Random(0)) == (
        "Describe the picture.",
        "a red circle, a white cross and a blue ring",
    )


def test_a_question_with_two_answers_is_not_asked():
    twins = Scene((Thing("red", "circle", 0, 0), Thing("red", "ring", 2, 1)))
    assert all_asked(ask.shape, twins) == {}
    assert all_asked(ask.left_right, Scene((Thing("red", "circle", 0, 1), Thing("red", "ring", 2, 1)))) == {}


def test_questions_about_several_pictures_name_the_right_one():
    one, other = Scene((Thing("red", "circle", 0, 0),)), Scene((Thing("red", "ring", 2, 1),))
    assert all_asked(ask.which, (one, other)) == {
        "Which picture shows a red circle?": "red circle picture 1",
        "Which picture shows a red ring?": "red ring picture 2",
    }
    assert set(all_asked(ask.same, (one, other)).values()) == {
        "picture 1 red, picture 2 red, so same",
        "picture 1 circle, picture 2 ring, so different",
    }


def test_in_a_scene_of_one_colour_only_the_shape_tells_a_thing():
    looks = sample_one_colour(random.Random(0), 4)
    assert len({colour for colour, _ in looks}) == 1
    assert len({shape for _, shape in looks}) == 4


def test_labels_of_cells_say_where_each_colour_and_shape_was_drawn():
    picture, labels = make_labelled_image(5)
    image = np.asarray(picture).astype(int)
    for row, column in np.argwhere(labels[0] > 0):
        colour = np.array(list(COLOURS.values())[labels[0, row, column] - 1])
        height, width = image.shape[0] / 3, image.shape[1] / 3
        cell = image[int(row * height) : int((row + 1) * height), int(column * width) : int((column + 1) * width)]
        assert np.abs(cell - colour).sum(axis=-1).min() < 70  # tint and noise
    assert labels.shape == (4, *tinyworld.GRID)
    assert labels[1].max() <= len(SHAPES)


def test_the_first_thing_of_a_clip_moves_and_the_others_stand_still():
    scene = Scene((Thing("red", "square", 0, 0), Thing("white", "square", 2, 2)), "right", 2)
    frames = draw.draw_video(scene, random.Random(0)).astype(int)

    def middle(frame, colour):
        there = np.argwhere(np.abs(frame - np.array(COLOURS[colour])).sum(axis=-1) < 90)
        return there.mean(axis=0)

    moved = middle(frames[-1], "red") - middle(frames[0], "red")
    stood = middle(frames[-1], "white") - middle(frames[0], "white")
    assert moved[1] > 25
    assert abs(moved[0]) < 2
    assert np.abs(stood).max() < 1


def test_questions_that_name_whole_things_come_last():
    for i in range(300):
        naming = [kind in ("where", "left_right") for kind in make_record("single", i, turns=4)["kinds"]]
        assert naming == sorted(naming)


@pytest.mark.parametrize("task", tinyworld.KINDS)
def test_only_the_kinds_that_are_wanted_are_asked(task):
    for kind in tinyworld.KINDS[task]:
        assert {k for i in range(20) for k in make_record(task, i, turns=3, kinds=(kind,))["kinds"]} == {kind}


@pytest.mark.parametrize(
    ("task", "kinds", "said"),
    [
        ("single", ("wher",), "write one of colour, shape, count, where, left_right"),
        ("text", ("where",), "this task takes no kinds"),
    ],
)
def test_kinds_that_a_task_does_not_have_are_refused(task, kinds, said):
    with pytest.raises(ConfigError, match=said):
        sources.build({"name": "tinyworld", "task": task, "kinds": kinds})


def test_the_words_that_ship_are_those_of_tinyworld():
    fresh = build_tokenizer(records=600)
    shipped = (FOLDER / "tinyworld_text/tokenizer.json").read_text()
    from tokenizers import Tokenizer

    assert Tokenizer.from_str(shipped).get_vocab() == fresh.get_vocab()


def test_a_word_of_tinyworld_is_one_token_and_any_other_text_survives():
    tokenizer = build_tokenizer(records=200)
    assert len(tokenizer.encode("What colour is the triangle?").ids) == 6
    assert tokenizer.decode(tokenizer.encode("Ein Bär, 3 €!").ids) == "Ein Bär, 3 €!"
