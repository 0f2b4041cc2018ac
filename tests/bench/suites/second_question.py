"""Time to the first token of a second question about the same video."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmblocks.chat import Chat
from mmblocks.compat import find_cache_keyword
from mmblocks.conversation import Conversation, Visual
from mmblocks.model.generate import Decoding
from mmblocks.model.onevision import OneVision
from tests.bench.suites import peer
from tests.bench.suites.cases import SCENARIOS, Case, make_case
from tests.bench.suites.comparing import Peer, compare_times
from tests.bench.suites.equal import require_same_logits
from tests.bench.suites.rows import Row
from tests.bench.suites.run import Run, Unequal
from tests.bench.suites.sizes import make_model
from tests.bench.suites.timing import Way

NAME = "second_question"
SECOND = "How many squares are there?"
ONE = Decoding(max_new_tokens=1)


def measure(run: Run) -> Iterator[Row]:
    """Ours is `Chat.ask` from words to words; the peer's inputs are laid out beforehand, and not timed."""
    run.require_time()
    model = make_model(run.scale, run.device, run.dtype)
    with torch.no_grad():
        asked = [_Asked.of(run, model, seed) for seed in range(run.input_sets)]
        theirs = peer.make_peer(model)
        error = require_same_logits(NAME, model, theirs, asked[0].whole)
        _require_same_token(model, theirs, asked[0])
        yield from compare_times(
            run,
            NAME,
            f"about a video of {run.scale.shown.frames} frames",
            f"time to first token, {asked[0].whole.batch.num_tokens} tokens before it",
            Way(lambda chat: chat.ask(SECOND), lambda i: asked[i].chat(model)),
            [*_list_settings(theirs, asked)],
            error=error,
        )


@dataclass(frozen=True, slots=True)
class _Asked:
    """A first question, its answer as ours gave it, and for the peer the whole conversation up to the second answer."""

    first: tuple[str | Visual, ...]
    before: Case
    whole: Case

    @classmethod
    def of(cls, run: Run, model: OneVision, seed: int) -> _Asked:
        parts = SCENARIOS["video"](run.scale.shown, np.random.default_rng(seed))
        first = tuple(part if isinstance(part, str) else Visual("video", part) for part in parts)
        chat = Chat(model, decoding=ONE)
        chat.ask(*first)
        before = Conversation(chat.messages[:-1])
        chat.ask(SECOND)
        cases = (make_case(model, [said]) for said in (before, Conversation(chat.messages[:-1])))
        return cls(first, *(case.to(run.device, run.dtype) for case in cases))

    def chat(self, model: OneVision) -> Chat:
        """A chat in which the first question was answered."""
        chat = Chat(model, decoding=ONE)
        chat.ask(*self.first)
        return chat


def _list_settings(theirs: nn.Module, asked: list[_Asked]) -> Iterator[Peer]:
    """The whole conversation again, as `generate` is called; the prefix's keys and values kept by the caller."""
    new = {"max_new_tokens": 1, "do_sample": False}
    yield Peer("as shipped", "the whole conversation again", lambda i: theirs.generate(**asked[i].whole.padded, **new))
    yield Peer("best", "the whole conversation again", lambda i: theirs.generate(**asked[i].whole.padded, **new))
    yield Peer(
        "best",
        "key-value cache kept by the caller",
        Way(_continue_from_cache, lambda i: _keep_prefix(theirs, asked[i])),
    )


def _keep_prefix(theirs: nn.Module, asked: _Asked) -> tuple[Any, Any, Tensor]:
    """The peer with the keys and values of what the first prompt and the whole conversation begin with, and the rest."""
    before, whole = (case.padded["input_ids"][0] for case in (asked.before, asked.whole))
    cache = getattr(theirs(**asked.before.padded, logits_to_keep=1, use_cache=True), find_cache_keyword(theirs))
    same = int((before == whole[: len(before)]).long().cumprod(0).sum())
    if beyond := len(before) - same:
        cache.crop(-beyond)
    return theirs, cache, whole[None, same:]


def _continue_from_cache(kept: tuple[Any, Any, Tensor]) -> Tensor:
    theirs, cache, rest = kept
    return theirs(input_ids=rest, logits_to_keep=1, **{find_cache_keyword(theirs): cache}).logits[:, -1].argmax(-1)


def _require_same_token(model: OneVision, theirs: nn.Module, asked: _Asked) -> None:
    """Ours through its kept prefix, the peer through its own, and the peer without: one next word."""
    chat = asked.chat(model)
    said = chat.ask(SECOND)
    logits = peer.compute_last_logits(theirs, asked.whole.padded, all_logits=False)
    words = [
        model.backbone.text_tokenizer.decode(ids).strip()
        for ids in (logits.argmax(-1), _continue_from_cache(_keep_prefix(theirs, asked)))
    ]
    if {said} != set(words):
        raise Unequal(f"{NAME}: ours answers {said!r}, the peer {words[0]!r}, and {words[1]!r} from its kept prefix.")
