"""Questions to a model in one queue: admitted by the room in the cache, run together, each ended by its own settings."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Lock

import torch
from torch import Tensor

from mmblocks.chat.engine.limits import EngineLimits, EngineStatistics
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


@dataclass(eq=False, slots=True)
class Question:
    """A prompt and how it is to be answered. samples: answers to it. top_log_probs: as of `SequenceState`.

    seen: visual rows that were in the cache when it was asked, by their keys. opened: the numbers of its other visuals, and
    these decoded.
    """

    prompt: ChatPrompt
    decoding: Decoding
    stop: StopSequences
    samples: int = 1
    top_log_probs: int = 0
    seen: dict[str, Tensor] = field(default_factory=dict)
    opened: tuple[list[int], Sample | None] = field(default_factory=lambda: ([], None))
    is_cancelled: bool = False
    __repr__ = format_by_shape

    @property
    def slots(self) -> int:
        """Of the cache, for each answer."""
        return len(self.prompt) + self.decoding.max_new_tokens


@dataclass(frozen=True, slots=True)
class Progress:
    """Something that happened to a question: a token of an answer, its end, or an error that ended all of its answers."""

    question: Question
    sample: int = 0
    token: DrawnToken | None = None
    result: Result | None = None
    error: Exception | None = None


@dataclass(eq=False, slots=True)
class _Answer:
    """An answer that is written. rows: those of the first answer to a question, which may be shared."""

    question: Question
    sample: int
    state: SequenceState
    rows: CachedRows | None
    __repr__ = format_by_shape


class Scheduler:
    """All questions to one model. Questions are prepared in any thread; all else is done in one.

    A question is admitted, in the order of asking, when the cache has room for its prompt and the longest answer that it may
    get: it never has to give up its room. Rows that prompts share, from the first on, are computed once.
    """

    def __init__(self, model: OneVision, limits: EngineLimits) -> None:
        self.model, self.limits = model, limits
        self.processor = Processor.from_model(model)
        self.slots = limits.count_slots(model)
        # Where the encoding of a position depends on the longest text, prompts are run whole and one by one.
        self._runs_together = has_fixed_rope(model.backbone.config)
        pool = KVPool(self.slots)
        self._prefixes = PrefixCache(pool, shares=self._runs_together)
        self._batcher = Batcher(
            model.backbone, pool, limits.get_step_tokens(model) if self._runs_together else self.slots
        )
        self._queue: deque[Question] = deque()
        self._answers: dict[SequenceState, _Answer] = {}
        self._visuals, self._lock = VisualCache(limits.visual_bytes), Lock()
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

    def require_room(self, question: Question) -> None:
        """Raise `DataError` for a question that the cache can never hold."""
        question.decoding.require_fitting_length(self.model.backbone)
        if question.slots * question.samples > self.slots or question.samples > self.limits.max_running:
            raise DataError(
                f"{question.prompt.conversation.origin}: a prompt of {len(question.prompt)} tokens and {question.samples} "
                f"answers of up to {question.decoding.max_new_tokens} tokens do not fit: the cache holds {self.slots} tokens, "
                f"and {self.limits.max_running} answers are written at a time. Ask for fewer or shorter answers."
            )

    def open_visuals(self, question: Question) -> None:
        """Decode the visuals of a question that are not in the cache. Raises `DataError` for what cannot be read."""
        keys, unseen = question.prompt.keys, []
        with self._lock:
            for i, key in enumerate(keys):
                if (rows := self._visuals.find_rows(key)) is not None:
                    question.seen[key] = rows
                elif key not in keys[:i]:
                    unseen.append(i)
        question.opened = unseen, question.prompt.open_visuals(self.processor, unseen) if unseen else None

    # In one thread ------------------------------------------------------------------------------------------------------

    def append(self, question: Question) -> None:
        """Let a question wait for its turn."""
        self._queue.append(question)

    def remove(self, question: Question) -> None:
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

    @torch.no_grad()
    def advance(self) -> Iterator[Progress]:
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
        for state, token in outcome.tokens:
            yield from self._tell_token(self._answers[state], token)
        for state, cause in outcome.failures:
            if (answer := self._answers.get(state)) is not None:
                self.remove(answer.question)
                yield Progress(answer.question, error=cause)

    def _tell_token(self, answer: _Answer, token: DrawnToken) -> Iterator[Progress]:
        question, state = answer.question, answer.state
        self._counts["answer_tokens"] += 1
        yield Progress(question, answer.sample, token=token)
        if state.is_finished:
            tokens = state.writer.to_tokens(log_probs=question.decoding.log_probs)
            self._end_answer(answer)
            if answer.rows is not None:
                written = torch.tensor(state.drawn, dtype=torch.int64)
                self._prefixes.keep(answer.rows, torch.cat([answer.rows.codes, written])[: state.length])
            result = question.stop.make_result(self.model.backbone, tokens, len(question.prompt))
            yield Progress(question, answer.sample, result=result)

    def _end_answer(self, answer: _Answer) -> None:
        """Write no more of an answer; only rows that may be shared stay."""
        del self._answers[answer.state]
        if answer.state in self._batcher.running:
            self._batcher.running.remove(answer.state)
        if answer.rows is None:
            self._prefixes.pool.release_span(answer.state.span)

    # Admission ----------------------------------------------------------------------------------------------------------

    def _admit_questions(self) -> Iterator[Progress]:
        """Begin with questions from the front of the queue while there is room.

        While others write, the visuals of one question are encoded before each step.
        """
        while self._queue:
            question = self._queue[0]
            is_first = not self._answers
            if not is_first and (
                not self._runs_together or len(self._answers) + question.samples > self.limits.max_running
            ):
                return
            try:
                if not self._begin_answers(question):
                    return
            except Exception as cause:  # an encoder or its kernels may raise anything
                self.remove(question)
                yield Progress(question, error=cause)
                continue
            self._queue.popleft()
            if question.opened[1] is not None and not is_first:
                return

    def _begin_answers(self, question: Question) -> bool:
        """Reserve room and make the rows to run. False where there is no room yet."""
        self._forget_old_weights()
        prompt = question.prompt
        reserved = self._reserve_room(question)
        if reserved is None:
            return False
        rows, spans = reserved
        try:
            visuals = self._encode_visuals(question, rows.length)
            x = embed_prompt(self.model, prompt, visuals, rows.length)
            self._start_answers(question, rows, spans, x)
        except Exception:
            self._prefixes.drop(rows)
            for span in spans:
                self._prefixes.pool.release_span(span)
            raise
        self._counts.update(prompt_tokens=len(prompt), shared_tokens=rows.length)
        return True

    def _reserve_room(self, question: Question) -> tuple[CachedRows, list[range]] | None:
        """A span for the prompt with the first answer, and one for each further answer."""
        rows = self._prefixes.begin(encode_rows(question.prompt), question.slots)
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
        return rows, spans

    def _encode_visuals(self, question: Question, kept: int) -> dict[str, Tensor]:
        """By their keys, the rows of the visuals that have some behind the first `kept`."""
        prompt, found = question.prompt, dict(question.seen)
        wanted = {prompt.keys[i] for i in prompt.find_visuals_behind(kept)}
        with self._lock:
            for key in wanted - found.keys():
                if (rows := self._visuals.find_rows(key)) is not None:
                    found[key] = rows
        numbers, sample = question.opened
        question.seen, question.opened = {}, ([], None)
        if wanted <= found.keys() or sample is None:
            self._counts.update(visual_hits=len(prompt.keys))
            return found
        encoded = self.model.compute_visual_tokens(collate([sample]).to(self.model.device))
        with self._lock:
            for i, part in zip(numbers, encoded.split([prompt.row_counts[i] for i in numbers]), strict=True):
                found[prompt.keys[i]] = part
                self._visuals.store_rows(prompt.keys[i], part)
        self._counts.update(visual_hits=len(prompt.keys) - len(numbers), visual_misses=len(numbers))
        return found

    def _start_answers(self, question: Question, rows: CachedRows, spans: list[range], x: Tensor) -> None:
        backbone, decoding, stop = self.model.backbone, question.decoding, question.stop
        prompt_key = make_prompt_key(question.prompt.encoded.input_ids)

        def make_state(sample: int, x: Tensor | None, span: range, *siblings: SequenceState) -> SequenceState:
            return SequenceState(
                backbone,
                x,
                span,
                decoding,
                stop,
                kept=rows.length if x is not None else 0,
                random_key=(prompt_key, sample),
                top_log_probs=question.top_log_probs,
                siblings=siblings,
            )

        others = [make_state(i, None, span) for i, span in enumerate(spans, 1)]
        first = make_state(0, x, rows.span, *others)
        self._batcher.running.append(first)
        for sample, state in enumerate((first, *others)):
            self._answers[state] = _Answer(question, sample, state, rows if state is first else None)

    def _forget_old_weights(self) -> None:
        """Nothing that other weights have computed is shared."""
        if self._weights is None or not self._weights.is_same_for(self.model):
            self.clear()
            self._weights = WeightSnapshot.from_module(self.model)
