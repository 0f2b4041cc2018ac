"""The process that reads videos for another one (`mmblocks.helper_process`).

Nothing here imports torch, so the process starts in a fraction of a second and takes little memory.
"""

import os
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mmblocks.data.media.files import FileSlice
from mmblocks.data.video import read_frames, read_video_shape
from mmblocks.data.video.container import NoDecoder, NotVideoFault
from mmblocks.errors import DataError
from mmblocks.helper_process import HelperAnswer, serve_requests


def main() -> None:
    """Answer requests until standard input ends."""
    serve_requests(_answer_request)


def _answer_request(request: Mapping[str, Any], content: bytes) -> HelperAnswer:
    if request["cwd"] is not None:
        with suppress(OSError):  # a path that is relative to a folder that is gone is reported as missing
            os.chdir(request["cwd"])
    source: str | bytes | FileSlice = content if request["path"] is None else request["path"]
    if request["slice"] is not None:
        path, *rest = request["slice"]
        source = FileSlice(Path(path), *rest)
    try:
        if request["indices"] is None:
            shape = read_video_shape(source)
            return {"size": shape.size, "num_frames": shape.num_frames, "fps": shape.fps, "times_s": shape.times_s}, b""
        frames = np.ascontiguousarray(read_frames(source, request["indices"], threads=request.get("threads", 1)))
        return {"frames": frames.shape}, frames.reshape(-1).data
    except DataError as fault:
        return {"fault": str(fault), "of_clip": not isinstance(fault, NotVideoFault | NoDecoder)}, b""
    except MemoryError:
        raise
    except Exception:  # a mistake of ours: the process that asked raises it
        return {"mistake": traceback.format_exc()}, b""


if __name__ == "__main__":
    main()
