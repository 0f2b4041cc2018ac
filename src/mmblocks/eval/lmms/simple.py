"""The class of lmms-eval's simple interface: a context and visuals for each request."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts  # pyright: ignore[reportMissingImports]
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from tqdm import tqdm

from mmblocks.chat import draw_samples, score
from mmblocks.chat.batches import MAX_BATCH_TOKENS
from mmblocks.conversation import Conversation
from mmblocks.errors import DataError
from mmblocks.eval.lmms.decoding import read_decoding
from mmblocks.eval.lmms.loading import load_model, refuse_unknown_arguments
from mmblocks.eval.lmms.questions import make_question, read_visuals
from mmblocks.model.generate import Decoding, Result

MIN_WINDOW = 64
"""Requests whose images are in memory together, at least: enough for full batches."""
MAX_ROUNDS = 1000


@dataclass(frozen=True, slots=True)
class Question:
    """A request to generate. number: of answers, which differ where they are sampled."""

    conversation: Conversation
    decoding: Decoding
    number: int = 1


@dataclass(slots=True)
class Rounds:
    """The rounds of a request up to now: their answers, and what the task keeps between them."""

    request: Instance
    outputs: list[Any] = field(default_factory=list)
    info: Any = None


class SimpleModel(lmms):
    """A model of mmblocks: `--model mmblocks --force_simple --model_args pretrained=MODEL`.

    pretrained, bits, base, template, dtype: as in `mmblocks.load`. device, max_frames: see `load_model`. max_batch_tokens: of
    prompts and answers that are on the device together. batch_size is a hint: so many requests, at least 64, are read
    together; prompts of about the same length share a batch, whatever it says.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        *,
        device: str | None = "auto",
        dtype: str = "auto",
        bits: Any = None,
        base: str | None = None,
        template: str | None = None,
        max_frames: int | None = None,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        batch_size: str | int = 1,
        max_batch_size: str | int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        known = [name for name in inspect.signature(SimpleModel).parameters if name != "unknown"]
        refuse_unknown_arguments(unknown, known)
        self.model = load_model(
            pretrained, device=device, max_frames=max_frames, dtype=dtype, bits=bits, base=base, template=template
        )
        self.max_batch_tokens = max_batch_tokens
        self.window = max(MIN_WINDOW, int(batch_size) if str(batch_size).isdecimal() else 0)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers in the order of the requests, with their tokens counted."""
        answers: list[GenerationResult] = []
        for window in self._iterate_windows(_group_repeats(requests), "generate_until"):
            questions = [self.read_question(request, number) for request, number in window]
            answers += [_to_generation(result) for own in self._answer(questions) for result in own]
        return answers

    def generate_until_multi_round(self, requests: list[Instance]) -> list[GenerationResult]:
        """For each request the answers of its rounds; the task makes each round's question from the answers before it."""
        answers: list[GenerationResult] = []
        for window in self._iterate_windows(requests, "generate_until_multi_round"):
            rounds = [Rounds(request) for request in window]
            self._play_rounds(rounds)
            # Their evaluator writes a tuple as one text, and scores a list as it is.
            answers += [GenerationResult(list(one.outputs)) for one in rounds]
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """For each request the mean loss of its continuation, and whether greedy generation would write it.

        lmms-eval chooses the smallest number: its own LLaVA classes give losses. Its evaluator would write a tuple of numbers as
        a text, but passes on what a `GenerationResult` holds.
        """
        answers: list[GenerationResult] = []
        prompts = [list(own) for _, own in groupby(requests, lambda request: (*request.args[3:], request.args[0]))]
        for window in self._iterate_windows(prompts, "loglikelihood"):
            conversations = [self.read_prompt(own[0]) for own in window]
            texts = [[self.read_continuation(request) for request in own] for own in window]
            scores = score(self.model, conversations, texts, max_batch_tokens=self.max_batch_tokens)
            answers += [GenerationResult((-one.log_prob / one.tokens, one.is_greedy)) for own in scores for one in own]
        return answers

    # Requests, whose arguments have a fixed order -----------------------------------------------------------------------

    def read_question(self, request: Instance, number: int) -> Question:
        """What `generate_until` asks: (context, gen_kwargs, doc_to_visual, doc_id, task, split)."""
        context, settings, doc_to_visual, *place = request.args
        conversation = self._make_conversation(request, context, doc_to_visual(self.find_document(*place)), place)
        return Question(conversation, read_decoding(settings), number)

    def read_round(self, rounds: Rounds) -> Question | None:
        """The next round's question: (context, gen_kwargs, doc_to_visual, doc_to_text, doc_id, task, split); None: it has ended."""
        context, settings, doc_to_visual, doc_to_text, *place = rounds.request.args
        document = self.find_document(*place)
        if not rounds.outputs:
            visuals = doc_to_visual(document)
        else:
            visuals, context, is_over, outputs, rounds.info = doc_to_text(
                document,
                previous_output=list(rounds.outputs),
                round_idx=len(rounds.outputs),
                previous_round_info=rounds.info,
            )
            if is_over:
                rounds.outputs = list(outputs)
                return None
        return Question(self._make_conversation(rounds.request, context, visuals, place), read_decoding(settings))

    def read_prompt(self, request: Instance) -> Conversation:
        """What `loglikelihood` is about: (context, continuation, doc_to_visual, doc_id, task, split), or the first two alone."""
        context, _, *shown = request.args
        visuals = shown[0](self.find_document(*shown[1:])) if shown else None
        return self._make_conversation(request, context, visuals, shown[1:])

    def read_continuation(self, request: Instance) -> str:
        """The text that is scored; tasks of a single one give a function of the document."""
        continuation = request.args[1]
        text = continuation(self.find_document(*request.args[3:])) if callable(continuation) else continuation
        if not isinstance(text, str):
            raise DataError(f"{name_place(request.args[3:])}: doc_to_target gives {text!r:.80}; let it give a text.")
        return text

    def find_document(self, doc_id: int, task: str, split: str) -> Any:
        """The record of a request."""
        return self.task_dict[task][split][doc_id]

    def _make_conversation(
        self, request: Instance, context: str, visuals: Sequence[Any] | None, place: Sequence[Any]
    ) -> Conversation:
        where = name_place(place)
        return make_question(context, read_visuals(visuals, request.metadata, where), where)

    # Answers ------------------------------------------------------------------------------------------------------------

    def _answer(self, questions: Sequence[Question]) -> list[list[Result]]:
        """The answers to each question, in their order; those with the same settings are generated together."""
        found: dict[int, list[Result]] = {}
        groups: dict[tuple[Decoding, int], list[int]] = {}
        for i, question in enumerate(questions):
            groups.setdefault((question.decoding, question.number), []).append(i)
        for (decoding, number), members in groups.items():
            conversations = [questions[i].conversation for i in members]
            limit = self.max_batch_tokens
            answers = draw_samples(self.model, conversations, number, decoding, max_batch_tokens=limit)
            found.update(zip(members, answers, strict=True))
        return [found[i] for i in range(len(questions))]

    def _play_rounds(self, rounds: Sequence[Rounds]) -> None:
        """Fill in the outputs, round by round, until each request has ended."""
        playing = list(rounds)
        for _ in range(MAX_ROUNDS):
            questions = [(one, question) for one in playing if (question := self.read_round(one)) is not None]
            if not questions:
                return
            for (one, _question), (result,) in zip(questions, self._answer([q for _, q in questions]), strict=True):
                one.outputs.append(result.text)
            playing = [one for one, _ in questions]
        raise DataError(f"{playing[0].request.task_name}: {MAX_ROUNDS} rounds and no end; let the task end them.")

    def _iterate_windows(self, items: Sequence[Any], name: str) -> Iterator[Sequence[Any]]:
        with tqdm(total=len(items), desc=name, disable=self.rank != 0) as progress:
            for begin in range(0, len(items), self.window):
                window = items[begin : begin + self.window]
                yield window
                progress.update(len(window))


def _group_repeats(requests: Sequence[Instance]) -> list[tuple[Instance, int]]:
    """Each request, and how many times it comes: one with `repeats` does so as the same object, several times in a row."""
    groups = [list(same) for _, same in groupby(requests, id)]
    return [(same[0], len(same)) for same in groups]


def _to_generation(result: Result) -> GenerationResult:
    return GenerationResult(result.text, TokenCounts(result.prompt_tokens, result.answer_tokens))


def name_place(place: Sequence[Any]) -> str:
    """What errors call a request, from (doc_id, task, split)."""
    return f"{place[1]}, {place[2]}, document {place[0]}" if place else "a choice without its question"
