"""Images and videos of a scene, drawn at twice the size and averaged down."""

import random

import numpy as np
from PIL import Image, ImageDraw

from .scene import COLOURS, DIRECTIONS, Scene, Thing

OVERSAMPLE = 2
VIDEO_SIDE_PX = 48
VIDEO_FRAMES = 8
VIDEO_FPS = 4.0
LARGE_SIDE_PX = (80, 96)
SMALL = 0.4
"""How large small shapes are beside usual ones."""

Colour = tuple[int, int, int]
PlacedShape = tuple[str, Colour, float, float, float]  # shape, colour, centre y, centre x, radius (cells)


def draw_image(scene: Scene, rng: random.Random, size_px: tuple[int, int]) -> Image.Image:
    """A (height, width) image; two calls with one scene differ in jitter, background and noise."""
    marks = [_place_shape(thing, rng) for thing in scene.things]
    return Image.fromarray(_add_noise(_paint_shapes(marks, _sample_background(rng), size_px), rng))


def draw_small_shapes(scene: Scene, rng: random.Random) -> Image.Image:
    """An image of 80 to 96 pixels a side whose shapes are about five pixels high in half of its resolution."""
    size_px = (rng.randint(*LARGE_SIDE_PX), rng.randint(*LARGE_SIDE_PX))
    usual = [_place_shape(thing, rng) for thing in scene.things]
    marks = [(shape, colour, y, x, SMALL * radius) for shape, colour, y, x, radius in usual]
    return Image.fromarray(_add_noise(_paint_shapes(marks, _sample_background(rng), size_px), rng))


def draw_video(scene: Scene, rng: random.Random, side_px: int = VIDEO_SIDE_PX) -> np.ndarray:
    """A square (frames, height, width, 3) uint8 video in which the first thing travels at constant speed."""
    marks = [_place_shape(thing, rng) for thing in scene.things]
    background = _sample_background(rng)
    down, right = DIRECTIONS[scene.direction]
    frames = []
    for i in range(VIDEO_FRAMES):
        gone = scene.cells * i / (VIDEO_FRAMES - 1)
        shape, colour, y, x, radius = marks[0]
        moved = (shape, colour, y + down * gone, x + right * gone, radius)
        frames.append(_paint_shapes([*marks[1:], moved], background, (side_px, side_px)))
    return _add_noise(np.stack(frames), rng)


def sample_size_px(rng: random.Random) -> tuple[int, int]:
    """A (height, width): half of the time at most 48 px a side, else 40 to 96 px and an aspect ratio of at most two."""
    if rng.random() < 0.5:
        return rng.randint(36, 48), rng.randint(36, 48)
    short = rng.randint(40, 72)
    long = rng.randint(short, min(96, 2 * short))
    return rng.choice(((short, short), (short, long), (long, short)))


def _place_shape(thing: Thing, rng: random.Random) -> PlacedShape:
    red, green, blue = (min(255, max(0, v + rng.randint(-12, 12))) for v in COLOURS[thing.colour])
    y = thing.row + 0.5 + rng.uniform(-0.1, 0.1)
    x = thing.column + 0.5 + rng.uniform(-0.1, 0.1)
    return thing.shape, (red, green, blue), y, x, rng.uniform(0.38, 0.47)


def _sample_background(rng: random.Random) -> Colour:
    grey = rng.randint(15, 85)
    red, green, blue = (grey + rng.randint(-15, 15) for _ in range(3))
    return red, green, blue


def _paint_shapes(marks: list[PlacedShape], background: Colour, size_px: tuple[int, int]) -> np.ndarray:
    height, width = (side * OVERSAMPLE for side in size_px)
    canvas = Image.new("RGB", (width, height), background)
    pen = ImageDraw.Draw(canvas)
    for shape, colour, row, column, radius in marks:
        y, x, r = row * height / 3, column * width / 3, radius * min(height, width) / 3
        if shape in ("circle", "ring"):
            pen.ellipse((x - r, y - r, x + r, y + r), colour)
        if shape == "ring":
            pen.ellipse((x - 0.5 * r, y - 0.5 * r, x + 0.5 * r, y + 0.5 * r), background)
        elif shape == "square":
            pen.rectangle((x - 0.86 * r, y - 0.86 * r, x + 0.86 * r, y + 0.86 * r), colour)
        elif shape == "triangle":
            pen.polygon([(x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)], colour)
        elif shape == "cross":
            pen.rectangle((x - 0.32 * r, y - r, x + 0.32 * r, y + r), colour)
            pen.rectangle((x - r, y - 0.32 * r, x + r, y + 0.32 * r), colour)
    return np.asarray(canvas.reduce(OVERSAMPLE))


def _add_noise(pixels: np.ndarray, rng: random.Random) -> np.ndarray:
    if rng.random() < 0.5:
        return pixels
    noise = np.random.default_rng(rng.getrandbits(64)).integers(-8, 9, pixels.shape, dtype=np.int16)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)
