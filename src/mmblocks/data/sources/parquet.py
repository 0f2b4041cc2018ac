from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmblocks.conversation import Conversation
from mmblocks.data.records.columns import Columns
from mmblocks.data.records.json_records import format_id
from mmblocks.data.records.named_media import MediaRoots
from mmblocks.data.records.row_reader import RowReader
from mmblocks.data.records.tables import import_datasets, load_table, take_first_line
from mmblocks.data.records.turns import Placement
from mmblocks.data.sources import NamedRecords, sources
from mmblocks.errors import ConfigError, DataError
from mmblocks.faults import Fault
from mmblocks.keys import describe_unread_keys, is_empty

BATCH_ROWS = 1000
"""Rows of a column that are read at a time, to find out whether it is empty."""


@sources.register("parquet", source="https://github.com/huggingface/datasets")
class ParquetTable(NamedRecords[Conversation]):
    """Parquet files, and data sets of the `datasets` library, saved in a folder or on the hub; nothing is decoded early.

    path: a file, several, a pattern, a folder of them, or one written by save_to_disk; or else hub: "owner/name", with
    its `config`. split: which part of a data set that has several. Columns are found by their usual names
    (conversations, messages, texts; question, answer; system; image, images; video, videos) unless they are named. A
    conversation is written as LLaVA or chat-completions write it, or as {"user", "assistant"}; an image is a path, bytes,
    or the library's Image; a list holds several. ask: the question where a table has answers only. cache: folder in which
    `datasets` keeps its memory-mapped copy. The other settings are those of `llava_json`.
    """

    def __init__(
        self,
        path: str | tuple[str, ...] | None = None,
        hub: str | None = None,
        config: str | None = None,
        split: str = "train",
        conversation_column: str | None = None,
        question_column: str | None = None,
        answer_column: str | None = None,
        image_column: str | None = None,
        video_column: str | None = None,
        system_column: str | None = None,
        ask: str = "",
        images: str | None = None,
        videos: str | None = None,
        placement: Placement = "lone_first",
        frames_fps: float = 2.0,
        cache: str | None = None,
        ignore: tuple[str, ...] = (),
    ) -> None:
        if (path is None) == (hub is None):
            raise ConfigError(
                f"source 'parquet': path={path!r} and hub={hub!r}; write one of them.", settings=["path", "hub"]
            )
        self.name = hub or ", ".join([path] if isinstance(path, str) else path or ())
        if hub:
            library, folder = import_datasets(), Path()
            try:
                table = library.load_dataset(hub, config, split=split, cache_dir=cache)
            except Exception as cause:  # of the network, the hub or a script
                raise DataError(
                    f"{hub}: cannot be loaded from the hub ({take_first_line(cause)}); check its name, config and split."
                ) from cause
        else:
            table, folder = load_table(path or "", split, cache)
        columns = Columns(
            conversation_column, question_column, answer_column, image_column, video_column, system_column, ask, ignore
        )
        if fault := columns.find_fault(table.column_names):
            raise ConfigError(f"source 'parquet', {self.name}: {fault}")
        table = table.remove_columns([name for name in table.column_names if name in ignore])
        self._table = table.with_format("arrow")  # rows as they are stored: media stay bytes
        unread = []
        for name in columns.list_unknown(table.column_names):
            batches = self._table.select_columns(name).iter(BATCH_ROWS)
            if any(not is_empty(value) for batch in batches for value in batch[name].to_pylist()):
                unread.append(name)
        if unread:
            raise DataError(f"{self.name}: {describe_unread_keys(unread, columns.read, what='column')}")
        self._reader = RowReader(columns, MediaRoots.from_settings(folder, images, videos, frames_fps), placement)

    @staticmethod
    def find_faults(settings: Mapping[str, Any]) -> list[Fault]:
        """Whether it says where it is; nothing is asked of the hub before a run."""
        given = [name for name in ("path", "hub") if settings.get(name) is not None]
        return [] if len(given) == 1 else [Fault("", "source 'parquet': write either path or hub.")]

    def __len__(self) -> int:
        return len(self._table)

    def describe_origin(self, number: int) -> str:
        return f"{self.name}:row {number}"

    def read_record(self, number: int) -> Conversation:
        row = self._table[number].to_pylist()[0]
        return self._reader.read(row, f"{self.describe_origin(number)}{format_id(row)}")
