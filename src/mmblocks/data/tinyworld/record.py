"""Records: chat messages with images or videos, a pure function of task, index, seed and split."""

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import Image

from . import ask, draw
from .scene import COLOURS, GRID, SHAPES, Scene, Split, sample_distinct, sample_moving, sample_one_colour, sample_still

Task = Literal["text", "caption", "single", "by_shape", "small", "multi", "video"]
TASKS: tuple[Task, ...] = ("text", "caption", "single", "by_shape", "small", "multi", "video")

Part = dict[str, Any]
Askers = dict[str, Callable[[Any, random.Random], ask.QuestionAnswer]]
Kinds = tuple[str, ...]
Turns = list[tuple[str, str, str]]  # kind, question, answer
Subject = TypeVar("Subject", Scene, ask.Scenes)

MULTI_SIDE_PX = (40, 72)
CAPTION_COUNTS = (1, 2, 3, 4, 5)
QUESTION_COUNTS = (1, 2, 2, 3, 3)
KINDS: dict[str, tuple[str, ...]] = {
    "caption": tuple(ask.CAPTIONS),
    "single": tuple(ask.SINGLE),
    "small": tuple(ask.SINGLE),
    "multi": tuple(ask.MULTI),
    "video": tuple(ask.VIDEO),
}
"""Question types of the tasks that can be asked for some of them only."""
NAMING = {"where", "left_right"}
NEED_PLACES = {"tell", "where", "left_right", "describe", "places", "name_first"}


def make_record(
    task: Task, index: int, *, seed: int = 0, split: Split = "train", turns: int = 1, kinds: Sequence[str] = ()
) -> dict[str, Any]:
    """One conversation: `messages`, and `kinds`, the question type of each of its turns.

    The kind of a single turn is drawn evenly from `kinds`, by default all of the task's; up to `turns - 1` further
    questions are asked about the same media, those that name whole things last, since they say what is there. `kind`
    is the first turn's. Only the tasks in KINDS take `kinds`.
    """
    rng = random.Random(f"{seed}/{split}/{task}/{index}")
    chosen = kinds or KINDS.get(task, ())
    media, questions = _MAKERS[task](rng, split, turns, tuple(chosen))
    messages: list[Part] = []
    for _, question, answer in questions:
        content = (
            [{"type": "text", "text": question}] if messages else [*media, {"type": "text", "text": f"\n{question}"}]
        )
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    posed = [kind for kind, _, _ in questions]
    return {"messages": messages, "kind": posed[0], "kinds": posed, "task": task}


def make_labelled_image(index: int, *, seed: int = 0, split: Split = "train") -> tuple[Image.Image, np.ndarray]:
    """An image, and four numbers for each cell of its grid: (4, 3, 3) colour and shape (0 for nothing), row, column.

    For the pretraining of an encoder: classified by them, each becomes a direction of its own in the encoder's features.
    """
    rng = random.Random(f"{seed}/{split}/labelled/{index}")
    scene = sample_still(rng, split, (1, 2, 3, 4, 5))
    looks = np.zeros((2, *GRID), dtype=np.int64)
    for thing in scene.things:
        looks[:, thing.row, thing.column] = 1 + tuple(COLOURS).index(thing.colour), 1 + SHAPES.index(thing.shape)
    return draw.draw_image(scene, rng, draw.sample_size_px(rng)), np.concatenate([looks, np.indices(GRID)])


def _make_still(
    rng: random.Random,
    split: Split,
    turns: int,
    kinds: Kinds,
    *,
    askers: Askers = ask.SINGLE,
    counts: tuple[int, ...] = QUESTION_COUNTS,
    small: bool = False,
) -> tuple[list[Part], Turns]:
    """Questions about one image; small: of small shapes in a large image."""
    scene, questions = _pose_questions(
        _select_askers(askers, kinds), lambda _: sample_still(rng, split, counts), rng, turns
    )
    if small:
        return [{"type": "image", "image": draw.draw_small_shapes(scene, rng)}], questions
    return [_make_image_part(scene, rng)], questions


def _make_by_shape(rng: random.Random, split: Split, turns: int, _: Kinds) -> tuple[list[Part], Turns]:
    """Questions about single images in which the shape alone tells which thing is meant."""
    kinds, looks = rng.choice(((("colour",), sample_distinct), (("where", "left_right"), sample_one_colour)))
    scene, questions = _pose_questions(
        _select_askers(ask.SINGLE, kinds), lambda _: sample_still(rng, split, (2, 3, 4), looks), rng, turns
    )
    return [_make_image_part(scene, rng)], questions


def _make_multi(rng: random.Random, split: Split, turns: int, kinds: Kinds) -> tuple[list[Part], Turns]:
    scenes, questions = _pose_questions(
        _select_askers(ask.MULTI, kinds), lambda kind: _sample_scenes(rng, split, kind), rng, turns
    )
    media: list[Part] = []
    for number, scene in enumerate(scenes, 1):
        side = rng.randint(*MULTI_SIDE_PX)
        image = draw.draw_image(scene, rng, (side, rng.randint(side, min(96, side * 3 // 2))))
        before = ("\n" if number > 1 else "") + f"Picture {number}: "
        media += [{"type": "text", "text": before}, {"type": "image", "image": image}]
    return media, questions


def _make_video(rng: random.Random, split: Split, turns: int, kinds: Kinds) -> tuple[list[Part], Turns]:
    scene, questions = _pose_questions(
        _select_askers(ask.VIDEO, kinds), lambda _: sample_moving(rng, split), rng, turns
    )
    return [{"type": "video", "video": draw.draw_video(scene, rng), "fps": draw.VIDEO_FPS}], questions


def _make_text(rng: random.Random, split: Split, turns: int, _: Kinds) -> tuple[list[Part], Turns]:
    """Words instead of media: one scene, several scenes or a moving scene, and the same questions."""
    about = rng.choices(("caption", "single", "multi", "video"), (4, 4, 3, 1))[0]
    if about == "multi":
        scenes, questions = _pose_questions(ask.MULTI, lambda kind: _sample_scenes(rng, split, kind), rng, turns)
        with_places = any(kind in NEED_PLACES for kind, _, _ in questions)
        descriptions = [ask.describe_scene(scene, rng, with_places=with_places) for scene in scenes]
        words = "\n".join(f"Picture {number}: {said}" for number, said in enumerate(descriptions, 1))
    elif about == "video":
        scene, questions = _pose_questions(ask.VIDEO, lambda _: sample_moving(rng, split), rng, turns)
        words = ask.describe_motion(scene, rng)
    else:
        askers, counts = (ask.CAPTIONS, CAPTION_COUNTS) if about == "caption" else (ask.SINGLE, QUESTION_COUNTS)
        scene, questions = _pose_questions(
            askers, lambda _: sample_still(rng, split, counts), rng, 1 if about == "caption" else turns
        )
        with_places = any(kind in NEED_PLACES for kind, _, _ in questions)
        words = ask.describe_scene(scene, rng, with_places=with_places)
    return [{"type": "text", "text": f"{words}."}], questions


_MAKERS = {
    "text": _make_text,
    "caption": partial(_make_still, askers=ask.CAPTIONS, counts=CAPTION_COUNTS),
    "single": _make_still,
    "by_shape": _make_by_shape,
    "small": partial(_make_still, small=True),
    "multi": _make_multi,
    "video": _make_video,
}


def _select_askers(askers: Askers, kinds: Kinds) -> Askers:
    return {kind: askers[kind] for kind in kinds}


def _pose_questions(
    askers: Askers, sample: Callable[[str], Subject], rng: random.Random, turns: int
) -> tuple[Subject, Turns]:
    """A subject that allows a first question of an evenly drawn kind, and what is asked of it."""
    first = rng.choice(tuple(askers))
    while True:
        subject = sample(first)
        if pair := askers[first](subject, rng):
            break
    posed = {pair[0]: (first, *pair)}
    for _ in range(3 * (turns - 1)):
        kind = rng.choice(tuple(askers))
        if len(posed) < turns and (pair := askers[kind](subject, rng)):
            posed.setdefault(pair[0], (kind, *pair))
    return subject, sorted(posed.values(), key=lambda turn: turn[0] in NAMING)


def _sample_scenes(rng: random.Random, split: Split, kind: str) -> ask.Scenes:
    if kind == "same":
        return tuple(sample_still(rng, split, (1,)) for _ in range(2))
    return tuple(sample_still(rng, split, (1, 2)) for _ in range(rng.choice((2, 3))))


def _make_image_part(scene: Scene, rng: random.Random) -> Part:
    return {"type": "image", "image": draw.draw_image(scene, rng, draw.sample_size_px(rng))}
