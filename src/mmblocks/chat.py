"""Talk to a model: single answers for a batch of conversations, and a chat that remembers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Thread
from typing import Any

from mmblocks.conversation import Conversation, Message, Part, Text, Visual
from mmblocks.data.collate import collate
from mmblocks.data.processor import Processor
from mmblocks.errors import DataError
from mmblocks.model.generate import Decoding, Stop, generate
from mmblocks.model.onevision import OneVision


def image(source: Any) -> Visual:
    """A picture to show: a path, bytes, a data: URI or a PIL image."""
    return Visual("image", source)


def video(source: Any, *, fps: float = 1.0) -> Visual:
    """A clip to show: a path, or a uint8 array (frames, height, width, 3) with its frames per second."""
    return Visual("video", source, fps)


def answer(model: OneVision, conversations: Sequence[Conversation], decoding: Decoding | None = None) -> list[str]:
    """One answer per conversation, written together. Each conversation ends with a message of the user."""
    processor = Processor.of(model)
    batch = collate([processor.prompt(c) for c in conversations]).to(model.device)
    return [_text(model, ids) for ids in generate(model, batch, decoding)]


class Chat:
    """A conversation with a model over many turns, with pictures and clips wherever they belong.

    >>> chat = Chat(model)                                                            # doctest: +SKIP
    >>> chat.ask(image("left.png"), image("right.png"), "Which picture has a red circle?")  # doctest: +SKIP
    """

    def __init__(self, model: OneVision, *, system: str | None = None, decoding: Decoding | None = None) -> None:
        self.model = model
        self.decoding = decoding or Decoding()
        self._first = () if system is None else (Message("system", (Text(system),)),)
        self.messages: tuple[Message, ...] = self._first

    def ask(self, *parts: str | Visual) -> str:
        """Say something (texts and visuals in their order) and return the answer. Both are remembered."""
        asked = self._asked(parts)
        return self._remember(asked, answer(self.model, [Conversation(asked, "chat")], self.decoding)[0])

    def stream(self, *parts: str | Visual) -> Iterator[str]:
        """Like `ask`, giving the answer piece by piece while it is written."""
        from transformers import TextIteratorStreamer

        asked = self._asked(parts)
        batch = collate([Processor.of(self.model).prompt(Conversation(asked, "chat"))]).to(self.model.device)
        streamer = TextIteratorStreamer(self.model.backbone.text_tokenizer, skip_special_tokens=True)
        writer = _Writer(self.model, batch, self.decoding, streamer)
        writer.start()
        yield from streamer
        writer.join()
        self._remember(asked, _text(self.model, writer.result()))

    def forget(self) -> None:
        """Begin again; the system message stays."""
        self.messages = self._first

    def _asked(self, parts: Sequence[str | Visual]) -> tuple[Message, ...]:
        if not parts:
            raise DataError("chat: nothing was said; give a text, a picture or a clip.")
        said: list[Part] = [Text(p) if isinstance(p, str) else p for p in parts]
        return (*self.messages, Message("user", tuple(_on_lines(said))))

    def _remember(self, asked: tuple[Message, ...], text: str) -> str:
        self.messages = (*asked, Message("assistant", (Text(text),)))
        return text


class _Writer(Thread):
    """Generation beside the reader of its stream; an error reaches the reader through `result`."""

    def __init__(self, model: OneVision, batch: Any, decoding: Decoding, streamer: Any) -> None:
        super().__init__(daemon=True)
        self._work = (model, batch, decoding)
        self._streamer = streamer
        self._ids: list[int] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._ids = generate(*self._work, streamer=self._streamer)[0]
        except BaseException as error:  # handed to the reading thread, which raises it
            self._error = error
            self._streamer.end()

    def result(self) -> list[int]:
        if self._error is not None:
            raise self._error
        return self._ids


def _on_lines(parts: Sequence[Part]) -> Iterator[Part]:
    """Visuals and the text after them on lines of their own, as LLaVA's prompts have them."""
    for i, part in enumerate(parts):
        yield part
        if isinstance(part, Visual) and i + 1 < len(parts):
            yield Text("\n")


def _text(model: OneVision, ids: Sequence[int]) -> str:
    text = model.backbone.text_tokenizer.decode(ids, skip_special_tokens=True)
    for stop in Stop.of(model).texts:
        text = text.partition(stop)[0]
    return text.strip()
