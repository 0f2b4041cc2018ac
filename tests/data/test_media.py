"""A visual of a conversation, whatever it is: planned from its shape, rendered from its frames, errors with its name."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmblocks.conversation import Visual
from mmblocks.data.media.pixels import render_views
from mmblocks.data.media.visuals import read_visual_shape, render_visual_plan
from mmblocks.data.video.video_reader import VideoReader
from mmblocks.errors import DataError
from mmblocks.image_reading import ImageReading
from mmblocks.shapes import Box, Size, View, VisualPlan, VisualShape

FILL = (1, 2, 3)
SIDE = Size(8, 8)


def grey_clip(frames=6, size=SIDE):
    """Frame i is all of value 10 * i."""
    return np.stack([np.full((*size, 3), 10 * i, np.uint8) for i in range(frames)])


def plan_of(*frames, size=SIDE):
    return VisualPlan(tuple(View(i, size, size, size, Box(0, 0, *size)) for i in frames), num_tokens=0)


def test_a_picture_is_planned_from_its_size():
    assert read_visual_shape(Visual("image", Image.new("RGB", (30, 20)))) == VisualShape("image", Size(20, 30))


def test_a_clip_in_memory_is_planned_at_the_rate_that_its_visual_says():
    assert read_visual_shape(Visual("video", grey_clip(), fps=2.5)) == VisualShape("video", Size(8, 8), 6, 2.5)


def test_a_picture_is_rendered_as_its_plan_says():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    plan = VisualPlan((View(0, Size(30, 30), Size(8, 8), Size(8, 8), Box(0, 0, 8, 8)),), num_tokens=0)
    assert torch.equal(render_visual_plan(Visual("image", image), plan, FILL), render_views(image, plan.views, FILL))


def test_frames_come_in_the_order_of_the_views_and_once_where_the_plan_repeats():
    pixels = render_visual_plan(Visual("video", grey_clip()), plan_of(4, 0, 0, 5, 4), FILL)
    assert pixels.shape == (3, 3, 8, 8)
    assert pixels[:, 0, 0, 0].tolist() == [40, 0, 50]


def test_each_frame_is_read_once(monkeypatch):
    from mmblocks.data import video

    asked = []
    read = video.read_frames
    monkeypatch.setattr(video, "read_frames", lambda source, indices: asked.append(indices) or read(source, indices))
    render_visual_plan(Visual("video", grey_clip()), plan_of(4, 0, 0, 5, 4), FILL)
    assert asked == [[0, 4, 5]]


DROP = ImageReading(alpha="drop")


def test_transparency_is_on_white_or_dropped():
    visual = Visual("image", Image.new("RGBA", (8, 8), (9, 9, 9, 0)))
    assert render_visual_plan(visual, plan_of(0), FILL).unique().tolist() == [255]
    assert render_visual_plan(visual, plan_of(0), FILL, images=DROP).unique().tolist() == [9]


@pytest.mark.parametrize("clips", [None, VideoReader()])
@pytest.mark.parametrize("form", ["folder", "files"])
def test_frames_that_are_images_are_read_as_images_are(form, clips, tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for file in files:
        Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(file)
    visual = Visual("video", tmp_path if form == "folder" else tuple(files), fps=2.0)
    assert render_visual_plan(visual, plan_of(0, 1), FILL, video_reader=clips).unique().tolist() == [255]
    assert render_visual_plan(visual, plan_of(0, 1), FILL, images=DROP, video_reader=clips).unique().tolist() == [9]
    with pytest.raises(DataError, match="too large, 8x8 is 64 pixels"):
        read_visual_shape(visual, clips, ImageReading(max_px=63))


def test_a_file_that_changed_after_it_was_planned_is_named(tmp_path):
    path = tmp_path / "changed.png"
    Image.new("RGB", (9, 9)).save(path)
    with pytest.raises(DataError, match=r"changed\.png: the image is 9x9 pixels but was planned as at most 8x8"):
        render_visual_plan(Visual("image", path), plan_of(0), FILL)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_errors_keep_the_name_of_the_file(kind, tmp_path):
    visual = Visual(kind, tmp_path / "nowhere")
    for read in (lambda: read_visual_shape(visual), lambda: render_visual_plan(visual, plan_of(0), FILL)):
        with pytest.raises(DataError, match="nowhere: there is no such file"):
            read()
