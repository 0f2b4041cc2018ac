"""One flipped byte in a video: what the decoder notices is refused by name and time, and sound videos are all read.

The videos are kept as files, since encoders differ in their bytes. Without the checks every flip below shows another
image in place of a frame, without a word.
"""

import os
from pathlib import Path

import av
import numpy as np
import pytest

from mmblocks.data.video import read_frames, read_video_shape
from mmblocks.data.video.gif import find_gif_fault
from mmblocks.errors import DataError

CLIPS = Path(__file__).parent / "clips"

# Where a byte is changed, by what it is changed (exclusive or), a frame to ask for, and the frame that is damaged.
FLIPS = {
    "h264.mp4": [
        (900, 183, 0, 0),
        (1067, 17, 0, 0),
        (888, 159, 4, 0),
        (2339, 254, 9, 9),
        (2455, 110, 9, 9),
        (2584, 2, 9, 9),
        (4333, 100, 19, 19),
        (4203, 214, 19, 19),
    ],
    "mpeg4.mp4": [(3942, 152, 9, 5), (6105, 235, 9, 8), (8960, 34, 19, 11), (14150, 39, 19, 18)],
    "vp9.webm": [(4387, 152, 9, 7), (9485, 34, 19, 17), (10477, 122, 19, 19), (2935, 60, 4, 4)],
    "wmv2.asf": [(7602, 152, 9, 8), (3821, 95, 4, 3), (13519, 161, 19, 14), (1088, 156, 0, 0)],
    "moving.gif": [(15593, 161, 5, 5), (2207, 156, 0, 0), (7738, 50, 5, 2), (12837, 190, 5, 4)],
}


def flipped(name, at, by, folder):
    data = bytearray((CLIPS / name).read_bytes())
    data[at] ^= by
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("name", "flip"), [(name, flip) for name, flips in FLIPS.items() for flip in flips])
def test_a_frame_behind_a_flipped_byte_is_refused_with_name_time_and_cure(name, flip, tmp_path):
    at, by, asked, damaged = flip
    path = flipped(name, at, by, tmp_path)
    with pytest.raises(DataError, match=rf"{name}: .*damaged at frame {damaged} \({damaged / 10:.2f} s\).*; fetch the"):
        read_frames(path, [asked])


KEY_FRAMES = {"h264.mp4": (0, 9, 19, 20), "mpeg4.mp4": (0, 10, 20), "vp9.webm": (0, 10, 20), "wmv2.asf": (0, 10, 20)}


@pytest.mark.parametrize("name", KEY_FRAMES)
def test_frames_that_are_not_decoded_from_the_damage_are_given(name, tmp_path):
    whole = read_frames(CLIPS / name, range(20))
    for at, by, _, damaged in FLIPS[name]:
        begin = max(key for key in KEY_FRAMES[name] if key <= damaged)
        end = min(key for key in KEY_FRAMES[name] if key > damaged)
        sound = [*range(begin), *range(end, 20)]
        np.testing.assert_array_equal(read_frames(flipped(name, at, by, tmp_path), sound), whole[sound])


def test_the_frame_that_was_asked_for_is_named_too_where_another_one_is_damaged(tmp_path):
    path = flipped("mpeg4.mp4", *FLIPS["mpeg4.mp4"][0][:2], tmp_path)
    with pytest.raises(DataError, match=r"damaged at frame 5 \(0\.50 s\), which frame 9 is decoded from"):
        read_frames(path, [9])


# --- GIF


def test_every_cut_of_a_gif_is_refused_or_leaves_whole_frames_only(tmp_path):
    data = (CLIPS / "moving.gif").read_bytes()
    whole = read_frames(data, range(6))
    refused = 0
    for end in (*range(1000, len(data), 641), len(data) - 3, len(data) - 2, len(data) - 1):
        path = tmp_path / "cut.gif"
        path.write_bytes(data[:end])
        try:
            left = read_frames(path, range(read_video_shape(path).num_frames))
        except DataError:
            refused += 1
        else:
            np.testing.assert_array_equal(left, whole[: len(left)])
    assert refused >= 24


def gif_of(width, height, codes, bits=2):
    """A packet with one image, its LZW codes given with their widths."""
    number, at = 0, 0
    for code, width_bits in codes:
        number, at = number | code << at, at + width_bits
    data = number.to_bytes((at + 7) // 8, "little")
    size = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    return b"\x2c\0\0\0\0" + size + b"\0" + bytes([bits, len(data)]) + data + b"\0"


# Appendix F of the standard, worked by hand for two bits: clear is 4, end is 5, the first entry is 6 and stands for two.
WHOLE = [(4, 3), (1, 3), (6, 3), (6, 3), (5, 4)]


@pytest.mark.parametrize(
    ("codes", "width", "fault"),
    [
        (WHOLE, 5, None),
        (WHOLE, 6, "does not come to 6 pixels"),
        (WHOLE, 4, "does not come to 4 pixels"),
        (WHOLE[:-1], 5, None),  # no end code: nothing is missing
        ([(4, 3), (7, 3), (5, 3)], 2, "does not come to 2 pixels"),  # an entry that is not made yet
        ([(4, 3), (1, 3), (4, 3), (2, 3), (5, 3)], 2, None),  # the table is cleared in between
    ],
)
def test_the_codes_of_a_gif_are_counted_as_its_standard_says(codes, width, fault):
    found = find_gif_fault(gif_of(width, 1, codes))
    assert found is None if fault is None else fault in found


def test_pictures_by_another_writer_of_gif_are_whole(tmp_path):
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (3, 90, 110, 3), dtype=np.uint8)
    first, *rest = [Image.fromarray(picture) for picture in noise]
    first.save(tmp_path / "noise.gif", save_all=True, append_images=rest, duration=100)
    assert read_frames(tmp_path / "noise.gif", range(3)).shape == noise.shape


# --- sound videos that stricter checks refuse


def test_a_faulty_message_beside_sound_pictures_is_no_damage(tmp_path):
    """A supplemental message (SEI) that claims more bytes than it has, in front of every image."""
    message = bytes([6, 4, 200, 1, 2, 3])
    path = tmp_path / "message.mp4"
    with av.open(os.fspath(CLIPS / "h264.mp4")) as reading, av.open(os.fspath(path), "w") as writing:
        stream = writing.add_stream_from_template(reading.streams.video[0])
        for old in reading.demux(video=0):
            if old.size:
                new = av.Packet(len(message).to_bytes(4, "big") + message + bytes(old))
                new.pts, new.dts, new.time_base = old.pts, old.dts, old.time_base
                new.duration, new.is_keyframe, new.stream = old.duration, old.is_keyframe, stream
                writing.mux(new)
    np.testing.assert_array_equal(read_frames(path, range(20)), read_frames(CLIPS / "h264.mp4", range(20)))


def test_stuffing_at_a_constant_bit_rate_is_no_damage(tmp_path):
    path = tmp_path / "constant.mpg"
    rate = {"b": "600k", "minrate": "600k", "maxrate": "600k", "bufsize": "327k"}
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream("mpeg1video", rate=25, options=rate)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for number in range(12):
            picture = np.full((48, 64, 3), 20 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    brightness = read_frames(path, range(12)).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(brightness, 20 * np.arange(12), atol=3)  # 8 bits of luma in the range 16 to 235
