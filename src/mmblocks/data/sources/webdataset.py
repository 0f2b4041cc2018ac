from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmblocks.conversation import Conversation
from mmblocks.data.files import Slice, is_picture, natural
from mmblocks.data.llava_json import Placement
from mmblocks.data.named_media import MediaRoots
from mmblocks.data.patterns import files_of
from mmblocks.data.records import called, parsed, refuse_twins
from mmblocks.data.rows import USUAL, Columns, RowReader
from mmblocks.data.selection import Concatenated
from mmblocks.data.shards import Shard, open_shard
from mmblocks.data.sources import Source, sources
from mmblocks.errors import DataError

CLIPS = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".gif")


@sources.register("webdataset", source="https://github.com/webdataset/webdataset")
def webdataset(
    path: str | tuple[str, ...],
    ask: str = "",
    placement: Placement = "lone_first",
    keep_index: bool = False,
) -> Source:
    """Samples in tar files, read in any order: members whose names agree up to the first dot, with their media.

    path: a tar, several, a folder of them, or a pattern: "shards/{000..127}.tar". A sample's .json holds a record as
    `llava_json` or `messages` read it; without one its .txt is the answer to `ask`. Its pictures and clips (.jpg, .0.jpg,
    .mp4) are shown in the order of their names, and stand for those that the record names. keep_index: keep where members
    lie in a file beside each tar, so that it need not be looked through again.
    """
    files = files_of(path, within="*.tar")
    shards = [TarSamples(open_shard(file, keep_index), ask, placement) for file in files]
    return shards[0] if len(shards) == 1 else Concatenated(shards, [str(file) for file in files])


@dataclass(frozen=True, slots=True)
class TarSamples:
    """Conversations of one tar, by sample number from 0."""

    shard: Shard
    ask: str
    placement: Placement

    def __len__(self) -> int:
        return len(self.shard)

    def __getitem__(self, index: int) -> Conversation:
        number = range(len(self))[index]
        members = self.shard.sample(number)
        origin = f"{self.shard.path}:{self.shard.keys[number]}"
        row = _row(members)
        reader = RowReader(Columns(ask=self.ask), MediaRoots(Path(), Path()), self.placement)
        return reader.read(row, origin + called(row))


def _row(members: Mapping[str, Slice]) -> dict[str, Any]:
    """A sample as a row: what its text members say, and its media as they lie in the tar."""
    said: dict[str, Any] = {}
    if (told := members.get("json")) is not None:
        said = _record(told)
    if (told := members.get("txt")) is not None:
        said["txt"] = _text(told)
    in_order = sorted(members.items(), key=lambda one: natural(one[0]))
    media = {
        "image": [part for suffix, part in in_order if is_picture(f".{suffix}")],
        "video": [part for suffix, part in in_order if f".{suffix}".endswith(CLIPS)],
    }
    return {**said, **{kind: found for kind, found in media.items() if found}}


def _record(part: Slice) -> dict[str, Any]:
    """What a sample's JSON says, without the media that it names: those of the tar stand for them."""
    record = parsed(part.read(), str(part))
    if isinstance(record, list):
        return {"messages": record}
    if not isinstance(record, dict):
        raise DataError(f"{part}: it holds {record!r:.80}; write a record, or a list of messages.")
    refuse_twins(record, str(part))
    return {column: value for column, value in record.items() if column not in (*USUAL["image"], *USUAL["video"])}


def _text(part: Slice) -> str:
    try:
        return part.read().decode("utf-8").strip()
    except UnicodeDecodeError as cause:
        raise DataError(f"{part}: not UTF-8 text ({cause.reason}); encode it again.") from cause
