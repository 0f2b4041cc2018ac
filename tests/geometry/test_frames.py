"""Which frames of a video are shown. No torch."""

from __future__ import annotations

import pytest

from mmblocks.errors import DataError
from mmblocks.geometry.frames import format_time_instruction, sample_frames


def frames(num_frames, fps=30.0, *, max_frames=32, fps_wanted=None, force=False):
    return sample_frames(num_frames, fps, max_frames=max_frames, fps_wanted=fps_wanted, force=force)


def test_a_long_clip_is_shown_from_its_first_frame_to_its_last():
    assert frames(300, max_frames=8).indices == (0, 42, 85, 128, 170, 213, 256, 299)
    assert frames(300, max_frames=1).indices == (0,)


def test_a_short_clip_shows_each_frame_once_unless_forced():
    assert frames(3, max_frames=5).indices == (0, 1, 2)
    assert frames(3, max_frames=5, force=True).indices == (0, 0, 1, 1, 2)


def test_one_frame_per_second_until_there_are_too_many():
    assert frames(100, fps_wanted=1).indices == (0, 30, 60, 90)
    assert frames(100, fps_wanted=1, max_frames=3).indices == (0, 49, 99)


def test_a_clip_slower_than_wanted_shows_every_frame():
    # The original computes a step of 0 here and fails.
    assert frames(4, fps=1.0, fps_wanted=3).indices == (0, 1, 2, 3)


def test_without_a_limit_all_steps_are_taken():
    assert len(frames(9000, fps_wanted=2, max_frames=None).indices) == 600


def test_times_are_seconds_and_the_original_clock_counts_steps():
    sample = frames(60, fps_wanted=2)
    assert sample.compute_times_s() == (0.0, 0.5, 1.0, 1.5)
    assert sample.compute_times_s(clock="steps") == (0.0, 1.0, 2.0, 3.0)
    assert sample.duration_s == 2.0


def test_the_time_instruction_names_every_frame():
    assert format_time_instruction(frames(60, fps_wanted=1)) == (
        "The video lasts for 2.00 seconds, and 2 frames are uniformly sampled from it. These frames are located at "
        "0.00s,1.00s.Please answer the following questions related to this video."
    )


def test_frames_are_in_order_inside_the_clip_and_never_too_many():
    for num_frames in [1, 2, 3, 31, 32, 33, 299, 100_000]:
        for fps_wanted in [None, 0.5, 1, 60]:
            for force in [False, True]:
                indices = frames(num_frames, fps_wanted=fps_wanted, force=force).indices
                assert list(indices) == sorted(indices)
                assert 0 <= indices[0] <= indices[-1] < num_frames
                assert 1 <= len(indices) <= 32


def test_an_empty_or_timeless_clip_is_refused():
    with pytest.raises(DataError, match="a video has 0 frames"):
        frames(0)
    with pytest.raises(DataError, match=r"fps=0\.0"):
        frames(10, fps=0.0)


# Videos of uneven pace -------------------------------------------------------------------------------------------------

BURST_S = [*(i / 70 for i in range(70)), *range(1, 10), 9.5]  # the last one up to the second 10


def burst(**settings):
    chosen = {"max_frames": 32, "fps_wanted": None, "force": False, **settings}
    return sample_frames(len(BURST_S), len(BURST_S) / 10, times_s=BURST_S, **chosen)


def test_a_spread_is_even_in_time():
    sample = burst(max_frames=8)
    assert sample.indices == (0, 70, 71, 73, 74, 75, 77, 79)  # shown at i * 9.5 / 7 seconds
    assert sample.compute_times_s() == (0.0, 1.0, 2.0, 4.0, 5.0, 6.0, 8.0, 9.5)
    assert sample.duration_s == 10.0
    assert burst(max_frames=1).indices == (0,)


def test_a_rate_takes_the_frame_that_is_shown_at_each_of_its_instants():
    assert burst(fps_wanted=1).compute_times_s() == (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)
    assert burst(fps_wanted=0.4).compute_times_s() == (
        0.0,
        2.0,
        5.0,
        7.0,
    )  # 0, 2.5, 5 and 7.5 seconds; 10 is behind the end
    assert burst(fps_wanted=2, max_frames=8).indices == burst(max_frames=8).indices


def test_a_frame_that_stays_is_taken_once_unless_forced():
    assert burst(fps_wanted=2).compute_times_s() == (0.0, 0.5, *map(float, range(1, 10)), 9.5)
    slides = {"max_frames": 5, "fps_wanted": None, "times_s": [0.0, 1.0, 2.0, 3.0, 4.0, 40.0]}
    assert sample_frames(6, 0.1, force=False, **slides).indices == (0, 4, 5)
    assert sample_frames(6, 0.1, force=True, **slides).indices == (0, 4, 4, 4, 5)
    assert sample_frames(6, 0.1, force=False, **{**slides, "max_frames": 6}).indices == (0, 1, 2, 3, 4, 5)


def test_frames_of_the_same_moment_give_the_last_of_them():
    sample = sample_frames(4, 2.0, max_frames=None, fps_wanted=1, force=False, times_s=[0.0, 0.0, 1.0, 1.0])
    assert sample.indices == (1, 3)


def test_the_original_clock_keeps_its_numbers_on_uneven_clips():
    assert burst(fps_wanted=0.4).compute_times_s(clock="steps") == (0.0, 1.0, 2.0, 3.0)
    assert burst(max_frames=2).compute_times_s(clock="steps") == (
        0.0,
        79 / 8,
    )  # by the average rate, as LLaVA-NeXT has it


def test_times_of_an_even_clip_change_nothing():
    for num_frames, fps in [(1, 1.0), (7, 2.0), (100, 4.0), (901, 32.0)]:
        for settings in [(8, None), (8, 1.0), (64, 1.0), (None, 2.0)]:
            chosen = {"max_frames": settings[0], "fps_wanted": settings[1], "force": False}
            even = sample_frames(num_frames, fps, **chosen)
            timed = sample_frames(num_frames, fps, **chosen, times_s=[i / fps for i in range(num_frames)])
            assert timed.indices == even.indices
            assert timed.compute_times_s() == even.compute_times_s()
