"""Talk to a model: single answers for a batch of conversations, and a chat that remembers."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from threading import Thread
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmblocks.chat.cache import ChatMemory, Reuse
from mmblocks.chat.inputs import check_conversations, image, to_part, video
from mmblocks.chat.prompts import ChatPrompt
from mmblocks.chat.visual_cache import VisualCache, embed_prompt, encode_visuals
from mmblocks.conversation import Conversation, Message, Part, Text, Visual
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import ConfigError, DataError
from mmblocks.model.generate import Decoding, StopSequences, generate_from_embeddings
from mmblocks.model.onevision import OneVision

ChatInput = str | Visual | Text | Image.Image | os.PathLike[str] | bytes | np.ndarray
"""What can be said to a model."""

__all__ = ["Chat", "Reuse", "answer", "image", "video"]


@torch.no_grad()
def answer(model: OneVision, conversations: Iterable[Conversation], decoding: Decoding | None = None) -> list[str]:
    """One answer per conversation, written together. Each conversation ends with a message of the user.

    What is shown in several conversations is encoded once.
    """
    conversations = check_conversations(conversations)
    decoding = _check_decoding(decoding)
    if not conversations:
        return []
    processor = Processor.from_model(model)
    prompts = [ChatPrompt.from_conversation(processor, conversation) for conversation in conversations]
    rows = encode_visuals(
        model, processor, [(prompt, prompt.find_visuals_behind(0)) for prompt in prompts], VisualCache(0)
    )
    x = torch.cat([embed_prompt(model, prompt, rows) for prompt in prompts])
    lengths = [len(prompt) for prompt in prompts]
    written = generate_from_embeddings(model.backbone, x, lengths, decoding, StopSequences.from_model(model))
    return [_decode_answer(model, ids) for ids in written]


class Chat:
    """A conversation with a model over many turns, with images and videos wherever they belong.

    What was read and written is kept on the model's device within the limits of `reuse`, so that a further question
    costs its own tokens only; `messages` may be changed and the model trained in between.

    >>> chat = Chat(model)                                                            # doctest: +SKIP
    >>> chat.ask(image("left.png"), image("right.png"), "Which image has a red circle?")  # doctest: +SKIP
    """

    def __init__(
        self,
        model: OneVision,
        *,
        system: str | None = None,
        decoding: Decoding | None = None,
        reuse: Reuse | None = None,
    ) -> None:
        self.model = model
        self.decoding = _check_decoding(decoding)
        if not isinstance(reuse, Reuse | None):
            raise ConfigError(f"chat: reuse={reuse!r:.80} is no Reuse; write Reuse(kv_bytes=..., visual_bytes=...).")
        self.reuse = reuse or Reuse()
        self._first = () if system is None else (Message("system", (Text(system),)),)
        self._memory = ChatMemory(self.reuse)
        self.messages: tuple[Message, ...] = self._first

    def ask(self, *parts: ChatInput) -> str:
        """Say something (texts and visuals in their order) and return the answer. Both are remembered.

        A str is a text; images and videos may be PIL images, paths (`pathlib.Path`), bytes, uint8 arrays, or what `image`
        and `video` give. Raises `DataError` for anything else.
        """
        asked = self._append_question(parts)
        with self._borrow_memory() as memory:
            ids = memory.generate_answer(self.model, Conversation(asked, "chat"), self.decoding)
        return self._append_answer(asked, ids)

    def stream(self, *parts: ChatInput) -> Generator[str, None, None]:
        """Like `ask`, giving the answer piece by piece while it is written.

        An answer that is not read to its end is not remembered, and no longer written.
        """
        from transformers import TextIteratorStreamer

        asked = self._append_question(parts)
        streamer = TextIteratorStreamer(self.model.backbone.text_tokenizer, skip_special_tokens=True)
        with self._borrow_memory() as memory, _GenerationThread(streamer) as writer:
            writer.start_thread(
                lambda: memory.generate_answer(self.model, Conversation(asked, "chat"), self.decoding, streamer=writer)
            )
            yield from streamer
        self._append_answer(asked, writer.get_ids())

    def reset_messages(self) -> None:
        """Begin again; the system message stays."""
        self.messages = self._first
        self._memory.forget_visuals()

    @contextmanager
    def _borrow_memory(self) -> Iterator[ChatMemory]:
        """The memory, taken away while it is used: whoever asks in between begins with an empty one."""
        memory, self._memory = self._memory, ChatMemory(self.reuse)
        try:
            yield memory
        finally:
            self._memory = memory

    def _append_question(self, parts: Sequence[ChatInput]) -> tuple[Message, ...]:
        if not parts:
            raise DataError("chat: nothing was said; give a text, an image or a video.")
        said = [to_part(part, self.model.images) for part in parts]
        return (*self.messages, Message("user", tuple(_on_lines(said))))

    def _append_answer(self, asked: tuple[Message, ...], ids: Sequence[int]) -> str:
        text = _decode_answer(self.model, ids)
        self.messages = (*asked, Message("assistant", (Text(text),)))
        return text


def _check_decoding(given: Decoding | None) -> Decoding:
    if not isinstance(given, Decoding | None):
        raise ConfigError(f"decoding={given!r:.80} is no Decoding; write Decoding(max_new_tokens=..., ...).")
    return given or Decoding()


class _GenerationThread:
    """Generation beside the reader of its stream; an error reaches the reader through `result`.

    It stands between the model and the streamer, and stops the model when the reader has left.
    """

    def __init__(self, streamer: Any) -> None:
        self._streamer = streamer
        self._thread: Thread | None = None
        self._left = False
        self._ids: list[int] = []
        self._error: BaseException | None = None

    def __enter__(self) -> _GenerationThread:
        return self

    def __exit__(self, *_: object) -> None:
        self._left = True
        if self._thread is not None:
            self._thread.join()

    def start_thread(self, respond: Callable[[], list[int]]) -> None:
        """Run `respond` beside the reader, with the ops that were asked for here (`mmblocks.ops.choice.using`)."""
        self._thread = Thread(target=copy_context().run, args=(self._run_and_catch, respond), daemon=True)
        self._thread.start()

    def _run_and_catch(self, respond: Callable[[], list[int]]) -> None:
        try:
            self._ids = respond()
        except BaseException as error:  # handed to the reading thread, which raises it
            self._error = error
            self._streamer.end()

    def put(self, ids: Any) -> None:
        if self._left:
            raise _StreamClosed
        self._streamer.put(ids)

    def end(self) -> None:
        self._streamer.end()

    def get_ids(self) -> list[int]:
        if self._error is not None:
            raise self._error
        return self._ids


class _StreamClosed(Exception):
    """Nobody reads on."""


def _on_lines(parts: Sequence[Part]) -> Iterator[Part]:
    """Visuals and the text after them on lines of their own, as LLaVA's prompts have them."""
    for i, part in enumerate(parts):
        yield part
        if isinstance(part, Visual) and i + 1 < len(parts):
            yield Text("\n")


def _decode_answer(model: OneVision, ids: Sequence[int]) -> str:
    text = model.backbone.text_tokenizer.decode(ids, skip_special_tokens=True)
    for stop in StopSequences.from_model(model).texts:
        text = text.partition(stop)[0]
    return text.strip()
