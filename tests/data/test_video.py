"""Clips whose frames say their own number in bars: the asked frames come back, or an error that names the file."""

import base64
import importlib.util
import os
import subprocess
import sys
import textwrap
from fractions import Fraction

import av
import numpy as np
import pytest

from mmblocks.data.video import read_frames, read_video_shape
from mmblocks.errors import DataError
from mmblocks.shapes import Size, VisualShape

HAS_DECORD = importlib.util.find_spec("decord") is not None
READERS = ["pyav", "decord"] if HAS_DECORD else ["pyav"]
SIZE = Size(32, 64)
BITS = 6


def numbered(number, size=SIZE):
    """An image of six bars, bright for each bit that is set, below a lighter top that shows what is up."""
    picture = np.empty((*size, 3), dtype=np.uint8)
    for bit in range(BITS):
        picture[:, bit * size.width // BITS : (bit + 1) * size.width // BITS] = 200 if number >> bit & 1 else 40
    picture[: size.height // 4] = 255
    return picture


def number_of(picture):
    height, width, _ = picture.shape
    row = picture[height * 5 // 8, :, 1]
    return sum(1 << bit for bit in range(BITS) if row[int((bit + 0.5) * width / BITS)] > 120)


def numbers_of(pictures):
    return [number_of(picture) for picture in pictures]


def record(path, codec="libx264", frames=40, size=SIZE, pix_fmt="yuv420p", fps=10, times_ms=None, degrees=0, **options):
    """Write a numbered video and give back its path."""
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options={"threads": "1", **options})
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        if degrees:
            stream.set_display_rotation(degrees)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered(number, size), format="rgb24")
            if times_ms:
                frame.pts, frame.time_base = times_ms[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def remuxed(source, path, change=lambda number, data: data, **options):
    """The same packets in another file, each passed through `change`."""
    with av.open(os.fspath(source)) as reading, av.open(os.fspath(path), "w", options=options) as writing:
        stream = writing.add_stream_from_template(reading.streams.video[0])
        packets = (packet for packet in reading.demux(video=0) if packet.size)
        for number, old in enumerate(packets):
            new = av.Packet(change(number, bytes(old)))
            new.pts, new.dts, new.time_base = old.pts, old.dts, old.time_base
            new.is_keyframe, new.stream = old.is_keyframe, stream
            writing.mux(new)
    return path


def sound(path):
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def mp4(tmp_path_factory):
    return record(tmp_path_factory.mktemp("clips") / "closed.mp4", g="10")


@pytest.fixture(scope="module")
def fast_mp4(mp4):
    """Its header first, so that a cut file can still be opened."""
    return remuxed(mp4, mp4.with_name("fast.mp4"), movflags="faststart")


# --- frames are the asked ones

CLIPS = {
    "h264.mp4": {"g": "10"},
    "h264.mkv": {"g": "10"},
    "b_frames.mov": {"g": "10", "bf": "3"},
    "all_keys.mp4": {"g": "1"},
    "open_groups.mp4": {"g": "10", "x264-params": "open-gop=1:bframes=3:scenecut=0"},
    "recovery_points.mp4": {"g": "20", "x264-params": "open-gop=1:bframes=7:b-pyramid=normal:b-adapt=0"},
    "hevc.mp4": {"codec": "libx265", "x265-params": "keyint=10:bframes=4:log-level=none:pools=1:frame-threads=1"},
    "vp9.webm": {"codec": "libvpx-vp9", "g": "10", "deadline": "realtime"},
    "vp8.webm": {"codec": "libvpx", "g": "10", "deadline": "realtime"},
    "mpeg4.mp4": {"codec": "mpeg4", "g": "10", "bf": "2"},
    "mpeg4.avi": {"codec": "mpeg4", "g": "10", "bf": "2"},
    "h264.avi": {"g": "10", "bf": "3"},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "stream.ts": {"g": "10"},
    "bare.h264": {"g": "10"},
    "animation.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "flash.flv": {"codec": "flv", "g": "10"},
    "windows.asf": {"codec": "wmv2", "g": "10"},
    "program.mpg": {"codec": "mpeg2video", "g": "10", "bf": "2", "fps": 25},
    "444.mp4": {"pix_fmt": "yuv444p", "g": "10"},
    "late_and_uneven.mp4": {"times_ms": [5000 + 40 * i + i * i for i in range(40)], "fps": 25, "g": "10"},
}


@pytest.mark.parametrize("name", CLIPS)
def test_the_asked_frames_come_back_in_the_asked_order(name, tmp_path):
    path = record(tmp_path / name, **CLIPS[name])
    shape = read_video_shape(path)
    assert (shape.kind, shape.size, shape.num_frames) == ("video", SIZE, 40)
    for asked in ([0, 39], [39], [7, 8, 9, 10, 11], [25, 3, 3, 38, 0], range(40)):
        assert numbers_of(read_frames(path, list(asked))) == list(asked)
        assert numbers_of(read_frames(path, list(asked), reader="pyav")) == list(asked)


TRUSTED = [
    "h264.mp4",
    "h264.mkv",
    "b_frames.mov",
    "all_keys.mp4",
    "vp9.webm",
    "vp8.webm",
    "444.mp4",
    "late_and_uneven.mp4",
]


@pytest.mark.parametrize("name", TRUSTED if HAS_DECORD else [])
def test_decord_and_pyav_give_the_same_bytes_count_and_rate(name, tmp_path):
    import decord

    path = record(tmp_path / name, **CLIPS[name])
    asked = [0, 5, 17, 22, 39]
    np.testing.assert_array_equal(read_frames(path, asked, reader="decord"), read_frames(path, asked, reader="pyav"))
    reader = decord.VideoReader(os.fspath(path), num_threads=1)
    shape = read_video_shape(path)
    assert shape.num_frames == len(reader)
    if shape.times_s is None:
        assert shape.fps == pytest.approx(reader.get_avg_fps(), rel=1e-6)
    else:  # the header's rate, which decord repeats, is that of decoding; test_video_times.py has the true one
        assert name == "late_and_uneven.mp4"


@pytest.mark.parametrize("name", ["open_groups.mp4", "recovery_points.mp4", "hevc.mp4", "h264.avi", "stream.ts"])
def test_clips_that_decord_gets_wrong_are_not_given_to_it(name, tmp_path):
    path = record(tmp_path / name, **CLIPS[name])
    with pytest.raises(DataError, match=rf"{name}: decord cannot read this video \(.*\); use reader='pyav'"):
        read_frames(path, [0], reader="decord")


def test_an_odd_sized_clip_keeps_its_size(tmp_path):
    path = record(tmp_path / "odd.webm", "libvpx-vp9", size=Size(33, 67), deadline="realtime")
    assert read_video_shape(path).size == Size(33, 67)
    for reader in READERS:
        assert numbers_of(read_frames(path, [3, 30], reader=reader)) == [3, 30]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("degrees", "up_is"), [(90, "left"), (-90, "right"), (180, "bottom")])
def test_a_rotated_clip_is_turned_upright_and_planned_so(degrees, up_is, reader, tmp_path):
    path = record(tmp_path / "phone.mp4", degrees=degrees, frames=4)
    size = SIZE if degrees == 180 else Size(SIZE.width, SIZE.height)
    assert read_video_shape(path).size == size
    frame = read_frames(path, [0], reader=reader)[0]
    assert frame.shape == (*size, 3)
    edges = {"left": frame[:, :4], "right": frame[:, -4:], "top": frame[:4], "bottom": frame[-4:]}
    assert max(edges, key=lambda edge: edges[edge].mean()) == up_is


def test_the_rate_is_the_average_of_a_clip_of_uneven_times(tmp_path):
    path = record(tmp_path / "uneven.mp4", times_ms=[0, 100, 200, 1000, 1100], frames=5, fps=25, bf="0")
    assert 1.1 < 5 / read_video_shape(path).fps < 1.2  # seconds; how long the last frame lasts is the writer's guess


def test_a_clip_of_one_frame_is_a_clip(tmp_path):
    path = record(tmp_path / "one.mp4", frames=1)
    assert read_video_shape(path).num_frames == 1
    assert numbers_of(read_frames(path, [0, 0, 0])) == [0, 0, 0]


def test_frames_that_only_other_frames_refer_to_are_not_counted(tmp_path):
    whole = record(tmp_path / "whole.webm", "libvpx", g="10", deadline="realtime")
    hidden = remuxed(
        whole, tmp_path / "hidden.webm", lambda i, data: bytes([data[0] & ~0x10]) + data[1:] if i == 3 else data
    )
    assert read_video_shape(hidden).num_frames == 39
    assert numbers_of(read_frames(hidden, [2, 3, 38])) == [2, 4, 39]


def test_frames_before_the_first_key_frame_are_not_counted(tmp_path):
    def without_first(packets):
        return (packet for number, packet in enumerate(packets) if number >= 4)

    whole = record(tmp_path / "whole.ts", g="10", bf="0", sc_threshold="0")
    late = tmp_path / "late.ts"
    with av.open(os.fspath(whole)) as reading, av.open(os.fspath(late), "w") as writing:
        stream = writing.add_stream_from_template(reading.streams.video[0])
        for packet in without_first(p for p in reading.demux(video=0) if p.size):
            packet.stream = stream
            writing.mux(packet)
    assert read_video_shape(late).num_frames == 30
    assert numbers_of(read_frames(late, [0, 29])) == [10, 39]


def test_a_group_of_pictures_costs_no_other_one(tmp_path, monkeypatch):
    """mp4 and Matroska are told the time at which a key frame is shown; an earlier one costs a group more."""
    import mmblocks.data.video.with_pyav as reading

    decoded, seen = reading.decode_frames, []
    monkeypatch.setattr(reading, "decode_frames", lambda *of: (seen.append(frame) or frame for frame in decoded(*of)))
    for name in ("b_frames.mp4", "b_frames.mkv"):
        path = record(tmp_path / name, g="10", bf="3", sc_threshold="0")
        assert numbers_of(read_frames(path, [20, 30])) == [20, 30]
        assert len(seen) == 2
        seen.clear()


def test_frames_of_packed_xvid_come_in_the_order_in_which_they_are_shown(tmp_path):
    """Xvid's habit in AVI: a frame and the one shown before it in one packet, and a placeholder in the next."""
    plain = record(tmp_path / "plain.avi", "mpeg4", frames=20, g="10", bf="1")
    packed, placeholder = tmp_path / "packed.avi", bytes.fromhex("000001b6513f")
    with av.open(os.fspath(plain)) as reading, av.open(os.fspath(packed), "w") as writing:
        stream = writing.add_stream_from_template(reading.streams.video[0])
        packets = [packet for packet in reading.demux(video=0) if packet.size]
        contents = [b"\0\0\1\xb2DivX503b1393p\0" + bytes(packets[0])]
        for old, before in zip(packets[1::2], packets[2::2], strict=False):
            contents += [bytes(old) + bytes(before), placeholder]
        for number, content in enumerate(contents):
            packet = av.Packet(content)
            packet.pts = packet.dts = number
            packet.time_base, packet.is_keyframe, packet.stream = Fraction(1, 10), number == 0, stream
            writing.mux(packet)
    count = read_video_shape(packed).num_frames
    assert numbers_of(read_frames(packed, range(count))) == list(range(count))
    assert count >= 10


# --- other sources


def test_bytes_and_data_uris_are_clips_too(mp4):
    data = mp4.read_bytes()
    uri = "data:video/mp4;base64," + base64.b64encode(data).decode()
    for source in (data, uri, os.fspath(mp4)):
        assert read_video_shape(source) == VisualShape("video", SIZE, 40, 10.0)
        for reader in READERS:
            assert numbers_of(read_frames(source, [5, 30], reader=reader)) == [5, 30]


def test_a_relative_path_is_a_path(mp4, monkeypatch):
    monkeypatch.chdir(mp4.parent)
    assert numbers_of(read_frames(mp4.name, [12])) == [12]


def test_an_array_is_a_clip_in_memory():
    clip = np.stack([numbered(i) for i in range(5)])
    assert read_video_shape(clip) == VisualShape("video", SIZE, 5, 1.0)
    frames = read_frames(clip, [4, 0, 4])
    assert numbers_of(frames) == [4, 0, 4]
    assert not np.shares_memory(frames, clip)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((5, 8, 8), np.uint8), ((5, 8, 8, 4), np.uint8), ((5, 8, 8, 3), np.float32), ((0, 8, 8, 3), np.uint8)],
)
def test_an_array_of_another_shape_is_refused(shape, dtype):
    with pytest.raises(
        DataError, match=r"video array: .* a video in memory is uint8 of shape \(frames, height, width, 3\)"
    ):
        read_video_shape(np.zeros(shape, dtype))


@pytest.mark.parametrize("source", [None, 3, ["a.mp4"]])
def test_what_is_no_source_at_all_is_told_what_is(source):
    with pytest.raises(DataError, match="pass a path, bytes, a data: URI or a uint8 array"):
        read_video_shape(source)


@pytest.mark.parametrize("index", [-1, 40])
def test_a_frame_that_is_not_there_is_refused(index, mp4):
    with pytest.raises(DataError, match=rf"closed\.mp4: frame {index} was asked for, but the video has 40"):
        read_frames(mp4, [0, index])


def test_no_frames_asked_no_frames_given(mp4):
    assert read_frames(mp4, []).shape == (0, *SIZE, 3)


def test_an_unknown_reader_names_the_known_ones(mp4):
    with pytest.raises(DataError, match="reader is 'opencv'; write one of auto, decord, pyav"):
        read_frames(mp4, [0], reader="opencv")


# --- what is no video, or half of one


def both_refuse(path, wrong):
    with pytest.raises(DataError, match=rf"{path.name}: .*{wrong}"):
        read_video_shape(path)
    for reader in ("auto", *READERS):
        with pytest.raises(DataError, match=rf"{path.name}: .*{wrong}"):
            read_frames(path, [0], reader=reader)


@pytest.mark.parametrize(
    ("data", "wrong"),
    [
        (b"", r"empty \(zero bytes\)"),
        (b"hello, this is no video\n" * 20, "not a video"),
        (bytes(range(256)) * 40, "not a video"),
        (b"\x89PNG\r\n\x1a\n" + bytes(60), "not a video"),
    ],
)
def test_a_file_that_is_no_clip_is_named(data, wrong, tmp_path):
    path = tmp_path / "party.mp4"
    path.write_bytes(data)
    both_refuse(path, wrong)


def test_a_missing_clip_is_named(tmp_path):
    both_refuse(tmp_path / "nowhere.mp4", "there is no such file")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/a.mp4", "file:/etc/hosts", "rtsp://127.0.0.1/", "concat:a.mp4|b.mp4"]
)
def test_urls_and_protocols_of_ffmpeg_are_not_opened(url):
    with pytest.raises(DataError, match=r"opens no URLs|there is no such file"):
        read_video_shape(url)


@pytest.mark.parametrize(
    "playlist",
    ["#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:4,\n{clip}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile {clip}\n"],
)
def test_a_playlist_does_not_make_us_open_what_it_names(playlist, mp4, tmp_path):
    path = tmp_path / "list.m3u8"
    path.write_text(playlist.format(clip=mp4))
    both_refuse(path, "not a video")


def test_sound_alone_is_refused(tmp_path):
    both_refuse(sound(tmp_path / "song.mp4"), "there is no video stream, only audio; pass a video with an image")


def test_a_clip_without_frames_is_refused(tmp_path):
    path = tmp_path / "nothing.avi"
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    both_refuse(path, "the video has no frames")


def test_a_clip_whose_header_stood_behind_the_cut_is_refused(mp4, tmp_path):
    path = tmp_path / "cut.mp4"
    path.write_bytes(mp4.read_bytes()[:-400])
    both_refuse(path, "not a video, or its end is missing")


def test_a_cut_clip_is_refused_with_the_frame_where_it_breaks_off(fast_mp4, tmp_path):
    path = tmp_path / "cut.mp4"
    path.write_bytes(fast_mp4.read_bytes()[:-700])
    both_refuse(path, r"cut off or damaged at frame \d+")


def test_a_clip_cut_between_two_frames_is_refused_too(fast_mp4, tmp_path):
    with av.open(os.fspath(fast_mp4)) as container:
        end = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size][24]
    path = tmp_path / "cut.mp4"
    path.write_bytes(fast_mp4.read_bytes()[:end])
    both_refuse(path, "cut off, its header promises 40 frames and 25 are there")


def test_a_cut_matroska_has_the_frames_that_are_left(tmp_path):
    path = record(tmp_path / "cut.mkv", g="10", bf="0")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    left = read_video_shape(path).num_frames
    assert 1 < left < 40
    assert numbers_of(read_frames(path, [0, left - 1])) == [0, left - 1]


def test_a_damaged_packet_is_refused_with_its_frame(tmp_path):
    whole = record(tmp_path / "whole.mp4", "mjpeg", pix_fmt="yuvj420p")
    damaged = remuxed(whole, tmp_path / "damaged.mp4", lambda i, data: bytes(len(data)) if i == 21 else data)
    assert numbers_of(read_frames(damaged, [5, 30])) == [5, 30]
    with pytest.raises(DataError, match=r"damaged\.mp4: .*frame 21"):
        read_frames(damaged, [5, 21, 30])


def test_a_coding_that_nobody_knows_is_refused(mp4, tmp_path):
    path = tmp_path / "exotic.mp4"
    path.write_bytes(mp4.read_bytes().replace(b"avc1", b"zzz1"))
    both_refuse(path, "coding that cannot be decoded; re-encode it|not a video")


def test_a_clip_that_changes_its_size_is_refused(tmp_path):
    both = tmp_path / "both.h264"
    parts = [record(tmp_path / f"{size}.h264", frames=5, size=size, bf="0") for size in (Size(32, 64), Size(64, 64))]
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert read_video_shape(both).num_frames == 10
    with pytest.raises(DataError, match=r"both\.h264: frame 5 is 64x64, frame 0 is 32x64"):
        read_frames(both, range(10))


# --- good manners


def test_nothing_is_printed_and_nothing_stays_open(mp4, fast_mp4, tmp_path):
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(fast_mp4.read_bytes()[:-700])
    program = """
        import os, sys, warnings
        warnings.simplefilter("error")
        from mmblocks.data.video import read_frames, read_video_shape
        from mmblocks.errors import DataError
        def use(path):
            try:
                read_video_shape(path), read_frames(path, [0, 30])
            except DataError:
                pass
        for path in sys.argv[1:]:
            use(path)
        before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        for path in sys.argv[1:] * 3:
            use(path)
        after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        assert after == before, (before, after)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), os.fspath(mp4), os.fspath(cut)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
