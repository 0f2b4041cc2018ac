"""From messages to a question that can be submitted: limits are checked on headers, faults name the part at fault."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmblocks.conversation import Conversation, Message, Visual
from mmblocks.data.media.images import load_image, read_image_size
from mmblocks.data.media.visuals import load_frames
from mmblocks.data.sample.encode import Encoded
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import DataError
from mmblocks.server.errors import RefusedError
from mmblocks.server.limits import ServerLimits
from mmblocks.server.messages import FrameFiles, MessageReader, make_media_error
from mmblocks.shapes import Size, VisualShape


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    """A conversation whose visuals keep to the limits. places: which part of which message each visual is.

    shapes, encoded: of its visuals, and its ids; nothing is decoded for them but what a request gave frame by frame.
    """

    conversation: Conversation
    places: tuple[str, ...]
    shapes: tuple[VisualShape, ...]
    encoded: Encoded


@dataclass(frozen=True, slots=True)
class PromptReader:
    """Prepares prompts, in any thread."""

    processor: Processor
    messages: MessageReader

    @property
    def limits(self) -> ServerLimits:
        return self.messages.limits

    def prepare_prompt(self, messages: object, num_frames: int | None = None) -> PreparedPrompt:
        """Read the messages of a request. num_frames: as in `ChatFields`. Raises `RefusedError`."""
        given, places = self.messages.read_messages(messages)
        visuals, shapes = [], []
        for visual, place in zip(given.visuals, places, strict=True):
            try:
                visual, shape = self._open_visual(visual, place, num_frames)
            except DataError as fault:
                raise make_media_error(place, str(fault)) from fault
            visuals.append(visual)
            shapes.append(shape)
        conversation = _replace_visuals(given, visuals)
        try:
            encoded = self.processor.encode_conversation_prompt(conversation, shapes)
        except DataError as fault:
            raise RefusedError(400, str(fault), param="messages", code="invalid_prompt") from fault
        return PreparedPrompt(conversation, places, tuple(shapes), encoded)

    def find_broken_part(self, prompt: PreparedPrompt) -> RefusedError | None:
        """The error of the first visual that cannot be decoded; None where all can."""
        plans = zip(prompt.conversation.visuals, prompt.places, prompt.encoded.plans, strict=True)
        for visual, place, routed in plans:
            try:
                self.processor.render_visual(visual, routed.plan)
            except DataError as fault:
                return make_media_error(place, str(fault))
        return None

    def _open_visual(self, visual: Visual, place: str, num_frames: int | None) -> tuple[Visual, VisualShape]:
        """A visual and its shape, a video reduced to `num_frames` where these are fewer than it has."""
        if isinstance(visual.source, FrameFiles):
            visual = Visual("video", self._decode_frames(visual.source, place))
        shape = self.processor.read_shape(visual)
        self._check_shape(shape, place)
        if visual.kind == "image" or num_frames is None or num_frames >= shape.num_frames:
            return visual, shape
        self._check_video_pixels(shape.size, num_frames, place)
        last = shape.num_frames - 1
        chosen = [0] if num_frames == 1 else [round(i * last / (num_frames - 1)) for i in range(num_frames)]
        frames = load_frames(visual, chosen, self.processor.images, self.processor.video_reader)
        pixels = np.stack([np.asarray(frames[i]) for i in chosen])
        reduced = Visual("video", pixels, fps=shape.fps * num_frames / shape.num_frames)
        return reduced, self.processor.read_shape(reduced)

    def _check_shape(self, shape: VisualShape, place: str) -> None:
        if shape.size.area > self.limits.max_px:
            message = f"{shape.size} is {shape.size.area:,} pixels; send at most {self.limits.max_px:,}."
            raise make_media_error(place, message)
        seconds = shape.num_frames / shape.fps
        if shape.kind == "video" and seconds > self.limits.clip_s:
            raise make_media_error(place, f"the video is {seconds:.1f} s long; send at most {self.limits.clip_s:g} s.")

    def _check_video_pixels(self, size: Size, frames: int, place: str) -> None:
        if (area := size.area * frames) > self.limits.video_px:
            message = f"{frames} frames of {size} are {area:,} pixels; send at most {self.limits.video_px:,} in all."
            raise make_media_error(place, message)

    def _decode_frames(self, source: FrameFiles, place: str) -> np.ndarray:
        """uint8 (frames, height, width, 3)."""
        images = self.processor.images
        sizes = [read_image_size(file, images) for file in source.files]
        self._check_shape(VisualShape("image", sizes[0]), place)
        self._check_video_pixels(sizes[0], len(sizes), place)
        for i, size in enumerate(sizes):
            if size != sizes[0]:
                raise make_media_error(place, f"frame {i} is {size} pixels, the first one {sizes[0]}; make them alike.")
        return np.stack([np.asarray(load_image(file, images)) for file in source.files])


def _replace_visuals(conversation: Conversation, visuals: Sequence[Visual]) -> Conversation:
    """The same words with other visuals, in their order."""
    following, messages = iter(visuals), []
    for message in conversation.messages:
        parts = tuple(next(following) if isinstance(part, Visual) else part for part in message.parts)
        messages.append(Message(message.role, parts))
    return replace(conversation, messages=tuple(messages))
