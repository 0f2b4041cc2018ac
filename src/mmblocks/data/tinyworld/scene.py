"""Scenes: which coloured shapes stand where, and whether one of them moves.

A scene belongs to the training or to the held-out split by a hash of what defines it (colours,
shapes, coarse places, motion), so a held-out scene cannot occur in training whatever the seed,
the task or the index. Jitter, size, background and noise of an image do not enter the hash.
"""

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "heldout"]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 40, 35),
    "green": (40, 175, 60),
    "blue": (45, 90, 235),
    "yellow": (245, 215, 40),
    "purple": (175, 60, 205),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "centre", "right")
GRID = (len(ROWS), len(COLUMNS))
CELL_LABELS = (1 + len(COLOURS), 1 + len(SHAPES), *GRID)
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
HELDOUT_ONE_IN = 8


@dataclass(frozen=True)
class Thing:
    """A coloured shape in one cell of the three by three grid that every image has."""

    colour: str
    shape: str
    row: int
    column: int

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def place(self) -> str:
        return f"{ROWS[self.row]} {COLUMNS[self.column]}"


@dataclass(frozen=True)
class Scene:
    """One to five things, no two alike; with a direction, the first one moves `cells` cells."""

    things: tuple[Thing, ...]
    direction: str = ""
    cells: int = 0

    @property
    def split(self) -> Split:
        first, rest = self.things[:1], self.things[1:]
        ordered = (first + _sort_things(rest)) if self.direction else _sort_things(self.things)
        key = ";".join(f"{t.name} {t.row} {t.column}" for t in ordered)
        code = zlib.crc32(f"{key}|{self.direction}{self.cells}".encode())
        return "heldout" if code % HELDOUT_ONE_IN == 0 else "train"

    @property
    def things_by_position(self) -> tuple[Thing, ...]:
        return tuple(sorted(self.things, key=lambda t: (t.row, t.column)))

    def find_only(self, **attributes: str) -> Thing | None:
        """The thing with these attributes when there is exactly one."""
        found = [t for t in self.things if all(getattr(t, k) == v for k, v in attributes.items())]
        return found[0] if len(found) == 1 else None


def _sort_things(things: tuple[Thing, ...]) -> tuple[Thing, ...]:
    return tuple(sorted(things, key=lambda t: (t.row, t.column)))


Appearance = tuple[str, str]
AppearanceSampler = Callable[[random.Random, int], list[Appearance]]


def sample_appearances(rng: random.Random, count: int) -> list[Appearance]:
    """Different looks; half of the time also no colour and no shape twice, so that each of them tells its thing."""
    if count <= len(SHAPES) and rng.random() < 0.5:
        return sample_distinct(rng, count)
    chosen = rng.sample(range(len(COLOURS) * len(SHAPES)), count)
    return [(tuple(COLOURS)[i // len(SHAPES)], SHAPES[i % len(SHAPES)]) for i in chosen]


def sample_distinct(rng: random.Random, count: int) -> list[Appearance]:
    """No colour and no shape twice."""
    return list(zip(rng.sample(tuple(COLOURS), count), rng.sample(SHAPES, count), strict=True))


def sample_one_colour(rng: random.Random, count: int) -> list[Appearance]:
    """All of one colour, so that only the shape tells a thing."""
    colour = rng.choice(tuple(COLOURS))
    return [(colour, shape) for shape in rng.sample(SHAPES, count)]


def sample_still(
    rng: random.Random, split: Split, counts: tuple[int, ...] = (1, 2, 3), looks: AppearanceSampler = sample_appearances
) -> Scene:
    """A still scene of one of these counts of things, from this split."""

    def draw_scene() -> Scene:
        count = rng.choice(counts)
        cells = rng.sample(range(9), count)
        return Scene(tuple(Thing(*look, *divmod(c, 3)) for look, c in zip(looks(rng, count), cells, strict=True)))

    return _sample_until(draw_scene, split)


def sample_moving(rng: random.Random, split: Split) -> Scene:
    """A scene whose first thing moves one or two cells; none or one or two others stand still off its path."""

    def draw_scene() -> Scene:
        direction = rng.choice(tuple(DIRECTIONS))
        down, right = DIRECTIONS[direction]
        cells = rng.choice((1, 2))
        row = _sample_start(rng, down * cells)
        column = _sample_start(rng, right * cells)
        path = {(row + down * i, column + right * i) for i in range(cells + 1)}
        free = [divmod(c, 3) for c in range(9) if divmod(c, 3) not in path]
        count = rng.choice((0, 1, 1, 2))
        places = [(row, column), *rng.sample(free, count)]
        things = tuple(Thing(*look, *p) for look, p in zip(sample_appearances(rng, count + 1), places, strict=True))
        return Scene(things, direction, cells)

    return _sample_until(draw_scene, split)


def _sample_start(rng: random.Random, travel: int) -> int:
    return rng.randint(max(0, -travel), 2 - max(0, travel))


def _sample_until(draw: Callable[[], Scene], split: Split) -> Scene:
    while (scene := draw()).split != split:
        pass
    return scene
