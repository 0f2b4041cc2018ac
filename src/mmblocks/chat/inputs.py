"""What may be said to a model: texts, images and videos in the forms that people have them in."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmblocks.conversation import Conversation, Message, Part, Text, Visual
from mmblocks.data.media.files import describe_source, resolve_source
from mmblocks.data.media.images import read_image_size
from mmblocks.errors import DataError
from mmblocks.image_reading import DEFAULT_READING, ImageReading
from mmblocks.settings import format_value

ACCEPTED_INPUTS = (
    "a text, a PIL image, a pathlib.Path or the bytes of an image or video, a uint8 array (height, width, 3) or (frames, "
    "height, width, 3), or what mmblocks.image and mmblocks.video give"
)


def image(source: Any) -> Visual:
    """An image to show: a path, bytes, a data: URI, a PIL image, or a uint8 array (height, width, 3)."""
    if isinstance(source, np.ndarray):
        return _read_array(source, ("image",))
    if not isinstance(source, str | os.PathLike | bytes | Image.Image):
        raise DataError(f"image: {format_value(source)} is no image; pass a path, bytes, a data: URI or a PIL image.")
    return Visual("image", source)


def video(source: Any, *, fps: float = 1.0) -> Visual:
    """A video to show: a path, bytes, a folder or tuple of images, or a uint8 array (frames, height, width, 3) with its
    frames per second."""
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < float("inf"):
        raise DataError(f"video: fps={format_value(fps)}; write frames per second, a number above 0.")
    if isinstance(source, np.ndarray):
        return Visual("video", _read_array(source, ("video",)).source, float(fps))
    if not isinstance(source, str | os.PathLike | bytes | tuple):
        raise DataError(f"video: {format_value(source)} is no video; pass a path, bytes, or a uint8 array of frames.")
    return Visual("video", source, float(fps))


def to_part(said: Any, images: ImageReading = DEFAULT_READING) -> Part:
    """One thing that was said as a part of a message; files and bytes are an image or a video by what is in them.

    Raises `DataError` that says what is taken.
    """
    if isinstance(said, Text | Visual):
        return said
    if isinstance(said, str):
        return Text(said)
    if isinstance(said, Image.Image):
        return Visual("image", said)
    if isinstance(said, np.ndarray):
        return _read_array(said, ("image", "video"))
    if isinstance(said, os.PathLike | bytes | bytearray | memoryview):
        return _read_file(said if isinstance(said, os.PathLike) else bytes(said), images)
    raise DataError(f"chat: {format_value(said)} cannot be said; give {ACCEPTED_INPUTS}.{_suggest_cure(said)}")


def check_conversations(given: Any) -> list[Conversation]:
    """Conversations as they are given to `answer`. Raises `DataError` for anything else."""
    if isinstance(given, Conversation):
        raise DataError("answer: one conversation was given where a list of them is taken; write [conversation].")
    found = [] if isinstance(given, str | bytes | Mapping) or not hasattr(given, "__iter__") else list(given)
    if given is None or (not found and not isinstance(given, Sequence)) or isinstance(given, str | bytes):
        raise DataError(
            f"answer: {format_value(given)} is no list of conversations; give [Conversation.of(messages), ...]."
        )
    for i, one in enumerate(found):
        if not isinstance(one, Conversation):
            raise DataError(f"answer: item {i} is {format_value(one)}; give [Conversation.of(messages), ...].")
    return found


def _read_array(array: np.ndarray, kinds: tuple[str, ...]) -> Visual:
    if array.dtype == np.uint8 and array.ndim in (3, 4) and array.shape[-1] == 3 and array.size:
        kind = "image" if array.ndim == 3 else "video"
        if kind in kinds:
            return Visual("image", Image.fromarray(array)) if kind == "image" else Visual("video", array)
    forms = {"image": "(height, width, 3)", "video": "(frames, height, width, 3)"}
    wanted = " or ".join(f"{forms[kind]} for {'a picture' if kind == 'image' else 'a clip'}" for kind in kinds)
    raise DataError(f"an array of {array.dtype} {array.shape} cannot be shown; give uint8 {wanted}, RGB, 0 to 255.")


def _read_file(source: os.PathLike[str] | bytes, images: ImageReading) -> Visual:
    """An image where PIL knows it and it does not move, else a video."""
    if isinstance(source, os.PathLike) and Path(source).is_dir():
        return Visual("video", source)
    resolve_source(source, "image")  # says that there is none
    try:
        read_image_size(source, images)
    except DataError as no_picture:
        from mmblocks.data.video import read_video_shape  # imports PyAV, which images do not need

        try:
            read_video_shape(source)
        except DataError as no_clip:
            raise DataError(
                f"{describe_source(source, 'image')}: neither an image ({no_picture}) nor a video ({no_clip})"
            ) from no_clip
        return Visual("video", source)
    return Visual("video" if _is_animated(source) else "image", source)


def _is_animated(source: os.PathLike[str] | bytes) -> bool:
    """Whether an image file is a GIF of several images, which is a video."""
    content = resolve_source(source, "image")
    head = content[:6] if isinstance(content, bytes) else _head(content)
    if head not in (b"GIF87a", b"GIF89a"):
        return False
    from mmblocks.data.video import read_video_shape

    return read_video_shape(source).num_frames > 1


def _head(path: Any) -> bytes:
    with path.open("rb") as file:
        return file.read(6)


def _suggest_cure(said: Any) -> str:
    """What to do with something that people are likely to give."""
    if isinstance(said, torch.Tensor):
        return (
            " A tensor says nothing of its layout: write image.permute(1, 2, 0).numpy() for one of (3, height, width)."
        )
    if isinstance(said, Mapping):
        return " Messages of dicts are read by Conversation.of, whose conversations `answer` takes."
    if isinstance(said, Conversation | Message):
        return " Conversations are answered by `answer`; a chat's own are its `messages`."
    if isinstance(said, list | tuple):
        return " Give several one by one: chat.ask(first, second, 'What differs?')."
    return ""
