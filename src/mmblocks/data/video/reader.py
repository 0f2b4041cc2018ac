"""The process that reads clips for another one: requests on standard input, answers on standard output.

A message is the lengths of its two parts (`LENGTHS`), a JSON object, and raw bytes. Nothing here imports torch, so the
process starts in a fraction of a second and takes little memory.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mmblocks.data.files import Slice
from mmblocks.data.video import read_frames, video_shape
from mmblocks.data.video.clip import NoDecoder, NotTheClip
from mmblocks.errors import DataError

LENGTHS = struct.Struct("<IQ")
"""Bytes of the JSON object, bytes of what follows it."""


def main() -> None:
    """Answer requests until standard input ends."""
    for ignored in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGUSR1,
    ):  # whoever started this process decides when it ends
        signal.signal(ignored, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with suppress(BrokenPipeError):  # nobody is left to read the answer
        requests, answers = _private_pipes()
        _send(answers, {"ready": True})
        while (received := _receive(requests)) is not None:
            request, content = received
            # Outlives no owner: killed in the middle of a read, it leaves nobody else to notice that this one hangs.
            signal.setitimer(signal.ITIMER_REAL, request["alarm_s"])
            _send(answers, *_answer(request, content))
            signal.setitimer(signal.ITIMER_REAL, 0)


def _private_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The pipes, out of reach of libraries that print: what those write to standard output goes to standard error."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, answers


def _receive(requests: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    lengths = requests.read(LENGTHS.size)
    if len(lengths) < LENGTHS.size:
        return None
    header_bytes, content_bytes = LENGTHS.unpack(lengths)
    header, content = requests.read(header_bytes), requests.read(content_bytes)
    return None if len(content) < content_bytes else (json.loads(header), content)


def _send(answers: BinaryIO, header: Mapping[str, Any], pixels: np.ndarray | None = None) -> None:
    text = json.dumps(header).encode()
    answers.write(LENGTHS.pack(len(text), 0 if pixels is None else pixels.nbytes) + text)
    if pixels is not None:
        answers.write(pixels.reshape(-1).data)
    answers.flush()


def _answer(request: Mapping[str, Any], content: bytes) -> tuple[dict[str, Any], np.ndarray | None]:
    if request["cwd"] is not None:
        with suppress(OSError):  # a path that is relative to a folder that is gone is reported as missing
            os.chdir(request["cwd"])
    source = _source(request, content)
    try:
        if request["indices"] is None:
            shape = video_shape(source)
            return {
                "size": shape.size,
                "num_frames": shape.num_frames,
                "fps": shape.fps,
                "times_s": shape.times_s,
            }, None
        frames = np.ascontiguousarray(read_frames(source, request["indices"]))
        return {"frames": frames.shape}, frames
    except DataError as fault:
        return {"fault": str(fault), "of_clip": not isinstance(fault, NotTheClip | NoDecoder)}, None
    except MemoryError:
        return {"memory": True}, None
    except Exception:  # a mistake of ours: it is told to whoever asked, who raises it
        return {"mistake": traceback.format_exc()}, None


def _source(request: Mapping[str, Any], content: bytes) -> str | bytes | Slice:
    if request["slice"] is not None:
        path, offset, size, name = request["slice"]
        return Slice(Path(path), offset, size, name)
    return content if request["path"] is None else request["path"]


if __name__ == "__main__":
    main()
