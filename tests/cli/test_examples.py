"""Every script of examples/ runs and shows what it promises."""

import runpy
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmblocks.assets import find_media
from mmblocks.components import projectors
from mmblocks.data.video import read_frames, read_video_shape

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def shown(monkeypatch, tmp_path, capsys):
    """Run an example as a script; returns the lines it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(projectors, "_entries", {name: projectors[name] for name in projectors})

    def run(name, *arguments):
        monkeypatch.setattr("sys.argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def test_plan_tokens_counts_without_weights(shown):
    lines = shown("plan_tokens")
    assert "  image 1000x700: 7 views, 4941 tokens (image)" in lines
    assert "  video 1280x720: 32 views, 6273 tokens (video)" in lines


def test_custom_projector_learns_and_refuses_a_misspelled_setting(shown):
    lines = shown("custom_projector")
    assert any(line.endswith("parameters of the projector without a gradient: none") for line in lines)
    assert any("has no setting 'expantion'. Did you mean 'expansion'?" in line for line in lines)


def test_train_on_your_json_learns_its_ten_records(shown):
    answers = dict(line.split(": ") for line in map(str.strip, shown("train_on_your_json")))
    assert answers == {colour: colour for colour in ("red", "green", "blue", "yellow", "white")}


def test_make_demo_media_draws_the_files_that_ship(shown, tmp_path):
    shown("make_demo_media", str(tmp_path))
    for name in ("image.png", "first.png", "second.png"):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / name)), np.asarray(Image.open(find_media(name))))
    fresh, shipped = (
        read_frames(str(path), range(8)).astype(int) for path in (tmp_path / "video.mp4", find_media("video.mp4"))
    )
    assert np.abs(fresh - shipped).mean() < 2  # builds of x264 differ in their rounding


def test_the_clip_that_ships_is_two_seconds_of_motion():
    shape = read_video_shape(str(find_media("video.mp4")))
    frames = read_frames(str(find_media("video.mp4")), range(shape.num_frames)).astype(int)
    assert (shape.num_frames, shape.fps) == (8, 4.0)
    assert all(np.abs(after - before).max() > 100 for before, after in pairwise(frames))


def test_the_media_that_ship_are_small():
    assert sum(path.stat().st_size for path in find_media("image.png").parent.iterdir()) < 100_000


def test_every_example_is_tested():
    told = Path(__file__).read_text(encoding="utf-8")
    assert all(f'shown("{path.stem}"' in told for path in EXAMPLES.glob("*.py"))
