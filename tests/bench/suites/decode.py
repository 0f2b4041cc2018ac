"""Tokens a second while answers are written, what comes before the first one left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mmblocks.model.generate import Decoding, generate
from mmblocks.model.onevision import OneVision
from tests.bench.suites import peer
from tests.bench.suites.cases import Case, make_cases
from tests.bench.suites.comparing import Peer, is_working, keep_fastest
from tests.bench.suites.equal import require_same_logits
from tests.bench.suites.rows import PeerSetting, Row
from tests.bench.suites.run import Run, Unequal
from tests.bench.suites.sizes import make_model
from tests.bench.suites.timing import Timing, time_in_turns

NAME = "decode"
BATCHES = (1, 8)
Writing = Callable[[int], Callable[[int], Any]]
"""Of a number of tokens: what writes so many for an input set."""


def measure(run: Run) -> Iterator[Row]:
    """The time of a long answer less that of one token."""
    model = make_model(run.scale, run.device, run.dtype)
    theirs = peer.make_peer(model)
    for scenario in ("text", "video") if run.on_gpu else ("text",):
        for batch in BATCHES:
            run.require_time(before=f"{scenario}, batch {batch}")
            yield from _measure_batch(run, model, theirs, scenario, batch)


def count_new_tokens(run: Run) -> int:
    """How many tokens are written."""
    return 4 if run.tiny else 64 if run.on_gpu else 32


@torch.no_grad()
def _measure_batch(run: Run, model: OneVision, theirs: nn.Module, scenario: str, batch: int) -> list[Row]:
    sets, new = make_cases(model, run, *[scenario] * batch), count_new_tokens(run)
    error = require_same_logits(f"{NAME} {scenario}", model, theirs, sets[0])
    entries = [entry for entry in _list_settings(run, model, theirs, sets) if is_working(entry.peer(new))]
    if run.dtype == torch.float32:  # narrower types round another word to the top now and then
        _require_same_tokens(_write_ours(model, sets)(new)(0), entries[0].writing(new)(0))
    mine, *others = _measure_seconds(run, [_write_ours(model, sets), *(entry.writing for entry in entries)], new)
    timed = [(entry.peer(new), Timing((seconds,))) for entry, seconds in zip(entries, others, strict=True)]
    context = sets[0].batch.num_tokens // batch
    written = batch * (new - 1)
    return [
        run.row(
            NAME,
            f"batch {batch} after {context} tokens",
            f"{new} tokens each",
            "tokens/s",
            written / mine,
            written / timing.median,
            setting=entry.setting,
            settings=entry.settings,
            less_is_better=False,
            error=error,
        )
        for entry, timing in keep_fastest(timed)
    ]


def _write_ours(model: OneVision, sets: list[Case]) -> Writing:
    return lambda new: lambda i: [list(one.ids) for one in generate(model, sets[i].batch, Decoding(max_new_tokens=new))]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A setting of the peer, and what writes with it."""

    setting: PeerSetting
    settings: str
    writing: Writing

    def peer(self, new: int) -> Peer:
        return Peer(self.setting, self.settings, self.writing(new))


def _list_settings(run: Run, model: OneVision, theirs: nn.Module, sets: list[Case]) -> list[_Entry]:
    """`generate` with its own cache, and on a GPU with a static one, for which transformers compiles the step."""

    def writing(of: Any = theirs, **settings: Any) -> Writing:
        return lambda new: (
            lambda i: of.generate(**sets[i].padded, max_new_tokens=new, do_sample=False, pad_token_id=0, **settings)[
                :, sets[i].padded["input_ids"].shape[1] :
            ].tolist()
        )

    found = [_Entry("as shipped", "generate, dynamic cache", writing())]
    if run.on_gpu:
        found.append(_Entry("best", "generate, dynamic cache", writing()))
        static = writing(cache_implementation="static")
        found.append(_Entry("best", "generate, static cache, compiled", static))
        found += [_Entry("best", f"generate, {words}", writing(fast)) for words, fast in peer.list_fast_peers(model)]
    return found


def _measure_seconds(run: Run, writings: list[Writing], new: int) -> list[float]:
    """Seconds that each needs for all tokens but the first."""
    ways = {f"{n} {i}": writing(n) for i, writing in enumerate(writings) for n in (new, 1)}
    timed = time_in_turns(ways, run)
    return [timed[f"{new} {i}"].median - timed[f"1 {i}"].median for i in range(len(writings))]


def _require_same_tokens(mine: list[list[int]], other: list[list[int]]) -> None:
    if mine != other:
        raise Unequal(f"{NAME}: ours writes {mine}, the peer {other}.")
