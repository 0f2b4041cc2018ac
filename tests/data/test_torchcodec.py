"""torchcodec, the last reader: the same pixels where it finds an FFmpeg, a reason where it does not."""

import importlib.util
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import av
import numpy as np
import pytest

from mmblocks.data.video import read_frames, read_video_shape
from mmblocks.errors import DataError

# PyAV's wheel carries an FFmpeg as shared libraries; under their plain names torchcodec can use them.
LIBRARIES = Path(av.__file__).parent.with_name("av.libs")
CAN_TRY = importlib.util.find_spec("torchcodec") is not None and LIBRARIES.is_dir()

CODECS = {
    "h264.mp4": {},
    "b_frames.mkv": {"bf": "3"},
    "open_groups.mp4": {"x264-params": "open-gop=1:bframes=3:scenecut=0"},
    "vp9.webm": {"codec": "libvpx-vp9", "deadline": "realtime"},
    "mpeg4.mp4": {"codec": "mpeg4", "bf": "2"},
    "turned.mp4": {"degrees": 90},
    "upside_down.mp4": {"degrees": 180},
}


def record(path, codec="libx264", degrees=0, **options):
    """Twenty frames of noise under a moving bar."""
    noise = np.random.default_rng(0)
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"threads": "1", "g": "8", **options})
        stream.height, stream.width, stream.pix_fmt = 32, 64, "yuv420p"
        if degrees:
            stream.set_display_rotation(degrees)
        for number in range(20):
            picture = noise.integers(0, 256, (32, 64, 3), dtype=np.uint8)
            picture[:, 3 * number : 3 * number + 6] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def plain_names(folder):
    for library in LIBRARIES.iterdir():
        plain = re.sub(r"(\.so\.\d+).*", r"\1", re.sub(r"-[0-9a-f]{8}(?=\.so)", "", library.name))
        for name in {library.name, plain}:
            (folder / name).symlink_to(library)
    return folder


READ_ALL = """
    import sys
    from pathlib import Path
    import numpy as np
    from mmblocks.data.video import read_frames
    from mmblocks.data.video.container import VideoFile
    from mmblocks.data.video.with_torchcodec import read_torchcodec_shape
    from mmblocks.errors import DataError
    for path in map(Path, sys.argv[1:]):
        try:
            frames, shape = read_frames(path, [0, 7, 7, 19, 3], reader="torchcodec"), read_torchcodec_shape(VideoFile.from_source(path))
        except DataError as fault:
            path.with_suffix(".fault").write_text(str(fault))
            continue
        np.savez(path.with_suffix(".npz"), frames=frames, shape=[*shape.size, shape.num_frames], fps=shape.fps)
"""


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """All videos, read by torchcodec in a process that finds PyAV's libraries."""
    folder = tmp_path_factory.mktemp("clips")
    paths = [record(folder / name, **settings) for name, settings in CODECS.items()]
    libraries = plain_names(tmp_path_factory.mktemp("libraries"))
    environment = {**os.environ, "LD_LIBRARY_PATH": os.fspath(libraries), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(READ_ALL), *paths], check=True, env=environment)
    return folder


@pytest.mark.parametrize("name", CODECS if CAN_TRY else [])
def test_it_gives_the_pixels_and_the_shape_that_pyav_gives(name, read):
    path = read / name
    with np.load(path.with_suffix(".npz")) as got:
        np.testing.assert_array_equal(got["frames"], read_frames(path, [0, 7, 7, 19, 3], reader="pyav"))
        shape = read_video_shape(path)
        assert got["shape"].tolist() == [*shape.size, shape.num_frames]
        assert float(got["fps"]) == pytest.approx(shape.fps, rel=1e-6)


# --- where it is missing


@pytest.fixture
def without_torchcodec(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)


def test_asked_for_where_it_is_missing_it_gives_the_reason(tmp_path, without_torchcodec):
    path = record(tmp_path / "video.mp4")
    with pytest.raises(
        DataError, match=r"torchcodec cannot read this video \(torchcodec is not installed\); use reader='pyav'"
    ):
        read_frames(path, [0], reader="torchcodec")
    assert len(read_frames(path, [0])) == 1


def test_a_coding_that_pyav_lacks_is_refused_with_both_reasons(tmp_path, without_torchcodec):
    whole = record(tmp_path / "whole.mp4")
    path = tmp_path / "exotic.mp4"
    path.write_bytes(whole.read_bytes().replace(b"avc1", b"zzz1"))
    with pytest.raises(
        DataError, match=r"exotic\.mp4: .*cannot be decoded; .*\(torchcodec: torchcodec is not installed\)"
    ):
        read_video_shape(path)
