from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmblocks.conversation import Conversation
from mmblocks.data.media.files import IMAGE_SUFFIXES, FileSlice, is_image_name, make_natural_key
from mmblocks.data.mixing.wrapped_sources import ConcatenatedSource
from mmblocks.data.records.columns import Columns
from mmblocks.data.records.file_patterns import find_files
from mmblocks.data.records.json_records import format_id, parse_json, refuse_duplicates
from mmblocks.data.records.named_media import KINDS, MediaRoots
from mmblocks.data.records.row_reader import RowReader
from mmblocks.data.records.tar_shards import Shard, open_shard
from mmblocks.data.records.turns import Placement
from mmblocks.data.sources import NamedRecords, Source, sources
from mmblocks.errors import DataError
from mmblocks.keys import describe_unread_keys, is_empty

VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".gif")
READ = ("json", "txt", *(suffix[1:] for suffix in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)))
IMG2DATASET = frozenset(
    ["url", "status", "error_message", "original_width", "original_height", "exif", "sha256", "md5"]
)
"""Keys that img2dataset writes beside a downloaded image."""


@sources.register("webdataset", source="https://github.com/webdataset/webdataset")
def webdataset(
    path: str | tuple[str, ...],
    ask: str = "",
    placement: Placement = "lone_first",
    keep_index: bool = False,
    ignore: tuple[str, ...] = (),
) -> Source:
    """Samples in tar files, read in any order: members whose names agree up to the first dot, with their media.

    path: a tar, several, a folder of them, or a pattern: "shards/{000..127}.tar". A sample's .json holds a record as
    `llava_json` or `messages` read it; without one its .txt is the answer to `ask`. Its images and videos (.jpg, .0.jpg,
    .mp4) are shown in the order of their names, and stand for those that the record names. keep_index: keep where members
    lie in a file beside each tar, so that it need not be scanned again. ignore: keys, and suffixes of members, that
    may be left out; others that nothing reads are refused.
    """
    files = find_files(path, within="*.tar")
    reader = RowReader(Columns(ask=ask, ignore=ignore), MediaRoots(Path(), Path()), placement)
    shards = [TarSamples(open_shard(file, keep_index), reader) for file in files]
    return shards[0] if len(shards) == 1 else ConcatenatedSource(shards, [str(file) for file in files])


@dataclass(frozen=True, slots=True)
class TarSamples(NamedRecords[Conversation]):
    """Conversations of one tar, by sample number from 0."""

    shard: Shard
    reader: RowReader

    def __len__(self) -> int:
        return len(self.shard)

    def describe_origin(self, number: int) -> str:
        return f"{self.shard.path}:{self.shard.keys[number]}"

    def read_record(self, number: int) -> Conversation:
        members, origin = self.shard.list_members(number), self.describe_origin(number)
        record: dict[str, Any] = {}
        if (part := members.get("json")) is not None:
            content = parse_json(part.read(), str(part))
            if not isinstance(content, list | dict):
                raise DataError(f"{part}: it holds {content!r:.80}; write a record, or a list of messages.")
            refuse_duplicates(content, str(part))
            record = {"messages": content} if isinstance(content, list) else content
            record = {key: value for key, value in record.items() if key not in IMG2DATASET}
        if (text := members.get("txt")) is not None:
            try:
                record = {**record, "txt": text.read().decode("utf-8").strip()}
            except UnicodeDecodeError as cause:
                raise DataError(f"{text}: not UTF-8 text ({cause.reason}); encode it again.") from cause
        origin += format_id(record)
        row, media = self.reader.clean_row(record, origin), self._list_media(members, origin)
        columns = self.reader.columns
        for kind in KINDS:
            column, named = columns.find_value(row, kind, origin)
            wanted, held = len(named) if isinstance(named, list) else 1, len(media.get(kind, ()))
            if not is_empty(named) and held < (wanted if kind == "image" else 1):
                raise DataError(
                    f"{origin}: {column!r} names {wanted}, but the sample holds {held}; pack them into the tar."
                )
        replaced = {name for kind in KINDS for name in columns.names[kind]}
        return self.reader.read({**{k: v for k, v in row.items() if k not in replaced}, **media}, origin)

    def _list_media(self, members: Mapping[str, FileSlice], origin: str) -> dict[str, list[FileSlice]]:
        """Images and videos of a sample in the order of their names. Raises `DataError` for members that nothing reads."""
        in_order = sorted(members.items(), key=lambda one: make_natural_key(one[0]))
        images = {suffix: part for suffix, part in in_order if is_image_name(f".{suffix}")}
        videos = {suffix: part for suffix, part in in_order if f".{suffix}".endswith(VIDEO_SUFFIXES)}
        read = {"json", "txt", *images, *videos, *self.reader.columns.ignore}
        if strange := [suffix for suffix, part in in_order if suffix not in read and part.size]:
            raise DataError(f"{origin}: {describe_unread_keys(strange, READ, what='member')}")
        return {kind: [*found.values()] for kind, found in (("image", images), ("video", videos)) if found}
