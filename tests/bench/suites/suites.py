"""The suites by name, each a module with `measure(run)`, imported when it is asked for."""

from __future__ import annotations

import gc
import importlib
import logging
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from mmblocks.errors import ConfigError
from mmblocks.settings import format_suggestion
from tests.bench.suites.rows import Row, write
from tests.bench.suites.run import OutOfTime, Run, Suite, Unequal

log = logging.getLogger(__name__)
SUITES = {
    "counters": "FLOPs, bytes kept for backward, copies, rows that meet the vocabulary, encoder blocks",
    "prefill": "from pixels to the last logits",
    "train": "forward and backward of a mixed batch of four",
    "train_loop": "what a run does beside forward, backward and optimizer",
    "pool": "projector, pooling and merging of a video at the released widths",
    "second_question": "time to the first token of a second question about the same clip",
    "decode": "tokens a second",
    "evaluation": "many documents: answers, and multiple choice by log-likelihood",
    "planning": "lengths of samples from file headers, and steps of a million of them",
    "records": "time and memory of opening files of 10,000 to a million records",
    "attention": "every way to compute attention here",
    "pool_kernel": "bytes a second of the gather that pools",
    "layer_kernels": "the fused norm, gate and rotary embedding of a decoder layer, for a GPU",
    "ceil": "copies and matrix products of the device itself",
    "vit": "tiles a second through the vision tower",
    "memory": "peak of a training step",
    "scale": "how cost grows with images, frames and resolution",
    "images": "processor time of cutting images into normalised tiles",
    "clips": "processor time of reading frames of videos",
    "loading": "processor time and memory of loading a checkpoint",
    "serving": "requests to a server, beside transformers' own and a loop",
    "startup": "processor time until a command has started, beside importing torch and transformers",
}


def find_suite(name: str) -> Suite:
    """A suite by name. Raises `ConfigError` for one that does not exist."""
    if name not in SUITES:
        raise ConfigError(
            f"no benchmark is called {name!r}; there are {', '.join(SUITES)}.{format_suggestion(name, SUITES)}"
        )
    return importlib.import_module(f"tests.bench.suites.{name}").measure


def run_suites(names: Sequence[str], run: Run, out: Path | None) -> Iterator[Row | str]:
    """Run suites one after the other; every row is written to `out` as soon as it is there.

    Yields rows, and texts about what was left out: cases past the deadline, sides that do not compute the same, suites
    that failed. A suite that fails does not end the others.
    """
    suites = {name: find_suite(name) for name in names}
    for name, suite in suites.items():
        rows: list[Row] = []
        begun = time.monotonic()
        try:
            for row in suite(run):
                rows.append(row)
                if out is not None:
                    write(out, rows)
                yield row
        except OutOfTime as reason:
            yield f"{name} at {run.size}: stopped with {len(rows)} rows: {reason}"
        except Unequal as reason:
            yield f"{name} at {run.size}: not timed: {reason}"
        except Exception:
            yield f"{name} at {run.size}: failed after {len(rows)} rows:\n{traceback.format_exc()}"
        _release_memory()
        log.info("%s at %s: %.0f s", name, run.size, time.monotonic() - begun)


def _release_memory() -> None:
    """Give memory back before the next suite builds its models; compiled code holds on to those of the last."""
    gc.collect()
    if torch.cuda.is_available():
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()
