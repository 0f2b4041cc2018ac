"""A model behind an OpenAI-compatible endpoint, such as `mmblocks serve` or vLLM, that answers the documents of tasks."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from mmblocks.conversation import Conversation, Message, Text, Visual
from mmblocks.data.media.files import FileSlice, resolve_source
from mmblocks.data.media.visuals import load_frames, read_visual_shape
from mmblocks.errors import ConfigError, DataError
from mmblocks.eval.judge.cache import Completion
from mmblocks.eval.judge.endpoint import Endpoint, EndpointSettings, RequestError
from mmblocks.model.generate import Decoding, Result


@dataclass(frozen=True, slots=True)
class EndpointModel:
    """Sends conversations to an endpoint, several at a time. name: what it calls the model."""

    name: str
    endpoint: Endpoint = field(repr=False)
    concurrency: int = 16

    @classmethod
    def connect(cls, base_url: str, name: str | None = None) -> EndpointModel:
        """name: None for the only model of the endpoint. The key is that of the environment variable OPENAI_API_KEY."""
        endpoint = Endpoint.connect(EndpointSettings(base_url, what="The model"))
        if name is None:
            served = endpoint.list_models()
            if len(served) != 1:
                listed = ", ".join(served[:20]) or "none"
                raise ConfigError(f"{base_url} serves {len(served)} models ({listed}); name one with --endpoint-model.")
            (name,) = served
        return cls(name, endpoint)

    def respond(self, conversations: Sequence[Conversation], decoding: Decoding) -> list[Result]:
        """An answer to each conversation. Raises `DataError` for one that the endpoint does not answer."""
        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="endpoint") as threads:
            return list(threads.map(lambda one: self._answer(one, decoding), conversations))

    def _answer(self, conversation: Conversation, decoding: Decoding) -> Result:
        body = {"model": self.name, "messages": to_messages(conversation), **_to_fields(decoding)}
        try:
            found: Completion = self.endpoint.ask(body)
        except RequestError as fault:
            raise DataError(f"{conversation.origin}: {self.endpoint.settings.base_url}: {fault}") from fault
        reason = "length" if found.finish_reason == "length" else "stop"
        return Result((), found.text, reason, found.prompt_tokens, found.reply_tokens)


def _to_fields(decoding: Decoding) -> dict[str, Any]:
    """The fields of a request. Those that are not OpenAI's stand there only where they ask for something."""
    fields: dict[str, Any] = {"max_tokens": decoding.max_new_tokens, "temperature": decoding.temperature}
    further = {
        "top_p": decoding.top_p,
        "top_k": decoding.top_k,
        "seed": decoding.seed,
        "stop": list(decoding.stop),
        "min_tokens": decoding.min_new_tokens,
        "repetition_penalty": decoding.repetition_penalty,
    }
    neutral = {"top_p": 1.0, "top_k": 0, "seed": None, "stop": [], "min_tokens": 0, "repetition_penalty": None}
    return fields | {name: value for name, value in further.items() if value != neutral[name]}


def to_messages(conversation: Conversation) -> list[dict[str, Any]]:
    """A conversation as OpenAI's messages; images and videos are in them as data: URIs."""
    return [{"role": message.role, "content": list(_list_parts(message))} for message in conversation.messages]


def _list_parts(message: Message) -> Iterator[dict[str, Any]]:
    for part in message.parts:
        if isinstance(part, Text):
            yield {"type": "text", "text": part.text}
        elif part.kind == "image":
            yield {"type": "image_url", "image_url": {"url": _write_image(part)}}
        else:
            yield {"type": "video_url", "video_url": {"url": _write_video(part)}}


def _write_image(visual: Visual) -> str:
    """A file as it is, and what is in memory as PNG."""
    content = _read_file(visual)
    if content is None:
        return _write_png(load_frames(visual, [0])[0])
    try:
        with Image.open(io.BytesIO(content)) as image:
            kind = Image.MIME.get(image.format or "", "image/png")
    except OSError as cause:
        raise DataError(f"{visual.source!r:.200} is no image that can be sent ({cause}).") from cause
    return _write_uri(kind, content)


def _write_video(visual: Visual) -> str | list[str]:
    """A file as it is; frames in memory or in a folder as PNGs."""
    content = _read_file(visual)
    if content is not None:
        return _write_uri("video/mp4", content)
    frames = load_frames(visual, range(read_visual_shape(visual).num_frames))
    return [_write_png(frame) for _, frame in sorted(frames.items())]


def _read_file(visual: Visual) -> bytes | None:
    """The content of a file; None for what is no file. Raises `DataError` where it cannot be read."""
    from mmblocks.data.video import is_frame_source

    source = visual.source
    if isinstance(source, FileSlice):
        return source.read()
    if not isinstance(source, str | os.PathLike | bytes) or (visual.kind == "video" and is_frame_source(source)):
        return None
    found = resolve_source(source, visual.kind)
    try:
        return found if isinstance(found, bytes) else found.read_bytes()
    except OSError as cause:
        raise DataError(f"{found}: cannot be opened ({cause}); check the path and its permissions.") from cause


def _write_png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return _write_uri("image/png", file.getvalue())


def _write_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
