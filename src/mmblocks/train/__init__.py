"""Training: stages as data, a thin loop on torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def run(recipe: Mapping[str, Any]) -> Path:
    """Train a composed recipe; see `mmblocks.train.loop.run`."""
    from mmblocks.train.loop import run as train

    return train(recipe)
