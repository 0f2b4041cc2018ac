"""Sizes, boxes, views and plans of visuals, in integers. No torch.

A size is always (height, width); the unit is in the name of the variable (`_px`, `_cells`).
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

VisualKind = Literal["image", "video"]
Scenario = Literal["image", "multi_image", "video"]
ResizeFilter = Literal["bicubic", "lanczos"]
SCENARIOS: tuple[Scenario, ...] = ("image", "multi_image", "video")


class Size(NamedTuple):
    """Height and width, in this order."""

    height: int
    width: int

    @property
    def area(self) -> int:
        return self.height * self.width

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


class Box(NamedTuple):
    """A rectangle inside an image or a grid."""

    top: int
    left: int
    height: int
    width: int

    @property
    def size(self) -> Size:
        return Size(self.height, self.width)


@dataclass(frozen=True, slots=True)
class VisualShape:
    """An image or video before it is decoded: its size in pixels, its number of frames and frames per second.

    note: text about it, such as a camera's pose, for tokenizers with inline text. times_s: when each frame of a video of
    variable frame rate is shown, ascending from 0, with `fps` the average up to the end of the last frame; None where frame
    i is shown at i / fps.
    """

    kind: VisualKind
    size: Size
    num_frames: int = 1
    fps: float = 1.0
    note: str = ""
    times_s: tuple[float, ...] | None = None

    def compute_frame_time_s(self, frame: int) -> float:
        """When a frame is shown."""
        return frame / self.fps if self.times_s is None else self.times_s[frame]


@dataclass(frozen=True, slots=True)
class View:
    """One image for the encoder, cut from one frame.

    The frame is centred on a mean-coloured background of `framed` pixels (its own size when nothing is added), resized
    to `resized`, centred on a black background of `canvas` pixels, and `window` is cut out of that.
    """

    frame: int
    framed: Size
    resized: Size
    canvas: Size
    window: Box
    resize: ResizeFilter = "bicubic"


@dataclass(frozen=True, slots=True)
class VisualPlan:
    """Where every token of one visual comes from, in integers: comparable, picklable, made without reading a pixel.

    num_tokens: rows of the visual, learned tokens included. inline_texts: texts before, between and after these rows
    ("at 1.50s: "), each with the number of rows before it, in their order; they are not visual tokens.
    """

    views: tuple[View, ...]
    num_tokens: int
    inline_texts: tuple[tuple[int, str], ...] = field(default=(), kw_only=True)

    @property
    def unique_views(self) -> tuple[View, ...]:
        """The distinct views in the order of their first occurrence; each is rendered and encoded once."""
        return tuple(dict.fromkeys(self.views))

    def split_into_pieces(self) -> tuple[int | str, ...]:
        """Rows and inline texts in reading order: a number of rows, or a text; nothing empty."""
        pieces: list[int | str] = []
        begin = 0
        for rows_before, text in self.inline_texts:
            assert begin <= rows_before <= self.num_tokens, (
                f"inline_texts={self.inline_texts} leaves 0 to {self.num_tokens} rows"
            )
            pieces += [rows_before - begin, text]
            begin = rows_before
        return tuple(piece for piece in (*pieces, self.num_tokens - begin) if piece)


@dataclass(frozen=True, slots=True)
class RoutedPlan:
    """A plan and the scenario whose visual tokenizer made it and assembles it."""

    scenario: Scenario
    plan: VisualPlan
