from __future__ import annotations

from mmblocks.data.llava_json import Placement, read_llava
from mmblocks.data.named_media import MediaRoots
from mmblocks.data.patterns import files_of
from mmblocks.data.selection import Concatenated
from mmblocks.data.sources import Source, sources


@sources.register("llava_json", source="https://github.com/haotian-liu/LLaVA")
def llava_json(
    path: str | tuple[str, ...],
    images: str | None = None,
    videos: str | None = None,
    placement: Placement = "lone_first",
    frames_fps: float = 2.0,
) -> Source:
    """Records of LLaVA .json or .jsonl files, with the folders that their pictures and clips are relative to.

    path: one file, several, or a pattern: "data/{a,b}.json", "data/*.jsonl". images, videos: without them paths are
    relative to each file's own folder. placement: where a turn's visuals go: "lone_first" moves a lone one to the front
    as LLaVA does, "as_written" keeps every marker's place, "all_first" puts all in front. frames_fps: frames per second
    of clips that are a folder of pictures; LLaVA-NeXT takes them for 2.
    """
    files = files_of(path)
    MediaRoots.of(files[0].parent, images, videos)
    read = [read_llava(f, images, video_root=videos, placement=placement, frames_fps=frames_fps) for f in files]
    return read[0] if len(read) == 1 else Concatenated(read, [str(file) for file in files])
