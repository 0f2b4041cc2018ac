from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmblocks.conversation import PreferencePair
from mmblocks.data.mixing.wrapped_sources import ConcatenatedSource
from mmblocks.data.records.columns import Columns
from mmblocks.data.records.file_patterns import find_files
from mmblocks.data.records.file_records import FileRecords
from mmblocks.data.records.json_records import format_id, open_records
from mmblocks.data.records.named_media import MediaRoots
from mmblocks.data.records.row_reader import RowReader
from mmblocks.data.records.turns import Placement, Turn
from mmblocks.data.sources import NamedRecords, Source, sources
from mmblocks.errors import DataError
from mmblocks.keys import is_empty

CHOSEN, REJECTED, RESPONSE = "chosen", "rejected", "rejected_response"


@sources.register("llava_pairs", source="https://github.com/LLaVA-VL/LLaVA-NeXT (train_dpo.py)")
def llava_pairs(
    path: str | tuple[str, ...],
    images: str | None = None,
    videos: str | None = None,
    placement: Placement = "lone_first",
    frames_fps: float = 2.0,
    ignore: tuple[str, ...] = (),
) -> Source:
    """Pairs of answers for training on preferences, in .json or .jsonl files.

    A record: {"id", "image" or "video", "prompt", "chosen", "rejected"}. The prompt is a question or a list of turns
    that ends in one; visuals that no marker stands for are shown before its first question. chosen and rejected are
    texts, turns of the assistant, or lists that hold one; without a prompt they are two conversations that differ in the
    last answer. conversations or messages may stand for the prompt; with messages that end in the chosen answer,
    "rejected_response" is the other one. The settings are those of `llava_json`.
    """
    files = find_files(path)
    columns = _PairColumns(ignore=ignore)
    readers = [
        RowReader(columns, MediaRoots.from_settings(f.parent, images, videos, frames_fps), placement) for f in files
    ]
    read = [PairFile(file, open_records(file), reader) for file, reader in zip(files, readers, strict=True)]
    return read[0] if len(read) == 1 else ConcatenatedSource(read, [str(file) for file in files])


@dataclass(frozen=True, slots=True)
class _PairColumns(Columns):
    """Columns of records that hold two answers."""

    def __post_init__(self) -> None:
        Columns.__post_init__(self)
        answers = self.names["answer"]
        others = tuple(name for name in self.read if name not in answers)
        object.__setattr__(self, "read", (*others, CHOSEN, REJECTED, RESPONSE))


@dataclass(frozen=True, slots=True)
class PairFile(NamedRecords[PreferencePair]):
    """Pairs of one file, by record number from 0."""

    path: Path
    records: Sequence[Any] | FileRecords
    reader: RowReader

    def __len__(self) -> int:
        return len(self.records)

    def describe_origin(self, number: int) -> str:
        return f"{self.path}:record {number}"

    def read_record(self, number: int) -> PreferencePair:
        record = self.records[number]
        origin = f"{self.describe_origin(number)}{format_id(record)}"
        if not isinstance(record, Mapping):
            raise DataError(
                f"{origin}: a record is an object with 'prompt', 'chosen' and 'rejected', not {record!r:.80}."
            )
        row = self.reader.clean_row(record, origin)
        prompt, chosen, rejected, used = self._read_turns(row, origin)
        self.reader.columns.refuse_unread_keys(row, (*used, *self.reader.common_columns), origin)
        if not prompt or prompt[-1].role != "user":
            last = f"ends with a turn of the {prompt[-1].role}" if prompt else "is empty"
            raise DataError(f"{origin}: its prompt {last}; end it with a question.")
        return PreferencePair(
            *(self.reader.make_conversation([*prompt, answer], row, origin) for answer in (chosen, rejected))
        )

    def _read_turns(self, row: Mapping[str, Any], origin: str) -> tuple[list[Turn], Turn, Turn, tuple[str, ...]]:
        """The turns up to the answers, the two answers, and the keys that they were read from."""
        reader, columns = self.reader, self.reader.columns
        column, turns = columns.find_value(row, "conversation", origin)
        if is_empty(turns):
            prompt, used = reader.read_question(row, origin)
            are_conversations = all(isinstance(row.get(key), list) and len(row[key]) > 1 for key in (CHOSEN, REJECTED))
            if is_empty(columns.find_value(row, "question", origin)[1]) and are_conversations:
                chosen, rejected = (reader.to_turns(row[key], f"{origin}: {key!r}", key) for key in (CHOSEN, REJECTED))
                if chosen[:-1] != rejected[:-1] or {chosen[-1].role, rejected[-1].role} != {"assistant"}:
                    raise DataError(
                        f"{origin}: 'chosen' and 'rejected' differ in more than their last answer; write a 'prompt'."
                    )
                return chosen[:-1], chosen[-1], rejected[-1], (CHOSEN, REJECTED)
        else:
            prompt, used = reader.to_turns(turns, origin, column), columns.names["conversation"]
            if not is_empty(row.get(RESPONSE)):
                return prompt[:-1], prompt[-1], self._read_answer(row, RESPONSE, origin), (*used, RESPONSE)
        answers = self._read_answer(row, CHOSEN, origin), self._read_answer(row, REJECTED, origin)
        return prompt, *answers, (*used, CHOSEN, REJECTED)

    def _read_answer(self, row: Mapping[str, Any], key: str, origin: str) -> Turn:
        answer = row.get(key)
        if answer is None:
            raise DataError(f"{origin}: {key!r} is None; write a list with at least one turn, or a text.")
        return self.reader.read_answer(answer, key, f"{origin}: {key!r}", 0)
