"""The examples of the pages on data work: files written as shown, code run, every `data` list read to its end."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from mmblocks.assets import find_media
from mmblocks.conversation import PreferencePair
from mmblocks.data.media.visuals import read_visual_shape
from mmblocks.data.mixing.mixture import Mixture
from mmblocks.data.video import read_frames

DOCS = Path(__file__).parents[2] / "docs"
PAGES = (DOCS / "howto/data.md", DOCS / "reference/data.md")  # the second one uses files of the first
FENCE = re.compile(r"(?:^`(?P<file>[\w.]+)`:\n\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```\n", re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "clips/jump").mkdir(parents=True)
    for name in ("cat", "dog"):
        Image.open(find_media("first.png")).convert("RGB").save(tmp_path / f"photos/{name}.jpg")
    shutil.copy(find_media("video.mp4"), tmp_path / "clips/run.mp4")
    for i in range(1, 11):
        Image.new("RGB", (16, 16), (20 * i,) * 3).save(tmp_path / f"clips/jump/{i}.jpg")
    return tmp_path


def test_every_example_of_the_pages_works(folder):
    counts = []
    for block in FENCE.finditer("\n".join(page.read_text(encoding="utf-8") for page in PAGES)):
        if block["file"]:
            (folder / block["file"]).write_text(block["text"], encoding="utf-8")
        elif block["language"] == "python":
            exec(compile(block["text"], "a page on data", "exec"), {"__name__": "example"})
        elif block["language"] == "yaml":
            counts.append(read_to_the_end(yaml.safe_load(block["text"])["data"]))
    assert counts == [[5], [3], [2, 2], [1], [1], [5, 2, 1, 4], [1, 3], [5], [3]]


def read_to_the_end(entries):
    """How many conversations the sources of a `data` list hold; all are read, their media looked at."""
    mixture = Mixture.from_entries(entries)
    for draw in map(mixture.draw_all().__getitem__, range(len(mixture))):
        item = mixture[draw]
        for talk in (item.chosen, item.rejected) if isinstance(item, PreferencePair) else (item,):
            assert talk.messages[-1].text
            for visual in talk.visuals:
                shape = read_visual_shape(visual)
                assert visual.kind == "image" or len(read_frames(visual.source, [shape.num_frames - 1])) == 1
    return [len(source) for source in mixture.sources]
