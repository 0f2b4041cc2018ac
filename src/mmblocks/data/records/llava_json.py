"""LLaVA's JSON and JSONL files: one record to one conversation, or a DataError that names the record.

A record: {"id", "image": path or [paths], "video": path or [paths], "conversations": [{"from", "value"}, ...]}; the
other forms of `row_reader` are read too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmblocks.conversation import Conversation
from mmblocks.data.records.columns import Columns
from mmblocks.data.records.file_records import FileRecords
from mmblocks.data.records.json_records import format_id, open_records
from mmblocks.data.records.named_media import MediaRoots
from mmblocks.data.records.row_reader import RowReader
from mmblocks.data.records.turns import Placement
from mmblocks.data.sources import NamedRecords
from mmblocks.shapes import VisualKind


def read_llava(
    path: Path | str,
    media_root: Path | str | None = None,
    *,
    video_root: Path | str | None = None,
    placement: Placement = "lone_first",
    frames_fps: float = 2.0,
    ignore: tuple[str, ...] = (),
) -> RecordFile:
    """Open a .json or .jsonl file of LLaVA records.

    Media paths are relative to `media_root` (the file's own folder when not given), those of videos to `video_root`
    when given. Records are read one by one.

    placement: where visuals stand in a turn. "lone_first" moves the only visual of a turn to its front and keeps
    several where they are, as LLaVA-NeXT does in training (preprocess_multimodal); "as_written" moves none;
    "all_first" puts all of a turn in front of its text.

    frames_fps: frames per second of videos that are folders or lists of images; LLaVA-NeXT assumes 2.
    ignore: keys that are not read; others that nothing reads are refused.
    """
    path = Path(path)
    images = path.parent if media_root is None else Path(media_root)
    videos = images if video_root is None else Path(video_root)
    reader = RowReader(Columns(ignore=ignore), MediaRoots(images, videos, frames_fps), placement)
    return RecordFile(path, open_records(path), reader)


@dataclass(frozen=True, slots=True)
class RecordFile(NamedRecords[Conversation]):
    """Conversations of one file, by record number from 0. A record is an object, or a list of messages alone."""

    path: Path
    records: Sequence[Any] | FileRecords
    reader: RowReader

    def __len__(self) -> int:
        return len(self.records)

    def describe_origin(self, number: int) -> str:
        return f"{self.path}:record {number}"

    def read_record(self, number: int) -> Conversation:
        record = self.records[number]
        is_message_list = isinstance(record, list) and record and isinstance(record[0], Mapping)
        row = {"messages": record} if is_message_list else record
        return self.reader.read(row, f"{self.describe_origin(number)}{format_id(record)}")


def to_conversation(
    record: object, media_roots: Mapping[VisualKind, Path], *, origin: str, placement: Placement = "lone_first"
) -> Conversation:
    """One LLaVA record as a conversation. `media_roots` holds a folder for "image" and one for "video"."""
    return RowReader(Columns(), MediaRoots(**media_roots), placement).read(record, origin)
