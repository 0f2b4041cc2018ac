"""A clip given as pictures: a folder or a list of files, in the order that people number them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mmblocks.conversation import Conversation, Message, Text, Visual
from mmblocks.data.media.visuals import shape_of
from mmblocks.data.sample.processor import Processor
from mmblocks.data.sources import sources
from mmblocks.data.video import read_frames, video_shape
from mmblocks.errors import DataError
from mmblocks.shapes import Size, VisualShape


@pytest.fixture
def frames(tmp_path):
    """Twelve frames, number i all of value 10 * i, and two files that are none."""
    folder = tmp_path / "clip"
    folder.mkdir()
    for i in range(12):
        Image.new("RGB", (8, 6), (10 * i,) * 3).save(folder / f"frame_{i}.png")
    (folder / "about.txt").touch()
    (folder / ".hidden.png").touch()
    return folder


def values(pictures):
    return pictures[:, 0, 0, 0].tolist()


def test_a_folder_is_a_clip_of_its_pictures_by_number(frames):
    assert video_shape(frames) == video_shape(str(frames)) == VisualShape("video", Size(6, 8), 12)
    assert values(read_frames(frames, range(12))) == [10 * i for i in range(12)]


def test_frames_come_as_asked_and_repeat(frames):
    pictures = read_frames(frames, [11, 2, 2])
    assert pictures.shape == (3, 6, 8, 3)
    assert pictures.dtype == np.uint8
    assert values(pictures) == [110, 20, 20]
    assert read_frames(frames, []).shape == (0, 6, 8, 3)


def test_files_are_a_clip_in_their_order(frames):
    clip = tuple(frames / f"frame_{i}.png" for i in (3, 1))
    assert video_shape(clip).num_frames == 2
    assert values(read_frames(clip, [0, 1])) == [30, 10]


def test_a_folder_is_shown_at_the_pace_that_its_visual_says(frames):
    assert shape_of(Visual("video", frames)).fps == 1.0
    assert shape_of(Visual("video", frames, fps=2.0)).fps == 2.0


@pytest.mark.parametrize("named", ["clip", ["clip"], ["clip/frame_3.png", "clip/frame_1.png"], [["clip/frame_3.png"]]])
@pytest.mark.parametrize("source", ["llava_json", "messages"])
def test_records_name_folders_and_lists_of_frames(frames, named, source):
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "Grey."}]
    path = frames.parent / "data.json"
    path.write_text(json.dumps([{"video": named, "conversations": turns}]))
    (visual,) = sources.build(source, path=str(path))[0].visuals
    whole = "clip" in named
    assert shape_of(visual).fps == 2.0  # LLaVA-NeXT's pace of frames in folders
    assert values(read_frames(visual.source, [0])) == [0 if whole else 30]
    (other,) = sources.build(source, path=str(path), frames_fps=5.0)[0].visuals
    assert shape_of(other).fps == 5.0


def test_a_model_is_shown_a_folder_like_a_clip_in_memory(frames, tiny_model):
    answered = [Message("assistant", (Text("grey"),))]
    processor = Processor.of(tiny_model)
    shown = [Visual("video", frames, 2.0), Visual("video", read_frames(frames, range(12)), 2.0)]
    talks = [Conversation((Message("user", (visual, Text("what?"))), *answered)) for visual in shown]
    folder, array = map(processor.training_sample, talks)
    assert folder.pixels.shape[0] > 1
    assert torch.equal(folder.pixels, array.pixels)
    assert torch.equal(folder.encoded.input_ids, array.encoded.input_ids)


@pytest.mark.parametrize("number", [-1, 12])
def test_a_frame_that_is_not_there_is_named(frames, number):
    with pytest.raises(DataError, match=f"clip: frame {number} was asked for, but there are 12"):
        read_frames(frames, [number])


def test_what_is_no_clip_is_named(frames, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: this folder holds no picture"):
        video_shape(tmp_path / "empty")
    with pytest.raises(DataError, match="no frame is named"):
        video_shape(())
    Image.new("RGB", (4, 4)).save(frames / "frame_5.png")
    with pytest.raises(DataError, match=r"frame_5.png: this frame is 4x4 pixels, the first one \(frame_0.png\) 6x8"):
        read_frames(frames, [5])
    (frames / "frame_0.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"frame_0.png: not a picture"):
        video_shape(frames)
