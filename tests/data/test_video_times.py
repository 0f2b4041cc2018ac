"""When frames are shown: the times of the file, wherever frames do not follow an even rate."""

import io
import os
import pickle
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from mmblocks.components import poolings, tokenizers
from mmblocks.conversation import Visual
from mmblocks.data.inspect.figures import InspectedVisual
from mmblocks.data.media.visuals import read_visual_shape
from mmblocks.data.video import read_frames, read_video_shape
from mmblocks.data.video.frame_times import FramePace, compute_pace
from mmblocks.data.video.video_reader import VideoReader
from mmblocks.shapes import Box, RoutedPlan, Size, View, VisualPlan

# 70 frames in the first second, one a second from then on, the last for half a second.
BURST_MS = [*(1000 * i // 70 for i in range(70)), *range(1000, 10_000, 1000), 9500]
EVEN_MS = [100 * i for i in range(20)]


def record(path, times_ms, codec="libx264", pix_fmt="yuv420p", last_ms=None, shift_ms=0, **options):
    """A video whose frame i is of brightness 3 * i, shown at times_ms[i]."""
    container_options = {"avoid_negative_ts": "disabled"} if shift_ms else {}
    with av.open(os.fspath(path), "w", options=container_options) as container:
        stream = container.add_stream(codec, rate=25, options={"threads": "1", **options})
        stream.height, stream.width, stream.pix_fmt = 32, 64, pix_fmt
        stream.codec_context.time_base = Fraction(1, 1000)
        packets = []
        for number, time in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(np.full((32, 64, 3), 3 * number % 256, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            packets += stream.encode(frame)
        packets += stream.encode()
        if last_ms:
            packets[-1].duration = int(Fraction(last_ms, 1000) / packets[-1].time_base)
        for packet in packets:
            packet.pts, packet.dts = (
                int(t - Fraction(shift_ms, 1000) / packet.time_base) for t in (packet.pts, packet.dts)
            )
            container.mux(packet)
    return path


def seconds(times_ms):
    return [(time - times_ms[0]) / 1000 for time in times_ms]


WRITERS = {
    "h264.mp4": {},
    "no_b.mp4": {"bf": "0"},
    "h264.mkv": {},
    "stream.ts": {},
    "vp9.webm": {"codec": "libvpx-vp9", "deadline": "realtime"},
    "mjpeg.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "animation.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "flash.flv": {"codec": "flv"},
    "windows.asf": {"codec": "wmv2"},
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("begin_ms", [0, 5000])
def test_an_uneven_clip_has_the_times_at_which_it_was_written_from_its_first_frame_on(name, begin_ms, tmp_path):
    path = record(tmp_path / name, [begin_ms + time for time in BURST_MS], **WRITERS[name])
    shape = read_video_shape(path)
    assert shape.num_frames == len(BURST_MS)
    unit = 0.01 if name == "animation.gif" else 0.001  # hundredths of a second are all that GIF has
    assert shape.times_s == pytest.approx(seconds(BURST_MS), abs=unit)
    assert 9.5 < shape.num_frames / shape.fps <= 10  # up to the end of the last frame, which not every container tells


@pytest.mark.parametrize("name", WRITERS)
def test_a_clip_of_even_pace_has_no_times_whatever_its_header_says_of_its_rate(name, tmp_path):
    shape = read_video_shape(
        record(tmp_path / name, EVEN_MS, **WRITERS[name])
    )  # many headers say 25, the encoder's rate
    assert shape.times_s is None
    assert [shape.compute_frame_time_s(i) for i in range(20)] == pytest.approx(seconds(EVEN_MS), abs=0.05)


def test_a_shaky_clip_within_half_a_frame_is_an_even_one():
    shaky = [100 * i + (20 if i % 3 else -20) for i in range(1, 41)]
    assert compute_pace(shaky, 100, Fraction(1, 1000), 10.0) == FramePace(10.0, None)
    late = [100 * i + (60 if i == 20 else 0) for i in range(40)]
    fps, times_s = compute_pace(late, 100, Fraction(1, 1000), 10.0)
    assert (fps, times_s[20]) == (10.0, 2.06)


def test_a_last_frame_that_stays_is_part_of_how_long_the_clip_lasts(tmp_path):
    shape = read_video_shape(record(tmp_path / "held.mp4", EVEN_MS, last_ms=5000, bf="0"))
    assert shape.times_s == pytest.approx(seconds(EVEN_MS), abs=1e-3)
    assert shape.num_frames / shape.fps == pytest.approx(1.9 + 5.0, abs=1e-3)


def test_a_last_frame_that_is_cut_short_leaves_a_clip_even():
    assert compute_pace(range(0, 400, 10), 1, Fraction(1, 100), 10.0) == FramePace(10.0, None)
    assert compute_pace(range(0, 400, 10), 1, Fraction(1, 100), 40 / 3.91) == FramePace(
        10.0, None
    )  # the header's counts it in


def test_frames_that_an_edit_list_hides_take_no_time(tmp_path):
    """What comes before the second 1 is hidden: the first frame shown is that of the second 1."""
    path = record(tmp_path / "edited.mp4", BURST_MS, bf="0", shift_ms=1000)
    shape = read_video_shape(path)
    assert shape.times_s is not None
    hidden = len(BURST_MS) - shape.num_frames
    assert BURST_MS[hidden] >= 1000
    assert shape.times_s == pytest.approx(seconds(BURST_MS[hidden:]), abs=1e-3)
    assert read_frames(path, [0]).mean() == pytest.approx(3 * hidden, abs=8)  # as far as the coding keeps it


def test_the_delays_of_a_gif_are_its_times(tmp_path):
    pictures = [Image.new("L", (40, 30), 40 * i) for i in range(6)]
    path = tmp_path / "delays.gif"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[100, 200, 1000, 3000, 50, 4000])
    shape = read_video_shape(path)
    assert shape.times_s == pytest.approx([0.0, 0.1, 0.3, 1.3, 4.3, 4.35])
    assert shape.num_frames / shape.fps == pytest.approx(8.35)


def flv_with_times(times_ms):
    """An FLV file of these times, each packet's own: written evenly, then patched."""
    data = io.BytesIO()
    with av.open(data, "w", format="flv") as container:
        stream = container.add_stream("flv", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 64, "yuv420p"
        for number in range(len(times_ms)):
            picture = np.full((32, 64, 3), 6 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    patched, at, times = bytearray(data.getvalue()), 13, iter(times_ms)
    while at < len(patched):
        if patched[at] == 9:  # a tag of video; its time stands in the bytes 4 to 6
            patched[at + 4 : at + 7] = next(times).to_bytes(3, "big")
        at += 15 + int.from_bytes(patched[at + 1 : at + 4], "big")
    return bytes(patched)


@pytest.mark.parametrize("odd", [1900, 1750])  # as the frame before, and before that one
def test_a_time_that_repeats_or_steps_back_keeps_the_order_of_the_frames(odd):
    times_ms = [100 * i for i in range(40)]
    times_ms[20] = odd
    clip = flv_with_times(times_ms)
    shape = read_video_shape(clip)
    assert shape.times_s == pytest.approx([1.9 if i == 20 else i / 10 for i in range(40)])
    brightness = read_frames(clip, range(40)).mean(axis=(1, 2, 3))
    assert np.all(np.diff(brightness) > 2)


def test_a_reader_in_a_process_of_its_own_and_a_data_worker_get_the_same_times(tmp_path):
    path = record(tmp_path / "burst.mp4", BURST_MS)
    shape = read_video_shape(path)
    assert VideoReader().read_shape(path) == shape
    copied = pickle.loads(pickle.dumps(shape))
    assert (copied, hash(copied)) == (shape, hash(shape))
    assert read_visual_shape(Visual("video", path, note="seen")).times_s == shape.times_s


def test_an_uneven_clip_is_shown_and_told_at_its_true_times(tmp_path):
    shape = read_video_shape(record(tmp_path / "burst.mkv", BURST_MS))

    def built(name, **settings):
        wired = {"view_px": Size(4, 4), "grid": Size(2, 2), "spatial": True, "squash": True}
        return tokenizers.build({"name": name, **settings}, **wired, pooling=poolings.build("none"))

    spread = built("frames", max_frames=8, tell_times="seconds").plan(shape)
    assert [view.frame for view in spread.views] == [0, 70, 71, 73, 74, 75, 77, 79]
    assert "located at 0.00s,1.00s,2.00s,4.00s,5.00s,6.00s,8.00s,9.50s." in spread.inline_texts[0][1]
    stamped = built("stamped_frames", max_frames=32, fps=1.0).plan(shape)
    assert [view.frame for view in stamped.views] == [0, *range(70, 79)]
    assert [text for _, text in stamped.inline_texts] == [f"{second}.00s: " for second in range(10)]


def test_people_are_shown_the_true_times(tmp_path):
    path = record(tmp_path / "burst.mkv", BURST_MS)
    shape, view = read_video_shape(path), View(79, *[Size(4, 4)] * 3, Box(0, 0, 4, 4))
    shown = InspectedVisual(Visual("video", path), shape, RoutedPlan("video", VisualPlan((view,), 4)))
    assert shown.frames == ((79, 9.5),)
    assert shown.frame_rate.endswith(" per second on average")
