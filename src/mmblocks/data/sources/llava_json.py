from typing import Any

from mmblocks.data.mixing.wrapped_sources import ConcatenatedSource
from mmblocks.data.records.file_patterns import find_files
from mmblocks.data.records.llava_json import read_llava
from mmblocks.data.records.named_media import MediaRoots
from mmblocks.data.records.turns import Placement
from mmblocks.data.sources import Source, sources


@sources.register("llava_json", source="https://github.com/haotian-liu/LLaVA")
def llava_json(
    path: str | tuple[str, ...],
    images: str | None = None,
    videos: str | None = None,
    placement: Placement = "lone_first",
    frames_fps: float = 2.0,
    ignore: tuple[str, ...] = (),
) -> Source:
    """Records of LLaVA .json or .jsonl files, with the folders that their images and videos are relative to.

    path: one file, several, or a pattern: "data/{a,b}.json", "data/*.jsonl". images, videos: without them paths are
    relative to each file's own folder. placement: where a turn's visuals go: "lone_first" moves a lone one to the front
    as LLaVA does, "as_written" keeps every marker's place, "all_first" puts all in front. frames_fps: frames per second
    of videos that are a folder of images; LLaVA-NeXT takes them for 2. ignore: keys of records, turns and parts that may
    be left out; other keys that nothing reads are refused.
    """
    files = find_files(path)
    MediaRoots.from_settings(files[0].parent, images, videos)
    settings: Any = {"video_root": videos, "placement": placement, "frames_fps": frames_fps, "ignore": ignore}
    read = [read_llava(file, images, **settings) for file in files]
    return read[0] if len(read) == 1 else ConcatenatedSource(read, [str(file) for file in files])
