"""TinyWorld: pictures, picture sets and clips of coloured shapes with exact questions and answers."""

from .record import TASKS, Task, labelled_picture, record
from .scene import GRID, NUM_CELL_LABELS, Scene, Split, Thing
from .tokenizer import SPECIAL_TOKENS, build_tokenizer

__all__ = [
    "GRID",
    "NUM_CELL_LABELS",
    "SPECIAL_TOKENS",
    "TASKS",
    "Scene",
    "Split",
    "Task",
    "Thing",
    "build_tokenizer",
    "labelled_picture",
    "record",
]
