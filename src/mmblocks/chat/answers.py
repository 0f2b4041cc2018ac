"""Answers to many conversations."""

from __future__ import annotations

from collections.abc import Iterable

from mmblocks.chat.batches import MAX_BATCH_TOKENS, SHARED_VISUAL_BYTES, check_batch_tokens, order_by_cost
from mmblocks.chat.engine.scheduling import EngineQuestion, Scheduler
from mmblocks.chat.inputs import check_conversations, check_decoding
from mmblocks.chat.prompts import ChatPrompt
from mmblocks.conversation import Conversation
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import ConfigError
from mmblocks.model.generate import Decoding, Result, StopSequences
from mmblocks.model.onevision import OneVision
from mmblocks.settings import format_value


def answer(model: OneVision, conversations: Iterable[Conversation], decoding: Decoding | None = None) -> list[str]:
    """The text of one answer per conversation; see `respond`."""
    return [result.text for result in respond(model, conversations, decoding)]


def respond(
    model: OneVision,
    conversations: Iterable[Conversation],
    decoding: Decoding | None = None,
    *,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
) -> list[Result]:
    """One answer per conversation, in their order. Each conversation ends with a message of the user.

    As many are answered together as have `max_batch_tokens` tokens with their answers; where one ends, another begins. What an
    answer is does not depend on the others. What is shown in several conversations is encoded once, and prompts that begin
    alike share what is computed of them.
    """
    samples = draw_samples(model, conversations, 1, decoding, max_batch_tokens=max_batch_tokens)
    return [result for (result,) in samples]


def draw_samples(
    model: OneVision,
    conversations: Iterable[Conversation],
    number: int,
    decoding: Decoding | None = None,
    *,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
) -> list[list[Result]]:
    """As `respond`, with a `number` of answers to each conversation, whose prompt is run once.

    The first of them is that of `respond`. They differ where `decoding` has a temperature.
    """
    conversations, decoding = check_conversations(conversations), check_decoding(decoding)
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ConfigError(f"draw_samples: number={format_value(number)}; write how many answers, 1 or more.")
    check_batch_tokens(max_batch_tokens)
    decoding.require_fitting_length(model.backbone)
    processor, stop = Processor.from_model(model), StopSequences.from_model(model, decoding.stop)
    questions = [
        EngineQuestion(ChatPrompt.from_conversation(processor, one), decoding, stop, number, tells_tokens=False)
        for one in conversations
    ]
    found: dict[EngineQuestion, dict[int, Result]] = {question: {} for question in questions}
    scheduler = Scheduler(
        model,
        processor,
        slots=max(max_batch_tokens, *(number * question.slots for question in questions), 0),
        step_tokens=max_batch_tokens,
        max_running=max(number * len(questions), 1),
        visual_bytes=SHARED_VISUAL_BYTES,
    )
    costs, keys = [question.slots for question in questions], [question.prompt.keys for question in questions]
    for i in order_by_cost(costs, keys):
        scheduler.append(questions[i])
    while scheduler.has_work:
        for progress in scheduler.advance():
            if progress.error is not None:
                raise progress.error
            assert progress.result is not None, "nothing else is told"
            found[progress.question][progress.sample] = progress.result
    return [[found[question][sample] for sample in range(number)] for question in questions]
