"""TinyWorld: images, image sets and videos of coloured shapes with exact questions and answers."""

from .record import KINDS, TASKS, Task, make_labelled_image, make_record
from .scene import CELL_LABELS, GRID, Scene, Split, Thing
from .tokenizer import SPECIAL_TOKENS, build_tokenizer

__all__ = [
    "CELL_LABELS",
    "GRID",
    "KINDS",
    "SPECIAL_TOKENS",
    "TASKS",
    "Scene",
    "Split",
    "Task",
    "Thing",
    "build_tokenizer",
    "make_labelled_image",
    "make_record",
]
