"""Which reader opens a file of documents, by its suffix."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmblocks.data.records.file_patterns import find_files
from mmblocks.data.records.turns import read_turns
from mmblocks.errors import DataError
from mmblocks.eval.documents.extended_rows import ExtendedRows
from mmblocks.eval.documents.json_rows import open_json_rows
from mmblocks.eval.documents.rows import DocumentRows
from mmblocks.eval.documents.table_rows import open_table_rows
from mmblocks.eval.documents.tsv_rows import DELIMITERS, TsvRows

CONVERSATIONS = "conversations"
_READERS = ".json, .jsonl, .parquet, .arrow, .tsv, .csv, or a folder of parquet files"


def open_rows(path: str, split: str = "") -> DocumentRows:
    """The rows of a file, a pattern or a folder. split: which part of a folder that holds several.

    Rows of LLaVA's JSON have their first question and last answer as `question` and `answer`.
    """
    rows = _open_file(path, split)
    is_llava = CONVERSATIONS in rows.columns and not {"question", "answer"} & set(rows.columns)
    return ExtendedRows(rows, ("question", "answer"), _read_conversation) if is_llava else rows


def _open_file(path: str, split: str) -> DocumentRows:
    given = Path(path)
    if given.is_dir() or given.suffix.lower() in (".parquet", ".arrow"):
        return open_table_rows(path, split)
    files = find_files(path)
    suffix = files[0].suffix.lower()
    if suffix in (".parquet", ".arrow"):
        return open_table_rows(path, split)
    if len(files) > 1:
        raise DataError(f"{path}: it matches {len(files)} files; name one, or a pattern of parquet files.")
    if suffix in (".json", ".jsonl"):
        return open_json_rows(files[0])
    if suffix in DELIMITERS:
        return TsvRows(files[0])
    raise DataError(f"{path}: nothing reads documents from a file of the suffix {suffix!r}; write {_READERS}.")


def _read_conversation(row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The first question and the last answer of LLaVA's turns."""
    turns = read_turns(row.get(CONVERSATIONS), where)
    texts = {role: [turn.content for turn in turns if turn.role == role] for role in ("user", "assistant")}
    if not texts["user"] or not texts["assistant"]:
        raise DataError(f"{where}: {CONVERSATIONS!r} holds no question with an answer; write both.")
    return {"question": texts["user"][0], "answer": texts["assistant"][-1]}
