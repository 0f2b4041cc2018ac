"""What a video says of itself (its title, its author) is no reason to refuse its images, with any PyAV."""

import io

import av
import numpy as np

from mmblocks.data.video import read_frames, read_video_shape
from mmblocks.shapes import Size

TITLE = b"a title here"


def titled_clip() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        container.metadata["title"] = TITLE.decode()
        stream = container.add_stream("mpeg4", rate=5)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 48, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def test_a_title_that_is_not_utf_8_does_not_hide_the_pictures():
    clip = titled_clip()
    assert TITLE in clip
    clip = clip.replace(TITLE, b"\xff" * len(TITLE))
    assert read_video_shape(clip).size == Size(32, 48)
    assert read_frames(clip, [0, 2]).shape == (2, 32, 48, 3)
