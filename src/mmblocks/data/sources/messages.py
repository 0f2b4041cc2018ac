from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmblocks.conversation import Conversation
from mmblocks.data.llava_json import Placement
from mmblocks.data.named_media import MediaRoots
from mmblocks.data.patterns import files_of
from mmblocks.data.records import Lines, called, open_records
from mmblocks.data.rows import Columns, RowReader
from mmblocks.data.selection import Concatenated
from mmblocks.data.sources import Source, sources


@sources.register("messages", source="https://platform.openai.com/docs/api-reference/chat")
def messages(
    path: str | tuple[str, ...],
    images: str | None = None,
    videos: str | None = None,
    placement: Placement = "lone_first",
    frames_fps: float = 2.0,
) -> Source:
    """Chat-completions messages in .json or .jsonl files, with pictures and clips or plain text.

    A record is {"messages": [{"role", "content"}, ...]} or the list alone. Content is a text, in which <image> and
    <video> stand for the record's "images" and "videos", or a list of parts; a part of type image, video, image_url or
    video_url names its own file or takes the record's next one. Parts stay where they are written; the other settings
    are those of `llava_json`.
    """
    files = files_of(path)
    read = [_open(file, MediaRoots.of(file.parent, images, videos, frames_fps), placement) for file in files]
    return read[0] if len(read) == 1 else Concatenated(read, [str(file) for file in files])


def _open(file: Path, roots: MediaRoots, placement: Placement) -> MessageFile:
    return MessageFile(file, open_records(file), RowReader(Columns(), roots, placement))


@dataclass(frozen=True, slots=True)
class MessageFile:
    """Conversations of one file, by record number from 0."""

    path: Path
    records: Sequence[Any] | Lines
    reader: RowReader

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Conversation:
        number = range(len(self))[index]
        record = self.records[number]
        row = {"messages": record} if isinstance(record, list) else record
        return self.reader.read(row, f"{self.path}:record {number}{called(record)}")
