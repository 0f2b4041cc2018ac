"""The inputs of a chat: texts, images and videos in their usual forms, as parts of a message."""

import io
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType

import numpy as np
import torch
from PIL import Image

from mmblocks.conversation import Conversation, Message, Part, Text, Visual
from mmblocks.data.media.files import describe_source, resolve_source
from mmblocks.data.media.images import read_image_size
from mmblocks.data.media.urls import fetch_url, is_web_url
from mmblocks.errors import ConfigError, DataError
from mmblocks.image_reading import DEFAULT_READING, ImageReading
from mmblocks.model.generation.decoding import Decoding
from mmblocks.settings import format_value

ACCEPTED_INPUTS = (
    "a text, a PIL image, a pathlib.Path or the bytes of an image or video, a uint8 array (height, width, 3) or (frames, "
    "height, width, 3), or what mmblocks.image and mmblocks.video give"
)

CURES: tuple[tuple[type | UnionType, str], ...] = (
    (torch.Tensor, "A tensor has no fixed layout: write image.permute(1, 2, 0).numpy() for one of (3, height, width)."),
    (Mapping, "Dicts are read by Conversation.from_messages, whose conversations `answer` takes."),
    (Conversation | Message, "Conversations are answered by `answer`; a chat's own are its `messages`."),
    (list | tuple, "Give several one by one: chat.ask(first, second, 'What differs?')."),
)
"""What to write instead of inputs that people are likely to give."""


def image(source: object, *, allow_urls: bool | Collection[str] = False) -> Visual:
    """An image to show: a path, bytes, a data: URI, a PIL image, or a uint8 array (height, width, 3).

    allow_urls: whether a URL of http or https is fetched, now; or names of hosts that may have private addresses, too.
    """
    source = _fetch_source(source, allow_urls)
    if isinstance(source, np.ndarray):
        return _read_array(source, ("image",))
    if not isinstance(source, str | os.PathLike | bytes | Image.Image):
        raise DataError(f"image: {format_value(source)} is no image; pass a path, bytes, a data: URI or a PIL image.")
    return Visual("image", source)


def video(source: object, *, fps: float = 1.0, allow_urls: bool | Collection[str] = False) -> Visual:
    """A video to show: a path, bytes, a folder or tuple of images, or a uint8 array (frames, height, width, 3) with its
    frames per second. allow_urls: as of `image`."""
    source = _fetch_source(source, allow_urls)
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < float("inf"):
        raise DataError(f"video: fps={format_value(fps)}; write frames per second, a number above 0.")
    if isinstance(source, np.ndarray):
        return Visual("video", _read_array(source, ("video",)).source, float(fps))
    if not isinstance(source, str | os.PathLike | bytes | tuple):
        raise DataError(f"video: {format_value(source)} is no video; pass a path, bytes, or a uint8 array of frames.")
    return Visual("video", source, float(fps))


def _fetch_source(source: object, allow_urls: bool | Collection[str]) -> object:
    """The bytes of a URL, where URLs are allowed; anything else as it is."""
    if allow_urls is False or not is_web_url(source):
        return source
    return fetch_url(str(source), () if allow_urls is True else allow_urls)


def to_part(given: object, images: ImageReading = DEFAULT_READING) -> Part:
    """One input as a part of a message; files and bytes are an image or a video by their content.

    Raises `DataError` that lists the accepted inputs.
    """
    if isinstance(given, Text | Visual):
        return given
    if isinstance(given, str):
        return Text(given)
    if isinstance(given, Image.Image):
        return Visual("image", given)
    if isinstance(given, np.ndarray):
        return _read_array(given, ("image", "video"))
    if isinstance(given, os.PathLike | bytes | bytearray | memoryview):
        return _read_file(given if isinstance(given, os.PathLike) else bytes(given), images)
    cure = next((f" {text}" for kinds, text in CURES if isinstance(given, kinds)), "")
    raise DataError(f"chat: {format_value(given)} cannot be said; give {ACCEPTED_INPUTS}.{cure}")


def check_conversations(given: object) -> list[Conversation]:
    """Conversations as they are given to `answer`. Raises `DataError` for anything else."""
    if isinstance(given, Conversation):
        raise DataError("conversations: one was given where a list of them is taken; write [conversation].")
    found: list[object] = []
    if isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping):
        found = list(given)
    cure = "give [Conversation.from_messages(messages), ...]."
    if not found and (not isinstance(given, Sequence) or isinstance(given, str | bytes)):
        raise DataError(f"conversations: {format_value(given)} is no list of conversations; {cure}")
    conversations = []
    for i, one in enumerate(found):
        if not isinstance(one, Conversation):
            raise DataError(f"conversations: item {i} is {format_value(one)}; {cure}")
        conversations.append(one)
    return conversations


def check_continuations(given: object, conversations: int) -> list[list[str]]:
    """For each of so many conversations its continuations. Raises `DataError` for anything else."""
    cure = "give a list of texts for each conversation, such as [['yes', 'no'], ...]."
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        raise DataError(f"continuations: {format_value(given)} is no list; {cure}")
    if len(given) != conversations:
        raise DataError(f"continuations: there are {len(given)} lists for {conversations} conversations; {cure}")
    for i, texts in enumerate(given):
        is_list = isinstance(texts, Sequence) and not isinstance(texts, str | bytes)
        if not is_list or not texts or not all(isinstance(text, str) for text in texts):
            raise DataError(f"continuations: item {i} is {format_value(texts)}; {cure}")
    return [list(texts) for texts in given]


def check_decoding(given: Decoding | None) -> Decoding:
    """The settings, or the defaults. Raises `ConfigError` for what are none."""
    if not isinstance(given, Decoding | None):
        raise ConfigError(f"decoding={given!r:.80} is no Decoding; write Decoding(max_new_tokens=..., ...).")
    return given or Decoding()


def _read_array(array: np.ndarray, kinds: tuple[str, ...]) -> Visual:
    if array.dtype == np.uint8 and array.ndim in (3, 4) and array.shape[-1] == 3 and array.size:
        kind = "image" if array.ndim == 3 else "video"
        if kind in kinds:
            return Visual("image", Image.fromarray(array)) if kind == "image" else Visual("video", array)
    forms = {"image": "(height, width, 3)", "video": "(frames, height, width, 3)"}
    wanted = " or ".join(f"{forms[kind]} for {'an image' if kind == 'image' else 'a video'}" for kind in kinds)
    raise DataError(f"an array of {array.dtype} {array.shape} cannot be shown; give uint8 {wanted}, RGB, 0 to 255.")


def _read_file(source: os.PathLike[str] | bytes, images: ImageReading) -> Visual:
    """An image where PIL knows it and it does not move, else a video."""
    if isinstance(source, os.PathLike) and Path(source).is_dir():
        return Visual("video", source)
    resolve_source(source, "image")  # raises where there is no such file
    try:
        read_image_size(source, images)
    except DataError as not_image:
        from mmblocks.data.video import read_video_shape  # imports PyAV, which images do not need

        try:
            read_video_shape(source)
        except DataError as not_video:
            raise DataError(
                f"{describe_source(source, 'image')}: neither an image ({not_image}) nor a video ({not_video})"
            ) from not_video
        return Visual("video", source)
    content = resolve_source(source, "image")
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        is_gif = file.read(6) in (b"GIF87a", b"GIF89a")
    if is_gif:
        from mmblocks.data.video import read_video_shape

        return Visual("video" if read_video_shape(source).num_frames > 1 else "image", source)
    return Visual("image", source)
