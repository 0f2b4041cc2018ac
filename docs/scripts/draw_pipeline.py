"""Draw docs/images/pipeline.svg: the way from a conversation to an answer.

python docs/scripts/draw_pipeline.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FIGURE = Path(__file__).parents[1] / "images/pipeline.svg"
WIDTH, HEIGHT = 960, 376
GREY, INK = "#7d8590", "#1c2128"
DATA, PART, LEARNED = ("#d9e8fb", "#5b8cc9"), ("#dff3e0", "#5aa469"), ("#fdeecb", "#c9993d")
GLYPH = 0.62
"""Width of a letter in ems, in the widest of the usual fonts; bold letters are a tenth wider."""
GAP, SIDE = 26, 13
WIDTHS = (158, 158, 190, 190, 134)
"""Of the boxes in a row; the gaps between them hold arrows."""


@dataclass(frozen=True, slots=True)
class Box:
    """A titled box with lines of text below the title."""

    name: str
    lines: tuple[str, ...]
    colours: tuple[str, str]


WORKER = (
    Box("conversation", ("text, images,", "videos"), DATA),
    Box("router", ("one image, several", "images, or video"), DATA),
    Box("plan", ("views for the encoder", "and token counts"), DATA),
    Box("sample", ("token ids, labels,", "pixels of the views"), DATA),
    Box("batch", ("packed,", "no padding"), DATA),
)
DEVICE = (
    Box("encoder", ("SigLIP, CLIP,", "DINOv2, timm, ..."), PART),
    Box("projector", ("MLP, Q-Former,", "resampler, ..."), PART),
    Box("visual tokenizer", ("AnyRes tiles, frames,", "pooling"), PART),
    Box("language model", ("Qwen, Llama, Mistral,", "... of transformers"), PART),
    Box("answer", ("or loss",), DATA),
)


def main() -> None:
    """Write the figure."""
    FIGURE.write_text(figure(), encoding="utf-8")


def figure() -> str:
    """The figure as SVG, readable on light and dark pages."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="ui-sans-serif, Helvetica, Arial, sans-serif" role="img" aria-labelledby="title">'
    )
    title = (
        '<title id="title">From a conversation to an answer: sizes in the data workers, tensors on the device</title>'
    )
    body = [
        title,
        *frame(28, 112, "data workers: sizes and token counts first, pixels last"),
        *row(44, WORKER),
        *frame(196, 172, "device: one forward pass", x=500),
        *row(212, DEVICE),
        *turn(),
        *small_box(2, "learned tokens (newline)"),
        *small_box(3, "text embeddings"),
    ]
    return "\n".join([head, *(f"  {line}" for line in body), "</svg>", ""])


def left(place: int) -> int:
    return SIDE + sum(WIDTHS[:place]) + GAP * place


def middle(place: int) -> float:
    return left(place) + WIDTHS[place] / 2


def frame(top: int, height: int, note: str, x: int = 12) -> list[str]:
    """A dashed frame around a row, with a note above it."""
    return [
        f'<rect x="5" y="{top}" width="{WIDTH - 10}" height="{height}" rx="8" fill="none" stroke="{GREY}" stroke-dasharray="4 4"/>',
        f'<text x="{x}" y="{top - 8}" font-size="13" fill="{GREY}">{note}</text>',
    ]


def row(top: int, boxes: Sequence[Box]) -> Iterator[str]:
    """Boxes from left to right, an arrow from each to the next."""
    for place, box in enumerate(boxes):
        yield rectangle(left(place), top, WIDTHS[place], 80, box.colours)
        yield text(middle(place), top + 26, box.name, WIDTHS[place], 14, bold=True)
        for number, line in enumerate(box.lines):
            yield text(middle(place), top + 47 + 17 * number, line, WIDTHS[place], 12)
        if place:
            yield arrow(left(place) - GAP, top + 40, left(place), top + 40)


def turn() -> Iterator[str]:
    """From the batch down and back to the encoder."""
    last, first = middle(len(WORKER) - 1), middle(0)
    yield f'<path d="M{last} 124 V160 H{first}" stroke="{GREY}" stroke-width="1.6" fill="none"/>'
    yield arrow(first, 160, first, 212)


def small_box(place: int, name: str) -> Iterator[str]:
    """What is written into the sequence beside the image tokens."""
    yield rectangle(left(place), 322, WIDTHS[place], 34, LEARNED)
    yield text(middle(place), 343, name, WIDTHS[place], 12)
    yield arrow(middle(place), 322, middle(place), 292)


# SVG ----------------------------------------------------------------------------------------------------------------


def rectangle(x: float, y: float, width: float, height: float, colours: tuple[str, str]) -> str:
    fill, stroke = colours
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="{stroke}"/>'


def text(x: float, y: float, words: str, room: float, size: int, *, bold: bool = False) -> str:
    """Centred text. Text that could touch its box in a wide font is an error."""
    needed = len(words) * size * GLYPH * (1.1 if bold else 1.0)
    assert needed <= room - 8, f"{words!r} needs {needed:.0f} of {room}"
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x}" y="{y}" font-size="{size}"{weight} fill="{INK}" text-anchor="middle">{words}</text>'


def arrow(x: float, y: float, x2: float, y2: float) -> str:
    """A straight line with a tip."""
    dx, dy = (x2 > x) - (x2 < x), (y2 > y) - (y2 < y)
    tip = f"M{x2} {y2} l{-8 * dx - 4 * dy} {-8 * dy + 4 * dx} l{8 * dy} {-8 * dx} z"
    return f'<path d="M{x} {y} L{x2 - 4 * dx} {y2 - 4 * dy} {tip}" stroke="{GREY}" stroke-width="1.6" fill="{GREY}"/>'


if __name__ == "__main__":
    main()
