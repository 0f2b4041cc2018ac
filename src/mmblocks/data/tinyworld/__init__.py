"""TinyWorld: pictures, picture sets and clips of coloured shapes with exact questions and answers."""

from .record import TASKS, Task, record
from .scene import Scene, Split, Thing
from .tokenizer import SPECIAL_TOKENS, build_tokenizer

__all__ = ["SPECIAL_TOKENS", "TASKS", "Scene", "Split", "Task", "Thing", "build_tokenizer", "record"]
