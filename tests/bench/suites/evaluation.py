"""Many documents: answers, and multiple choice by log-likelihood, beside a loop that asks transformers about one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmblocks.chat import respond, score
from mmblocks.conversation import Conversation
from mmblocks.data.sample.processor import Processor
from mmblocks.model.generate import Decoding
from mmblocks.model.onevision import OneVision
from tests.bench.suites import peer
from tests.bench.suites.cases import SCENARIOS, make_case, make_conversation
from tests.bench.suites.comparing import Peer, compare_times
from tests.bench.suites.rows import Row
from tests.bench.suites.run import Run, Unequal, require_equal
from tests.bench.suites.sizes import Shown, make_model
from tests.bench.suites.timing import Way

NAME = "evaluation"
CHOICES = ("red", "blue", "a green square", "two circles and a red square")
FRAMES = 2
"""Of a video: few, so that 200 videos fit into a minute of a processor."""


@dataclass(frozen=True, slots=True)
class DocumentKind:
    """Documents of one kind: the scenario they show, and how many documents in a row ask about the same."""

    scenario: str
    sharing: int = 1


KINDS: Mapping[str, DocumentKind] = {
    "text": DocumentKind("text"),
    "an image each": DocumentKind("base"),
    "four questions an image": DocumentKind("base", sharing=4),
    "four questions a video": DocumentKind("video", sharing=4),
}


def measure(run: Run) -> Iterator[Row]:
    """Ours is from conversations to results; the peer's inputs are laid out beforehand, and not timed."""
    model = make_model(run.scale, run.device, run.dtype)
    theirs = peer.make_peer(model)
    for name, kind in KINDS.items():
        run.require_time(before=name)
        yield from _measure_kind(run, model, theirs, name, kind)


def count_documents(run: Run) -> tuple[int, int]:
    """Documents of each kind, and tokens of an answer."""
    return (5, 3) if run.tiny else (200, 16)


def make_documents(shown: Shown, kind: DocumentKind, number: int) -> list[Conversation]:
    """Questions of different lengths about random images and videos."""
    documents = []
    for i in range(number):
        parts = SCENARIOS[kind.scenario](shown, np.random.default_rng(i // kind.sharing))
        question = f" Number {i}: which colour has the circle?" + " Look at the square first." * (i % 7)
        documents.append(make_conversation([*parts[:-1], question]))
    return documents


@torch.no_grad()
def _measure_kind(run: Run, model: OneVision, theirs: nn.Module, name: str, kind: DocumentKind) -> list[Row]:
    number, new = count_documents(run)
    documents = make_documents(replace(run.scale.shown, frames=FRAMES), kind, number)
    inputs = [make_case(model, [one]).to(run.device, run.dtype).padded for one in documents]
    processor = Processor.from_model(model)
    choices = [
        processor.encode_continuations(one, processor.encode_conversation_prompt(one), CHOICES) for one in documents
    ]
    rows = []
    for quantity, ours, others in (
        (
            f"{new} tokens each",
            lambda: respond(model, documents, Decoding(max_new_tokens=new)),
            lambda: [_write_answer(theirs, one, new) for one in inputs],
        ),
        (
            f"{len(CHOICES)} choices each",
            lambda: score(model, documents, [CHOICES] * number),
            lambda: [
                [_score_choice(theirs, one, ids) for ids in own] for one, own in zip(inputs, choices, strict=True)
            ],
        ),
    ):
        error = _require_same(run, f"{NAME} {name}", ours(), others())
        loop = Peer("as shipped", "one document at a time", _ignore_number(others))
        scenario = f"{number} documents, {name}"
        settings = {"unit": "documents/s", "amount": number, "error": error}
        rows += compare_times(run, NAME, scenario, quantity, _ignore_number(ours), [loop], **settings)
    return rows


def _ignore_number(way: Callable[[], Any]) -> Way:
    """Every round takes the same documents."""
    return Way(lambda _: way())


def _write_answer(theirs: nn.Module, inputs: Mapping[str, Any], new: int) -> list[int]:
    written: Any = theirs.generate(**inputs, max_new_tokens=new, do_sample=False, pad_token_id=0)  # type: ignore[operator]
    return written[0, inputs["input_ids"].shape[1] :].tolist()


def _score_choice(theirs: nn.Module, inputs: Mapping[str, Any], ids: list[int]) -> Tensor:
    """The log-probability of a continuation: prompt and continuation through the model, logits of all rows."""
    further = torch.tensor([ids], device=inputs["input_ids"].device)
    whole = torch.cat([inputs["input_ids"], further], dim=1)
    logits = theirs(**{**inputs, "input_ids": whole, "attention_mask": torch.ones_like(whole)}, use_cache=False).logits
    scores = logits[0, -len(ids) - 1 : -1].float().log_softmax(-1)
    return scores.gather(1, further[0, :, None]).sum()


def _require_same(run: Run, what: str, ours: list[Any], others: list[Any]) -> float | None:
    """The error of scores; None for answers, whose tokens are the same. Raises `Unequal` where they differ."""
    if isinstance(others[0][0], Tensor):
        mine = torch.tensor([[one.log_prob for one in own] for own in ours])
        return require_equal(what, mine, torch.tensor(others), torch.tensor(others) if run.on_gpu else None)
    differing = sum(list(one.ids) != other for one, other in zip(ours, others, strict=True))
    if differing and run.dtype == torch.float32:  # narrower types round another word to the top now and then
        raise Unequal(f"{what}: {differing} of {len(ours)} answers differ.")
    return None
