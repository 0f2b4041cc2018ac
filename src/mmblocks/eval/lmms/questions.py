"""What lmms-eval's tasks show and ask, as conversations."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmblocks.conversation import Conversation, Message, Part, Text, Visual
from mmblocks.data.media.files import IMAGE_SUFFIXES
from mmblocks.errors import DataError
from mmblocks.eval.tasks._prompts import place_turns, place_visuals

SOUND_SUFFIXES = (".wav", ".mp3", ".flac", ".ogg", ".m4a", ".aac", ".opus")


def read_visuals(given: Sequence[Any] | None, metadata: Mapping[str, Any], origin: str) -> tuple[Visual, ...]:
    """What a task's `doc_to_visual` gives: PIL images, and paths of images and videos.

    metadata: of the request. Tasks that give a video as images say so ("task_type": "video", "sample_frames").
    Raises `DataError` for what cannot be shown.
    """
    given = [given] if isinstance(given, str | Image.Image) else given or ()
    images = [one for one in given if isinstance(one, Image.Image)]
    if images and len(images) == len(given) and metadata.get("task_type") == "video" and "sample_frames" in metadata:
        return (_join_frames(images, int(metadata["sample_frames"]), origin),)
    return tuple(_read_visual(one, origin) for one in given)


def make_question(context: str, visuals: Sequence[Visual], origin: str) -> Conversation:
    """A question of a simple class: visuals where the context has markers, else in front of it.

    A context may also be JSON, a list of turns [{"value": text}, ...], as those of LLaVA-Interleave's multi-view tasks.
    """
    if (turns := _read_turns(context)) is not None:
        return place_turns(turns, visuals, origin)
    return Conversation((Message("user", place_visuals(context, visuals, origin)),), origin)


def read_messages(messages: object, metadata: Mapping[str, Any], origin: str) -> Conversation:
    """The messages of a chat class: {"role", "content"}, whose parts have a "type" and "text" or "url".

    Visuals stay where they stand among texts. Where all stand in front of the text, as in the messages that lmms-eval makes
    for tasks that have none of their own, the prompt is that of the simple class.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise DataError(f"{origin}: {messages!r:.80} is no list of messages; let doc_to_messages give one.")
    return Conversation(tuple(_read_message(message, metadata, origin) for message in messages), origin)


def _read_turns(context: str) -> list[Any] | None:
    if not context.lstrip().startswith("["):
        return None
    try:
        turns = json.loads(context)
    except ValueError:
        return None
    has_turns = isinstance(turns, list) and bool(turns)
    return turns if has_turns and all(isinstance(turn, dict) and "value" in turn for turn in turns) else None


def _read_message(message: Any, metadata: Mapping[str, Any], origin: str) -> Message:
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), str | list | tuple):
        raise DataError(f"{origin}: {message!r:.80} is no message; write {{'role': ..., 'content': [...]}}.")
    content = message["content"]
    raw = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    is_text = [isinstance(part, Mapping) and part.get("type") == "text" for part in raw]
    leading = is_text.index(True) if True in is_text else len(raw)
    if 0 < leading < len(raw) and all(is_text[leading:]):
        visuals = read_visuals([_find_source(part, origin) for part in raw[:leading]], metadata, origin)
        return Message(message["role"], place_visuals("".join(str(p["text"]) for p in raw[leading:]), visuals, origin))
    parts: list[Part] = [
        Text(part["text"]) if is_one else _read_visual(_find_source(part, origin), origin)
        for part, is_one in zip(raw, is_text, strict=True)
    ]
    return Message(message["role"], tuple(parts))


def _find_source(part: Any, origin: str) -> Any:
    """The source of a part of a message that is an image or a video."""
    kind, source = (part.get("type"), part.get("url")) if isinstance(part, Mapping) else (None, None)
    if kind not in ("image", "video") or source is None:
        raise DataError(f"{origin}: {part!r:.120} cannot be shown; mmblocks reads parts of text, image and video.")
    if part.get("start_time") is not None or part.get("end_time") is not None:
        raise DataError(f"{origin}: {part!r:.120} is a part of a video; cut it to a file, mmblocks shows whole videos.")
    return source


def _read_visual(given: Any, origin: str) -> Visual:
    if isinstance(given, Image.Image):
        return Visual("image", given)
    if isinstance(given, str | os.PathLike):
        suffix = Path(given).suffix.lower()
        if suffix not in SOUND_SUFFIXES:
            return Visual("image" if suffix in IMAGE_SUFFIXES else "video", os.fspath(given))
    raise DataError(
        f"{origin}: {given!r:.120} cannot be shown; mmblocks reads PIL images and the paths of images and videos."
    )


def _join_frames(images: Sequence[Image.Image], num_frames: int, origin: str) -> Visual:
    """A video of so many of the images, spread evenly."""
    chosen = [images[i] for i in np.linspace(0, len(images) - 1, num_frames, dtype=int)]
    if len({image.size for image in chosen}) > 1:
        raise DataError(f"{origin}: the frames have several sizes; let doc_to_visual give frames of one size.")
    return Visual("video", np.stack([np.asarray(image.convert("RGB")) for image in chosen]))
