"""Figures of a server in the text format of Prometheus."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from mmblocks.chat.engine import EngineStatistics

FIRST_TOKEN_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(slots=True)
class Histogram:
    """How many values are up to each bound."""

    bounds: tuple[float, ...]
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add_value(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass(slots=True)
class Metrics:
    """What a server counts beside its engine: answers by route and status, and seconds to the first token."""

    responses: Counter[tuple[str, int]] = field(default_factory=Counter)
    cancelled: int = 0
    first_token_s: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_BOUNDS_S))

    def format_text(self, engine: EngineStatistics, waiting: int) -> str:
        """All figures. waiting: requests whose media are read."""
        return "\n".join([*self._list_lines(engine, waiting), ""])

    def _list_lines(self, engine: EngineStatistics, waiting: int) -> Iterator[str]:
        yield from _format_head("requests_total", "counter", "Requests by route and status.")
        for (route, status), count in sorted(self.responses.items()):
            yield f'mmblocks_requests_total{{route="{route}",status="{status}"}} {count}'
        gauges = (
            ("requests_running", engine.running, "Answers that are written now."),
            ("requests_queued", engine.queued, "Requests that wait for room."),
            ("requests_preparing", waiting, "Requests whose media are read."),
            ("cache_slots", engine.slots, "Tokens that the cache of keys and values holds."),
            ("cache_used_slots", engine.used_slots, "Of these, the tokens that are in it."),
        )
        for name, value, text in gauges:
            yield from _format_figure(name, "gauge", value, text)
        counters = (
            ("requests_cancelled_total", self.cancelled, "Requests whose client has left."),
            ("steps_total", engine.steps, "Runs of the language model."),
            ("prompt_tokens_total", engine.prompt_tokens, "Tokens of prompts."),
            ("prompt_tokens_shared_total", engine.shared_tokens, "Of these, those that were in the cache."),
            ("answer_tokens_total", engine.answer_tokens, "Tokens of answers."),
            ("visuals_cached_total", engine.visual_hits, "Images and videos that were in the cache."),
            ("visuals_encoded_total", engine.visual_misses, "Images and videos that were encoded."),
        )
        for name, value, text in counters:
            yield from _format_figure(name, "counter", value, text)
        yield from self._list_histogram_lines()

    def _list_histogram_lines(self) -> Iterator[str]:
        name, histogram = "time_to_first_token_seconds", self.first_token_s
        yield from _format_head(name, "histogram", "Seconds from the end of a request's body to its first token.")
        count = 0
        for bound, own in zip((*map(str, histogram.bounds), "+Inf"), histogram.counts, strict=True):
            count += own
            yield f'mmblocks_{name}_bucket{{le="{bound}"}} {count}'
        yield f"mmblocks_{name}_sum {histogram.total:.6f}"
        yield f"mmblocks_{name}_count {count}"


def _format_head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP mmblocks_{name} {text}"
    yield f"# TYPE mmblocks_{name} {kind}"


def _format_figure(name: str, kind: str, value: int, text: str) -> Iterator[str]:
    yield from _format_head(name, kind, text)
    yield f"mmblocks_{name} {value}"
