"""ScienceQA's folder: problems.json, pid_splits.json, and images by split and problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmblocks.data.media.files import is_existing_path
from mmblocks.data.records.json_records import open_json, refuse_duplicates
from mmblocks.errors import DataError

PROBLEMS, SPLITS = "problems.json", "pid_splits.json"


@dataclass(frozen=True, slots=True)
class ScienceQARows:
    """The problems of a split, in the order of pid_splits.json. A problem's `image` becomes a path below the folder."""

    folder: Path
    split: str
    ids: Sequence[str]
    problems: Mapping[str, Any]

    @property
    def columns(self) -> Sequence[str]:
        return list(self.read_row(0)) if self.ids else []

    def __len__(self) -> int:
        return len(self.ids)

    def read_row(self, number: int) -> Mapping[str, Any]:
        key, where = self.ids[number], self.describe_origin(number)
        problem = self.problems.get(key)
        if not isinstance(problem, Mapping):
            raise DataError(f"{where}: {SPLITS} lists it, but {self.folder / PROBLEMS} does not hold it; add it.")
        refuse_duplicates(problem, where)
        row = {"id": key, **problem}
        if problem.get("image"):
            places = [f"images/{self.split}/{key}", f"{self.split}/{key}", f"images/{key}", key]
            paths = [f"{place}/{problem['image']}" for place in places]
            row["image"] = next((one for one in paths if is_existing_path(self.folder / one)), paths[0])
        return row

    def read_values(self, names: Sequence[str]) -> list[tuple[object, ...] | None]:
        problems = ({"id": key, **(self.problems.get(key) or {})} for key in self.ids)
        return [tuple(problem.get(name) for name in names) for problem in problems]

    def describe_origin(self, number: int) -> str:
        return f"{self.folder / PROBLEMS}:problem {self.ids[number]}"


def open_scienceqa_rows(folder: Path, split: str) -> ScienceQARows:
    """The problems of a split ("test", "val", "minitest", ...)."""
    contents = {}
    for name in (PROBLEMS, SPLITS):
        if not (folder / name).is_file():
            raise DataError(f"{folder}: there is no {name}; ScienceQA's folder holds {PROBLEMS} and {SPLITS}.")
        contents[name] = open_json(folder / name)
        if not isinstance(contents[name], Mapping):
            raise DataError(f"{folder / name}: it holds {contents[name]!r:.80}; an object was expected.")
        refuse_duplicates(contents[name], str(folder / name))
    splits = contents[SPLITS]
    if split not in splits:
        raise DataError(f"{folder / SPLITS}: there is no split {split!r}; write split= one of {', '.join(splits)}.")
    return ScienceQARows(folder, split, [str(one) for one in splits[split]], contents[PROBLEMS])
