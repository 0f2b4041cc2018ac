from __future__ import annotations

from mmblocks.conversation import Conversation
from mmblocks.data.llava_json import Placement, read_llava
from mmblocks.data.sources import sources


@sources.register("llava_json", source="https://github.com/haotian-liu/LLaVA")
class LlavaJsonFile:
    """Records of a LLaVA .json or .jsonl file, with the folders that their pictures and clips are relative to.

    placement: where a turn's visuals go: "lone_first" moves a lone one to the front as LLaVA does, "as_written" keeps
    every marker's place, "all_first" puts all in front.
    """

    def __init__(
        self, path: str, images: str | None = None, videos: str | None = None, placement: Placement = "lone_first"
    ) -> None:
        self._records = read_llava(path, images, video_root=videos, placement=placement)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Conversation:
        return self._records[index]
