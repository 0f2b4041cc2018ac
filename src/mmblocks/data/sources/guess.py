"""Which source reads a file, by its name: what `data=FILE` on the command line means."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmblocks.data.media.files import is_existing_path
from mmblocks.errors import ConfigError

READERS = {
    ".json": "llava_json",
    ".jsonl": "llava_json",
    ".parquet": "parquet",
    ".tar": "webdataset",
    ".yaml": "llava_mixture",
    ".yml": "llava_mixture",
}
"""Source by suffix; records of .json and .jsonl that hold messages go to "messages", those with two answers to "llava_pairs"."""
GLIMPSE = 1 << 16
"""Bytes of a JSON file that are read for the keys of its first record."""


def guess_source(path: str) -> dict[str, Any]:
    """The settings of the source that reads `path`, everything else at its default.

    `path` may also be a pattern with a suffix, or a folder: of tars, else of parquet files. Nothing is checked but the
    name. Raises `ConfigError` for one whose suffix nothing reads.
    """
    if is_existing_path(path) and Path(path).is_dir():
        tars = any(Path(path).glob("*.tar"))
        return {"name": "webdataset", "path": str(Path(path) / "*.tar")} if tars else {"name": "parquet", "path": path}
    suffix = Path(path).suffix.lower()
    if suffix not in READERS:
        raise ConfigError(
            f"data={path}: nothing reads a file of the suffix {suffix!r}; write one that ends in "
            f"{', '.join(READERS)}, or name a source in a recipe's stages.0.data.",
            settings=["data"],
        )
    return {"name": _guess_reader(Path(path)), "path": path}


def guess_sources(paths: Sequence[str]) -> list[dict[str, Any]]:
    """Several files side by side, as a stage's `data`."""
    return [guess_source(path) for path in paths]


def _guess_reader(path: Path) -> str:
    """The source that reads a file: for JSON by its first record, LLaVA's where that does not decide."""
    usual = READERS[path.suffix.lower()]
    if usual != "llava_json" or not is_existing_path(path) or not path.is_file():
        return usual
    with path.open("rb") as file:
        head = file.read(GLIMPSE).decode("utf-8-sig", errors="ignore")
    opening = re.match(r"\s*\[?\s*", head)
    try:
        record, _ = json.JSONDecoder().raw_decode(head, 0 if opening is None else opening.end())
    except (ValueError, RecursionError):  # longer than what was read, or not JSON, which its source will say
        found = re.search(r'"(conversations|messages)"\s*:', head)
        return "messages" if found is not None and found[1] == "messages" else usual
    if isinstance(record, dict) and record.keys() & {"chosen", "rejected", "rejected_response"}:
        return "llava_pairs"
    is_messages = isinstance(record, list) or (
        isinstance(record, dict) and not record.keys().isdisjoint({"messages", "role"})
    )
    return "messages" if is_messages else usual
