"""Times of several ways to do the same thing, taken in turns in one process, so that a busy machine slows all of them."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from tests.bench.suites.run import Run


@dataclass(frozen=True, slots=True)
class Way:
    """One way to do it. `run` is given the number of the input set, or what `prepare`, which is not timed, made of it."""

    run: Callable[[Any], Any]
    prepare: Callable[[int], Any] | None = None

    def ready(self, number: int) -> Any:
        """What is handed to a timed call on that input set, made outside of the clock."""
        return number if self.prepare is None else self.prepare(number)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of every repeat, in their order."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        if len(self.seconds) < 2:
            return 0.0
        lower, _, upper = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (upper - lower) / 2 / self.median


def time_in_turns(ways: Mapping[str, Way | Callable[[int], Any]], run: Run) -> dict[str, Timing]:
    """Time all ways in turns: every round does each of them once on the same input set, and rounds rotate the sets.

    The first `run.warmups` rounds are not kept. Processor time of this process at one thread on a CPU, events on a GPU.
    """
    made = {name: way if isinstance(way, Way) else Way(way) for name, way in ways.items()}
    taken: dict[str, list[float]] = {name: [] for name in made}
    with use_one_thread(), _pause_collection():
        for number in range(run.warmups + run.repeats):
            for name, way in made.items():
                seconds = _time_once(way, number % run.input_sets, run.device)
                if number >= run.warmups:
                    taken[name].append(seconds)
            gc.collect(1)  # what this round left; going through everything takes longer than a round
    return {name: Timing(tuple(seconds)) for name, seconds in taken.items()}


def _time_once(way: Way, number: int, device: torch.device) -> float:
    state = way.ready(number)
    if device.type != "cuda":
        begin = time.process_time()
        way.run(state)
        return time.process_time() - begin
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    way.run(state)
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


@contextmanager
def use_one_thread() -> Iterator[None]:
    """Compute with one thread on the CPU, so that processor time is time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _pause_collection() -> Iterator[None]:
    """Keep Python's garbage collector out of what is timed; it runs between rounds."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
