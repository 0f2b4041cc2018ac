"""Questions to a model in one queue: admitted by the room in the cache, run together, each ended by its own settings."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmblocks.chat.engine.limits import EngineStatistics
from mmblocks.chat.engine.prefixes import CachedRows, PrefixCache, encode_rows
from mmblocks.chat.prompts import ChatPrompt
from mmblocks.chat.visual_cache import VisualCache, embed_prompt
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor, Sample
from mmblocks.errors import DataError
from mmblocks.model.generate import Decoding, Result, StopSequences
from mmblocks.model.generation.batching import Batcher, SequenceState
from mmblocks.model.generation.pool import KVPool
from mmblocks.model.generation.results import DrawnToken
from mmblocks.model.generation.sampling import make_prompt_key
from mmblocks.model.generation.step import has_fixed_rope
from mmblocks.model.generation.weights import WeightSnapshot
from mmblocks.model.onevision import OneVision
from mmblocks.reprs import format_by_shape

if TYPE_CHECKING:
    pass


@dataclass(eq=False, slots=True)
class EngineQuestion:
    """A prompt and how it is to be answered. samples: answers to it. top_log_probs: as of `SequenceState`.

    tells_tokens: whether each token is told, beside the results. codes: of its rows, see `encode_rows`. seen: visual rows that were in the cache when they were looked for, by their keys.
    opened: the numbers of its other visuals, and these decoded; None until they are.
    """

    prompt: ChatPrompt
    decoding: Decoding
    stop: StopSequences
    samples: int = 1
    top_log_probs: int = 0
    tells_tokens: bool = True
    codes: Tensor = field(init=False)
    seen: dict[str, Tensor] = field(default_factory=dict)
    opened: tuple[list[int], Sample | None] | None = None
    is_cancelled: bool = False
    __repr__ = format_by_shape

    def __post_init__(self) -> None:
        self.codes = encode_rows(self.prompt)

    @property
    def num_views(self) -> int:
        """Views to encode."""
        return sum(len(self.prompt.encoded.plans[i].plan.views) for i in self.opened[0]) if self.opened else 0

    @property
    def unseen_keys(self) -> list[str]:
        """Of the visuals to encode."""
        return [self.prompt.keys[i] for i in self.opened[0]] if self.opened else []

    @property
    def slots(self) -> int:
        """Of the cache, for each answer."""
        return len(self.prompt) + self.decoding.max_new_tokens


@dataclass(frozen=True, slots=True)
class AnswerProgress:
    """Something that happened to a question: a token of an answer, its end, or an error that ended all of its answers."""

    question: EngineQuestion
    sample: int = 0
    token: DrawnToken | None = None
    result: Result | None = None
    error: Exception | None = None


@dataclass(eq=False, slots=True)
class _Answer:
    """An answer that is written. rows: those of the first answer to a question, which may be shared."""

    question: EngineQuestion
    sample: int
    state: SequenceState
    rows: CachedRows | None
    __repr__ = format_by_shape


@dataclass(frozen=True, slots=True)
class _Admitted:
    """A question with room for it: rows with a span for the prompt and the first answer, and spans of the other answers."""

    question: EngineQuestion
    rows: CachedRows
    spans: list[range]
    __repr__ = format_by_shape


VIEW_TOKENS = 64
"""A view that is encoded counts as so many rows of a step."""
MAX_EXAMINED = 128
"""Of the questions that wait, before a step."""


class Scheduler:
    """All questions to one model. Questions are prepared in any thread; all else is done in one.

    A question is admitted, in the order of asking, when the cache has room for its prompt and the longest answer that it may
    get: it never has to give up its room. Rows that prompts share, from the first on, are computed once.
    """

    def __init__(
        self,
        model: OneVision,
        processor: Processor,
        *,
        slots: int,
        step_tokens: int,
        max_running: int,
        visual_bytes: int,
    ) -> None:
        """slots: tokens that the cache holds. For the others see `EngineLimits`."""
        self.model, self.processor, self.slots, self.max_running = model, processor, slots, max_running
        # Where the encoding of a position depends on the longest text, prompts are run whole and one by one.
        self._runs_together = has_fixed_rope(model.backbone.config)
        pool = KVPool(slots)
        self._prefixes = PrefixCache(pool, shares=self._runs_together)
        self._batcher = Batcher(model.backbone, pool, step_tokens if self._runs_together else slots)
        self._queue: deque[EngineQuestion] = deque()
        self._answers: dict[SequenceState, _Answer] = {}
        self._visuals, self._lock = VisualCache(visual_bytes), Lock()
        self._weights: WeightSnapshot | None = None
        self._counts: Counter[str] = Counter()

    @property
    def has_work(self) -> bool:
        """Whether a question waits or is answered."""
        return bool(self._queue or self._answers)

    @property
    def num_queued(self) -> int:
        """Questions that wait."""
        return len(self._queue)

    # In any thread ------------------------------------------------------------------------------------------------------

    def read_statistics(self) -> EngineStatistics:
        """What has been done up to now."""
        names = ("steps", "prompt_tokens", "shared_tokens", "answer_tokens", "visual_hits", "visual_misses")
        return EngineStatistics(
            running=len(self._answers),
            queued=len(self._queue),
            used_slots=self.slots - self._prefixes.pool.free_slots,
            slots=self.slots,
            **{name: self._counts[name] for name in names},
        )

    def require_room(self, question: EngineQuestion) -> None:
        """Raise `DataError` for a question that the cache can never hold."""
        question.decoding.require_fitting_length(self.model.backbone)
        if question.slots * question.samples > self.slots or question.samples > self.max_running:
            raise DataError(
                f"{question.prompt.conversation.origin}: a prompt of {len(question.prompt)} tokens and {question.samples} "
                f"answers of up to {question.decoding.max_new_tokens} tokens do not fit: the cache holds {self.slots} tokens, "
                f"and {self.max_running} answers are written at a time. Ask for fewer or shorter answers."
            )

    def open_visuals(self, question: EngineQuestion, besides: Collection[str] = ()) -> None:
        """Decode the visuals of a question that are not in the cache, `besides` those that are encoded with it.

        Raises `DataError` for what cannot be read.
        """
        keys, unseen = question.prompt.keys, []
        with self._lock:
            for i, key in enumerate(keys):
                if (rows := self._visuals.find_rows(key)) is not None:
                    question.seen[key] = rows
                elif key not in keys[:i] and key not in besides:
                    unseen.append(i)
        question.opened = unseen, question.prompt.open_visuals(self.processor, unseen) if unseen else None

    # In one thread ------------------------------------------------------------------------------------------------------

    def append(self, question: EngineQuestion) -> None:
        """Let a question wait for its turn."""
        self._queue.append(question)

    def remove(self, question: EngineQuestion) -> None:
        """Drop a question with all that was computed for it."""
        if question in self._queue:
            self._queue.remove(question)
        for answer in [one for one in self._answers.values() if one.question is question]:
            self._end_answer(answer)
            if answer.rows is not None:
                self._prefixes.drop(answer.rows)

    def clear(self) -> None:
        """Forget keys, values and visual rows."""
        self._prefixes.clear()
        with self._lock:
            self._visuals.clear()

    def advance(self) -> Iterator[AnswerProgress]:
        """Admit what there is room for, run a step and tell what happened. Cancelled questions are dropped first."""
        cancelled = [q for q in self._queue if q.is_cancelled] + [
            answer.question for answer in self._answers.values() if answer.question.is_cancelled
        ]
        for question in cancelled:
            self.remove(question)
        yield from self._admit_questions()
        if not self._batcher.running:
            return
        self._counts["steps"] += 1
        outcome = self._batcher.step()
        for answer in self._answers.values():
            if answer.rows is not None:
                answer.rows.length = min(answer.state.length, len(answer.rows.codes))
        self._counts["answer_tokens"] += len(outcome.tokens)
        for state, token in outcome.tokens:
            answer = self._answers[state]
            if answer.question.tells_tokens:
                yield AnswerProgress(answer.question, answer.sample, token=token)
            if state.is_finished:
                yield self._finish_answer(answer)
        for state, cause in outcome.failures:
            if (failed := self._answers.get(state)) is not None:
                self.remove(failed.question)
                yield AnswerProgress(failed.question, error=cause)

    def _finish_answer(self, answer: _Answer) -> AnswerProgress:
        question, state = answer.question, answer.state
        tokens = state.writer.to_tokens(log_probs=question.decoding.log_probs)
        self._end_answer(answer)
        if answer.rows is not None:
            written = torch.tensor(state.drawn, dtype=torch.int64)
            self._prefixes.keep(answer.rows, torch.cat([answer.rows.codes, written])[: state.length])
        result = question.stop.make_result(self.model.backbone, tokens, len(question.prompt))
        return AnswerProgress(question, answer.sample, result=result)

    def _end_answer(self, answer: _Answer) -> None:
        """Write no more of an answer; only rows that may be shared stay."""
        del self._answers[answer.state]
        if answer.state in self._batcher.running:
            self._batcher.running.remove(answer.state)
        if answer.rows is None:
            self._prefixes.pool.release_span(answer.state.span)

    # Admission ----------------------------------------------------------------------------------------------------------

    def _admit_questions(self) -> Iterator[AnswerProgress]:
        """Begin with the questions that there is room for. Their visuals are encoded together; errors are each one's own."""
        if not self._queue or (self._answers and not self._runs_together):
            return
        chosen, faults = self._choose_questions()
        yield from faults
        try:
            self._start_answers(chosen)
        except Exception:
            for one in chosen:
                try:
                    self.open_visuals(one.question)
                    self._start_answers([one])
                except Exception as cause:  # an encoder or its kernels may raise anything
                    self._prefixes.drop(one.rows)
                    for span in one.spans:
                        self._prefixes.pool.release_span(span)
                    yield AnswerProgress(one.question, error=cause)

    def _choose_questions(self) -> tuple[list[_Admitted], list[AnswerProgress]]:
        """Take questions out of the queue, in its order, with room for them, and those whose visuals cannot be read.

        One whose prompt begins with what is being computed waits until that is there; those behind it need not wait.
        """
        chosen, faults = list[_Admitted](), list[AnswerProgress]()
        views, running = self._batcher.step_tokens // VIEW_TOKENS, len(self._answers)
        encoded: set[str] = set()
        for question in [*self._queue][:MAX_EXAMINED]:
            if running + question.samples > self.max_running or (chosen and not self._runs_together):
                break
            if not self._prefixes.has_room(question.slots * question.samples):
                break
            if not chosen:
                self._forget_old_weights()
            if self._prefixes.is_worth_waiting(question.codes) or not encoded.isdisjoint(question.unseen_keys):
                continue
            try:
                if question.opened is None:
                    self.open_visuals(question, encoded)
            except Exception as cause:
                self._queue.remove(question)
                faults.append(AnswerProgress(question, error=cause))
                continue
            if question.num_views > views and encoded:
                break
            admitted = self._reserve_room(question)
            if admitted is None:
                break
            views -= question.num_views
            running += question.samples
            encoded.update(question.unseen_keys)
            chosen.append(admitted)
            self._queue.remove(question)
        return chosen, faults

    def _reserve_room(self, question: EngineQuestion) -> _Admitted | None:
        """A span for the prompt with the first answer, and one for each further answer; None where there is no room yet."""
        rows = self._prefixes.begin(question.codes, question.slots)
        if rows is None:
            return None
        spans: list[range] = []
        while len(spans) < question.samples - 1:
            span = self._prefixes.reserve_span(question.slots)
            if span is None:
                self._prefixes.keep(rows, rows.codes[: rows.length])
                for reserved in spans:
                    self._prefixes.pool.release_span(reserved)
                return None
            spans.append(span)
        return _Admitted(question, rows, spans)

    @torch.no_grad()
    def _start_answers(self, chosen: Sequence[_Admitted]) -> None:
        """Begin with all of them, or where an error is raised with none."""
        visuals, begun = self._encode_visuals(chosen), []
        for one in chosen:
            x = embed_prompt(self.model, one.question.prompt, visuals, one.rows.length)
            others = [self._make_state(one.question, i, None, span) for i, span in enumerate(one.spans, 1)]
            begun.append([self._make_state(one.question, 0, x, one.rows.span, one.rows.length, others), *others])
        for (question, rows), states in zip(((one.question, one.rows) for one in chosen), begun, strict=True):
            self._batcher.running.append(states[0])
            for sample, state in enumerate(states):
                self._answers[state] = _Answer(question, sample, state, None if sample else rows)
            self._counts.update(
                prompt_tokens=len(question.prompt), shared_tokens=rows.length, visual_hits=len(question.prompt.keys)
            )
            question.seen, question.opened = {}, None

    def _make_state(
        self,
        question: EngineQuestion,
        sample: int,
        x: Tensor | None,
        span: range,
        kept: int = 0,
        siblings: Sequence[SequenceState] = (),
    ) -> SequenceState:
        return SequenceState(
            self.model.backbone,
            x,
            span,
            question.decoding,
            question.stop,
            kept=kept,
            random_key=(make_prompt_key(question.prompt.encoded.input_ids), sample),
            top_log_probs=question.top_log_probs,
            siblings=siblings,
        )

    def _encode_visuals(self, chosen: Sequence[_Admitted]) -> dict[str, Tensor]:
        """By their keys, the rows of all visuals that have some behind what is filled."""
        found: dict[str, Tensor] = {}
        new, samples = list[tuple[str, int]](), list[Sample]()
        for question, kept in ((one.question, one.rows.length) for one in chosen):
            prompt, (numbers, sample) = question.prompt, question.opened or ([], None)
            found.update(question.seen)
            wanted = {prompt.keys[i] for i in prompt.find_visuals_behind(kept)}
            with self._lock:
                for key in wanted - found.keys():
                    if (rows := self._visuals.find_rows(key)) is not None:
                        found[key] = rows
            if sample is not None and not wanted <= found.keys():
                new += [(prompt.keys[i], prompt.row_counts[i]) for i in numbers]
                samples.append(sample)
        if samples:
            encoded = self.model.compute_visual_tokens(collate(samples).to(self.model.device))
            with self._lock:
                for (key, _), part in zip(new, encoded.split([count for _, count in new]), strict=True):
                    found[key] = part
                    self._visuals.store_rows(key, part)
        self._counts.update(visual_hits=-len(new), visual_misses=len(new))
        return found

    def _forget_old_weights(self) -> None:
        """Nothing that other weights have computed is shared."""
        if self._weights is not None and self._weights.is_same_for(self.model):
            return
        if self._weights is not None:
            self.clear()
            self._batcher.drop_graphs()
            for question in self._queue:
                question.seen, question.opened = {}, None
        self._weights = WeightSnapshot.from_module(self.model)
