"""How much a server takes on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmblocks.errors import ConfigError
from mmblocks.settings import list_settings

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """How much a server takes on.

    body_bytes: of one request. open_body_bytes: of the bodies of all requests that are read or answered. max_px: pixels of
    an image, or of a frame. frames: of a video that is given as images, or that a request asks for. video_px: pixels of all
    of these. clip_s: length of a video. video_read_s: what reading it may take. visuals: images and videos of a request.
    answer_tokens: the most that a request may ask for; None for what the model takes. default_answer_tokens: where a
    request does not say. samples: answers to one request (`n`). stall_s: how long a client may neither send nor take
    anything. request_s: from the end of a body to the end of its answer; as long may the body take. drain_s: what running
    requests get when the server is stopped. connections: at a time. workers: threads that read media and tokenise.
    """

    body_bytes: int = 128 * MIB
    open_body_bytes: int = 1024 * MIB
    max_px: int = 64_000_000
    frames: int = 512
    video_px: int = 256_000_000
    clip_s: float = 3600.0
    video_read_s: float = 60.0
    visuals: int = 256
    answer_tokens: int | None = None
    default_answer_tokens: int = 512
    samples: int = 16
    stall_s: float = 30.0
    request_s: float = 600.0
    drain_s: float = 30.0
    connections: int = 1024
    workers: int = 4

    def __post_init__(self) -> None:
        for setting in list_settings(ServerLimits).values():
            value = getattr(self, setting.name)
            if setting.find_fault(value) or (value is not None and not 0 < value < math.inf):
                raise ConfigError(f"server: {setting.name}={value!r:.40}; write a number above 0.")
