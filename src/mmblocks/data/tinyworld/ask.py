"""What can be said and asked of scenes, in words, with the exact answer.

An asker takes its subject (a scene, or several scenes) and returns a question and its answer, or
None when the subject does not allow that question. Answers are terse: one that has to look something up names what was
asked for and at once what was found ("red circle top left"), since a small model looks up what it has just said; one
that compares first says what it compares.
"""

import random
from collections.abc import Callable

from .scene import COLOURS, SHAPES, Scene, Thing

QuestionAnswer = tuple[str, str] | None
Scenes = tuple[Scene, ...]


def colour(scene: Scene, rng: random.Random) -> QuestionAnswer:
    thing = scene.find_only(shape=rng.choice(scene.things).shape)
    return thing and (f"What colour is the {thing.shape}?", f"{thing.shape} {thing.colour}")


def shape(scene: Scene, rng: random.Random) -> QuestionAnswer:
    thing = scene.find_only(colour=rng.choice(scene.things).colour)
    return thing and (f"What shape is {thing.colour}?", f"{thing.colour} {thing.shape}")


def count(scene: Scene, rng: random.Random) -> QuestionAnswer:
    return "How many shapes are there?", str(len(scene.things))


def where(scene: Scene, rng: random.Random) -> QuestionAnswer:
    thing = rng.choice(scene.things)
    return f"Where is the {thing.name}?", f"{thing.name} {thing.place}"


def left_right(scene: Scene, rng: random.Random) -> QuestionAnswer:
    if len(scene.things) < 2:
        return None
    one, other = rng.sample(scene.things, 2)
    if one.column == other.column:
        return None
    side = "left" if one.column < other.column else "right"
    places = f"{one.name} {one.place}, {other.name} {other.place}"
    return f"Is the {one.name} left or right of the {other.name}?", f"{places}, so {side}"


def which(scenes: Scenes, rng: random.Random) -> QuestionAnswer:
    number = rng.randrange(len(scenes))
    name = rng.choice(scenes[number].things).name
    if sum(thing.name == name for scene in scenes for thing in scene.things) != 1:
        return None
    return f"Which picture shows a {name}?", f"{name} picture {number + 1}"


def tell(scenes: Scenes, rng: random.Random) -> QuestionAnswer:
    number = rng.randrange(len(scenes))
    said = _join_names([f"a {t.name}" for t in scenes[number].things_by_position])
    return f"What is in picture {number + 1}?", f"picture {number + 1} {said}"


def count_in(scenes: Scenes, rng: random.Random) -> QuestionAnswer:
    number = rng.randrange(len(scenes))
    return f"How many shapes are in picture {number + 1}?", f"picture {number + 1} {len(scenes[number].things)}"


def same(scenes: Scenes, rng: random.Random) -> QuestionAnswer:
    """Only of two pictures with one thing each; rejects at random until both answers are as likely."""
    if len(scenes) != 2 or any(len(scene.things) != 1 for scene in scenes):
        return None
    attribute = rng.choice(("colour", "shape"))
    one, other = (getattr(scene.things[0], attribute) for scene in scenes)
    answer = "same" if one == other else "different"
    kinds = len(COLOURS if attribute == "colour" else SHAPES)
    if answer == "different" and rng.random() > 1 / (kinds - 1):
        return None
    return f"Is the {attribute} the same or different?", f"picture 1 {one}, picture 2 {other}, so {answer}"


def direction(scene: Scene, rng: random.Random) -> QuestionAnswer:
    return "Which way does it move?", scene.direction


def mover(scene: Scene, rng: random.Random) -> QuestionAnswer:
    return "What is moving?", scene.things[0].name


SINGLE: dict[str, Callable[[Scene, random.Random], QuestionAnswer]] = {
    f.__name__: f for f in (colour, shape, count, where, left_right)
}
MULTI: dict[str, Callable[[Scenes, random.Random], QuestionAnswer]] = {
    f.__name__: f for f in (which, tell, count_in, same)
}
VIDEO: dict[str, Callable[[Scene, random.Random], QuestionAnswer]] = {f.__name__: f for f in (direction, mover)}


def describe(scene: Scene, rng: random.Random) -> QuestionAnswer:
    return "Describe the picture.", _join_names([f"a {t.name}" for t in scene.things_by_position])


def places(scene: Scene, rng: random.Random) -> QuestionAnswer:
    return "Say what is where.", ", ".join(f"{t.place} {t.name}" for t in scene.things_by_position)


def shape_first(scene: Scene, rng: random.Random) -> QuestionAnswer:
    """Any order: which thing comes first is chance, but not what is then said of it."""
    return "Say which colour each shape has.", ", ".join(f"{t.shape} {t.colour}" for t in _shuffle_things(scene, rng))


def colour_first(scene: Scene, rng: random.Random) -> QuestionAnswer:
    said = ", ".join(f"{t.colour} {t.shape}" for t in _shuffle_things(scene, rng))
    return "Say which shape each colour has.", said


def name_first(scene: Scene, rng: random.Random) -> QuestionAnswer:
    said = ", ".join(f"{t.name} {t.place}" for t in _shuffle_things(scene, rng))
    return "Say where each shape is.", said


CAPTIONS: dict[str, Callable[[Scene, random.Random], QuestionAnswer]] = {
    f.__name__: f for f in (describe, places, shape_first, colour_first, name_first)
}


def describe_scene(scene: Scene, rng: random.Random, *, with_places: bool) -> str:
    """The whole scene as text: what is there, and with `with_places` also where."""
    if not with_places:
        return rng.choice((describe, shape_first, colour_first))(scene, rng)[1]  # type: ignore[index]
    form = rng.choice((places, name_first, None))
    if form is None:
        return ", ".join(f"{t.place} {t.name}" for t in _shuffle_things(scene, rng))
    return form(scene, rng)[1]  # type: ignore[index]


def describe_motion(scene: Scene, rng: random.Random) -> str:
    moving = f"a {scene.things[0].name} moves {scene.direction}"
    parts = [moving, *(f"a {thing.name} stands still" for thing in scene.things[1:])]
    rng.shuffle(parts)
    return ", ".join(parts)


def _shuffle_things(scene: Scene, rng: random.Random) -> list[Thing]:
    return rng.sample(scene.things, len(scene.things))


def _join_names(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
