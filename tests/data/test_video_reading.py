"""What reading a video costs: files opened, parts sought, frames decoded and converted, all counted."""

import os
from collections import Counter
from contextlib import contextmanager

import av
import numpy as np
import pytest
from av.video.frame import PictureType

import mmblocks.data.video.index as indexing
import mmblocks.data.video.with_pyav as reading
from mmblocks.data.video import count_decoding_threads, read_frames, read_video_shape
from mmblocks.errors import DataError
from mmblocks.shapes import Size
from tests.data.test_video import CLIPS, numbers_of, record, remuxed


class CountingContainer:
    """A container that counts how often it is sought in."""

    def __init__(self, container, counts):
        self._container, self._counts = container, counts

    def __getattr__(self, name):
        return getattr(self._container, name)

    def seek(self, *args, **options):
        self._counts["seeks"] += 1
        return self._container.seek(*args, **options)


@pytest.fixture
def counts(monkeypatch):
    """How often videos are opened and sought in, and how many frames are decoded and converted, while frames are read."""
    counted = Counter()
    open_video, decode_frames, to_upright = indexing.open_video, reading.decode_frames, reading.to_upright

    @contextmanager
    def open_counted(*args, **options):
        counted["opens"] += 1
        with open_video(*args, **options) as (container, stream):
            yield CountingContainer(container, counted), stream

    def decode_counted(*args):
        for frame in decode_frames(*args):
            counted["decoded"] += 1
            yield frame

    def convert_counted(*args):
        counted["converted"] += 1
        return to_upright(*args)

    monkeypatch.setattr(indexing, "open_video", open_counted)
    monkeypatch.setattr(reading, "open_video", open_counted)
    monkeypatch.setattr(reading, "decode_frames", decode_counted)
    monkeypatch.setattr(reading, "to_upright", convert_counted)
    return counted


def settle(path, age_s=60):
    """As if the file had been written a while ago."""
    os.utime(path, (path.stat().st_mtime - age_s,) * 2)
    return path


def test_a_video_is_opened_once_for_index_and_frames(tmp_path, counts):
    path = record(tmp_path / "new.mp4", g="10")
    read_frames(path, [0, 15, 39], threads=1)
    assert counts["opens"] == 1


def test_after_its_shape_a_video_is_opened_for_its_frames_alone(tmp_path, counts):
    path = settle(record(tmp_path / "old.mp4", g="10"))
    read_video_shape(path)
    assert numbers_of(read_frames(path, [0, 15, 39], threads=1)) == [0, 15, 39]
    read_video_shape(path)
    assert counts["opens"] == 2


def test_a_file_that_changed_is_another_video(tmp_path):
    path = settle(record(tmp_path / "video.mp4", g="10"))
    assert read_video_shape(path).num_frames == 40
    record(path, frames=12, size=Size(64, 64))
    assert read_video_shape(path).num_frames == 12
    settle(path, age_s=30)
    assert read_frames(path, [11]).shape == (1, 64, 64, 3)


def test_wanted_frames_alone_are_converted(tmp_path, counts):
    path = record(tmp_path / "video.mp4", g="10")
    read_frames(path, [3, 3, 8, 27, 39, 0], threads=1)
    assert counts["converted"] == 5


@pytest.mark.parametrize(("gap", "seeks"), [(10, 1), (100, 4)])
def test_near_groups_are_read_on_to_and_far_ones_are_sought(gap, seeks, tmp_path, counts):
    path = record(tmp_path / "video.mp4", frames=4 * gap, g=f"{gap}", bf="0", sc_threshold="0")
    read_frames(path, [gap * i + 2 for i in range(4)], threads=1)
    assert counts["seeks"] == seeks
    assert counts["decoded"] == 4 * 3


@pytest.mark.parametrize("name", ["video.mp4", "video.mkv"])
def test_frames_that_no_other_one_needs_are_not_decoded(name, tmp_path, counts):
    path = record(tmp_path / name, g="40", **{"x264-params": "bframes=3:b-pyramid=none:b-adapt=0:scenecut=0"})
    with av.open(os.fspath(path)) as container:
        skipped = sum(frame.pict_type == PictureType.B for frame in container.decode(video=0)) - 1
    assert skipped > 20
    assert numbers_of(read_frames(path, [2, 39], threads=1)) == [2, 39]
    assert counts["decoded"] == 40 - skipped


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("movflags", ["faststart", "frag_keyframe+empty_moov"])
@pytest.mark.parametrize("degrees", [0, 90])
def test_an_mp4_is_what_its_packets_are_in_a_file_that_is_decoded_to_be_known(codec, movflags, degrees, tmp_path):
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    whole = record(tmp_path / "whole.mp4", codec, g="10", degrees=degrees, bf="3", **options)
    mp4, mkv = remuxed(whole, tmp_path / "again.mp4", movflags=movflags), remuxed(whole, tmp_path / "again.mkv")
    wanted = [0, 3, 15, 39]
    assert read_video_shape(mp4).size == read_video_shape(mkv).size == read_video_shape(whole).size
    assert read_video_shape(mp4).num_frames == read_video_shape(mkv).num_frames == 40
    assert np.array_equal(read_frames(mp4, wanted), read_frames(mkv, wanted))
    assert np.array_equal(read_frames(mp4, wanted), read_frames(whole, wanted))


def test_a_damaged_frame_that_no_other_one_needs_is_refused_where_it_is_wanted(tmp_path):
    whole = record(tmp_path / "whole.mp4", g="40", **{"x264-params": "bframes=3:b-pyramid=none:b-adapt=0:scenecut=0"})

    def damage(number, data):
        return data[:5] + bytes(byte ^ 255 for byte in data[5:]) if number == 3 else data

    damaged = remuxed(whole, tmp_path / "damaged.mp4", damage)
    assert numbers_of(read_frames(damaged, [0, 20])) == [0, 20]
    with pytest.raises(DataError, match=r"damaged\.mp4: damaged at frame 2 \("):
        read_frames(damaged, [2])


@pytest.mark.parametrize("threads", [2, 4, 9])
@pytest.mark.parametrize(
    "name", ["h264.mp4", "open_groups.mp4", "recovery_points.mp4", "vp9.webm", "stream.ts", "mpeg4.avi"]
)
def test_several_threads_give_the_frames_that_one_gives(name, threads, tmp_path):
    path = record(tmp_path / name, **CLIPS[name])
    asked = [39, 0, 11, 12, 20, 33, 20]
    np.testing.assert_array_equal(read_frames(path, asked, threads=threads), read_frames(path, asked, threads=1))


def test_each_thread_opens_the_video_for_its_own_groups(tmp_path, counts):
    path = record(tmp_path / "video.mp4", g="10", bf="0", sc_threshold="0")
    read_frames(path, [5, 15, 25, 35], threads=2)
    assert counts["opens"] == counts["seeks"] == 2
    assert counts["decoded"] == 4 * 6


@pytest.mark.parametrize(
    ("workers", "ranks", "threads"), [(0, 1, 4), (2, 1, 4), (8, 1, 2), (16, 1, 1), (64, 1, 1), (0, 8, 2), (2, 8, 1)]
)
def test_few_workers_decode_with_threads_and_many_without(workers, ranks, threads, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", f"{ranks}")
    assert count_decoding_threads(workers) == threads


def count_in_worker(_):
    return count_decoding_threads()


def test_a_data_worker_that_was_told_nothing_takes_one_thread(monkeypatch):
    from torch.utils.data import DataLoader

    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))
    assert count_decoding_threads() == 4
    assert list(DataLoader([0, 1], num_workers=1, collate_fn=count_in_worker, batch_size=1)) == [1, 1]
