"""Talk to a model: single answers for a batch of conversations, and a chat of many turns."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from threading import Thread
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from mmblocks.chat.answers import answer, draw_samples, respond
from mmblocks.chat.cache import ChatCache, Reuse
from mmblocks.chat.inputs import check_decoding, image, to_part, video
from mmblocks.chat.scores import score
from mmblocks.conversation import Conversation, Message, Part, Text, Visual
from mmblocks.errors import ConfigError, DataError
from mmblocks.model.generate import Decoding, Result, StopSequences
from mmblocks.model.generation.stopping import cut_pieces
from mmblocks.model.onevision import OneVision

if TYPE_CHECKING:
    from transformers.generation.streamers import BaseStreamer

ChatInput = str | Visual | Text | Image.Image | os.PathLike[str] | bytes | np.ndarray
"""What `Chat.ask` accepts."""

__all__ = ["Chat", "Reuse", "answer", "draw_samples", "image", "respond", "score", "video"]


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
        self.decoding = check_decoding(decoding)
        if not isinstance(reuse, Reuse | None):
            raise ConfigError(f"chat: reuse={reuse!r:.80} is no Reuse; write Reuse(kv_bytes=..., visual_bytes=...).")
        self.reuse = reuse or Reuse()
        self._first = () if system is None else (Message("system", (Text(system),)),)
        self._cache = ChatCache(self.reuse)
        self.messages: tuple[Message, ...] = self._first
        self.last_result: Result | None = None
        """The last answer with its tokens, and why it ended; None before the first one."""

    def ask(self, *parts: ChatInput) -> str:
        """Send a message (texts and visuals in their order) and return the answer. Both are added to `messages`.

        A str is a text; images and videos may be PIL images, paths (`pathlib.Path`), bytes, uint8 arrays, or what `image`
        and `video` give. Raises `DataError` for anything else.
        """
        messages = self._append_question(parts)
        with self._borrow_cache() as cache:
            result = cache.generate_answer(self.model, Conversation(messages, "chat"), self.decoding)
        return self._append_answer(messages, result)

    def stream(self, *parts: ChatInput) -> Generator[str, None, None]:
        """Like `ask`, giving the answer piece by piece while it is written.

        An answer that is not read to its end is not added to `messages`, and its generation stops.
        """
        from transformers import TextIteratorStreamer

        messages = self._append_question(parts)
        conversation = Conversation(messages, "chat")
        streamer = TextIteratorStreamer(self.model.backbone.text_tokenizer, skip_special_tokens=True)
        with self._borrow_cache() as cache, _GenerationThread(streamer) as thread:
            thread.start_thread(lambda: cache.generate_answer(self.model, conversation, self.decoding, streamer=thread))
            yield from cut_pieces(streamer, StopSequences.from_model(self.model, self.decoding.stop).texts)
        self._append_answer(messages, thread.get_result())

    def reset_messages(self) -> None:
        """Begin again; the system message stays."""
        self.messages = self._first
        self._cache.forget_visuals()

    @contextmanager
    def _borrow_cache(self) -> Iterator[ChatCache]:
        """The cache, removed while it is in use: a question in between starts with an empty one."""
        cache, self._cache = self._cache, ChatCache(self.reuse)
        try:
            yield cache
        finally:
            self._cache = cache

    def _append_question(self, parts: Sequence[ChatInput]) -> tuple[Message, ...]:
        if not parts:
            raise DataError("chat: nothing was said; give a text, an image or a video.")
        content: list[Part] = []
        for i, part in enumerate(parts):
            content.append(to_part(part, self.model.images))
            # Visuals and the text after them stand on lines of their own, as in LLaVA's prompts.
            content += [Text("\n")] if isinstance(content[-1], Visual) and i + 1 < len(parts) else []
        return (*self.messages, Message("user", tuple(content)))

    def _append_answer(self, messages: tuple[Message, ...], result: Result) -> str:
        self.messages, self.last_result = (*messages, Message("assistant", (Text(result.text),))), result
        return result.text


class _GenerationThread:
    """Generation beside the reader of its stream; an error reaches the reader through `get_result`.

    It stands between the model and the streamer, and stops the model when the reader has left.
    """

    def __init__(self, streamer: BaseStreamer) -> None:
        self._streamer = streamer
        self._thread: Thread | None = None
        self._left = False
        self._result: Result | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> _GenerationThread:
        return self

    def __exit__(self, *_: object) -> None:
        self._left = True
        if self._thread is not None:
            self._thread.join()

    def start_thread(self, generate: Callable[[], Result]) -> None:
        """Run `generate` beside the reader, with the op backends chosen here (`mmblocks.ops.choice.using`)."""

        def run() -> None:
            try:
                self._result = generate()
            except BaseException as error:  # handed to the reading thread, which raises it
                self._error = error
                self._streamer.end()

        self._thread = Thread(target=copy_context().run, args=(run,), daemon=True)
        self._thread.start()

    def put(self, value: torch.Tensor) -> None:
        if self._left:
            raise _StreamClosed
        self._streamer.put(value)

    def end(self) -> None:
        self._streamer.end()

    def get_result(self) -> Result:
        if self._error is not None:
            raise self._error
        assert self._result is not None, "the stream has ended"
        return self._result


class _StreamClosed(Exception):
    """The reader of the stream has left."""
