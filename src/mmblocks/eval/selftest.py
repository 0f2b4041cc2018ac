"""Whether the scorers on this machine give the numbers of the original ones, on the golden cases that ship with the package."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmblocks.assets import FOLDER
from mmblocks.errors import DataError
from mmblocks.eval.golden.replays import REPLAYS, Json

GOLDEN = FOLDER / "eval_golden"
"""Some of the cases of each group; the tests hold all of them."""


@dataclass(frozen=True, slots=True)
class GoldenCase:
    """One input of an original scorer and what it gave. source: its repository, commit, file and function."""

    file: str
    group: str
    number: int
    source: str
    given: Json
    want: Json

    @property
    def name(self) -> str:
        return f"{self.file}/{self.group}/{self.number}"


@dataclass(frozen=True, slots=True)
class ScoreDifference:
    """A case on which ours gives something else than the original."""

    case: GoldenCase
    got: Json


@dataclass(frozen=True, slots=True)
class ScorerResult:
    """How many cases of a group were compared, and those that differ."""

    file: str
    group: str
    source: str
    cases: int
    differences: tuple[ScoreDifference, ...]


def run_golden_cases(folder: Path = GOLDEN) -> list[ScorerResult]:
    """Every group of every file of a folder, put to our scorers."""
    groups: dict[tuple[str, str], list[GoldenCase]] = {}
    for case in read_golden_cases(folder):
        groups.setdefault((case.file, case.group), []).append(case)
    return [
        ScorerResult(file, group, cases[0].source, len(cases), tuple(filter(None, map(find_difference, cases))))
        for (file, group), cases in groups.items()
    ]


def read_golden_cases(folder: Path) -> Iterator[GoldenCase]:
    """The cases of a folder's files, in the order of their names."""
    for path in sorted(folder.glob("*.json")):
        for group, content in json.loads(path.read_text(encoding="utf-8")).get("groups", {}).items():
            for number, case in enumerate(content["cases"]):
                yield GoldenCase(path.stem, group, number, content["source"], case["in"], case["out"])


def find_difference(case: GoldenCase) -> ScoreDifference | None:
    """What ours gives, where this is not what the original gave, or what is documented where that one raises."""
    replay = REPLAYS.get(case.file, {}).get(case.group)
    if replay is None:
        raise DataError(f"{case.file}.json: nothing here gives the group {case.group!r}; it needs a Replay.")
    got = replay.give(case.given)
    if isinstance(case.want, dict) and "raises" in case.want:
        part = {k: got[k] for k in replay.where_raises} if isinstance(replay.where_raises, dict) else got
        is_equal = replay.where_raises is not None and are_equal(part, replay.where_raises, replay.tolerance)
    else:
        is_equal = are_equal(got, case.want, replay.tolerance)
    return None if is_equal else ScoreDifference(case, got)


def are_equal(got: Json, want: Json, tolerance: float) -> bool:
    """Whether two values of JSON are equal, numbers within a tolerance; a tuple is a list, not-a-number is "nan"."""
    if isinstance(want, Mapping):
        return (
            isinstance(got, Mapping)
            and got.keys() == want.keys()
            and all(are_equal(got[key], want[key], tolerance) for key in want)
        )
    if isinstance(want, str) or want is None or isinstance(got, str) or got is None:
        return got == want or (want == "nan" and isinstance(got, float) and math.isnan(got))
    if isinstance(want, Sequence):
        return len(got) == len(want) and all(are_equal(g, w, tolerance) for g, w in zip(got, want, strict=True))
    return abs(got - want) <= tolerance
