"""What a benchmark found, as rows of a CSV file that can be read, drawn and compared without running anything."""

from __future__ import annotations

import csv
import datetime
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from mmblocks import __version__
from mmblocks.errors import DataError

PeerSetting = Literal["as shipped", "best", "naive"]
SHOWN = ("torch", "transformers", "triton", "xformers")


def describe_machine() -> str:
    """The GPU that numbers were measured on, or the processor where torch sees none."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return _find_processor()


@cache
def describe_versions() -> str:
    """Versions of mmblocks and of what it computes with."""
    return " ".join(
        [f"mmblocks={__version__}", *(f"{name}={found}" for name in SHOWN if (found := _find_version(name)))]
    )


@cache
def find_commit() -> str | None:
    """The commit of the checkout that mmblocks runs from, with a + where files differ from it; None outside one."""
    here = Path(__file__).parent
    if (head := _run_git(here, "rev-parse", "--short=12", "HEAD")) is None or not _run_git(here, "ls-files", "."):
        return None
    return head + "+" * bool(_run_git(here, "status", "--porcelain", "--untracked-files=no"))


def format_today() -> str:
    """The date in UTC, as 2026-01-31."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


@dataclass(frozen=True, slots=True)
class Row:
    """One quantity of one case.

    ours, peer: medians in `unit`. ratio: how many times better ours is, whichever way `unit` counts; None where there is
        nothing to compare with. peer_setting: what the peer was, and after a colon the settings it was given.
    floor_share: share of the physical floor that ours reaches, where a floor is known.
    error: relative difference of the two outputs, measured before timing.
    spread: half the distance between the quartiles of ours, as a share of its median.
    """

    suite: str
    scenario: str
    size: str
    device: str
    dtype: str
    quantity: str
    unit: str
    ours: float | None
    peer: float | None = None
    ratio: float | None = None
    peer_setting: PeerSetting | Literal[""] = ""
    settings: str = ""
    floor_share: float | None = None
    error: float | None = None
    spread: float | None = None
    command: str = ""
    machine: str = field(default_factory=describe_machine)
    versions: str = field(default_factory=describe_versions)
    commit: str | None = field(default_factory=find_commit)
    date: str = field(default_factory=format_today)


COLUMNS = tuple(f.name for f in fields(Row))
NUMBERS = ("ours", "peer", "ratio", "floor_share", "error", "spread")
KEY = ("suite", "size", "device")


def write(path: Path | str, rows: Sequence[Row]) -> None:
    """Put rows into a CSV file. Rows of the same suite, size and device that it held are replaced, others kept."""
    new = {_make_key(row) for row in rows}
    kept = [row for row in read(path) if _make_key(row) not in new]
    every = sorted([*kept, *rows], key=_make_key)  # stable: rows of one suite keep their order
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_suffix(".part")
    with beside.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(COLUMNS)
        lines.writerows([_format_cell(getattr(row, column)) for column in COLUMNS] for row in every)
    beside.replace(target)


def read(path: Path | str) -> list[Row]:
    """The rows of a CSV file; none where there is no such file. Raises `DataError` for another table."""
    source = Path(path)
    if not source.is_file():
        return []
    with source.open(newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file)
        if tuple(lines.fieldnames or ()) != COLUMNS:
            raise DataError(f"{source}: columns {lines.fieldnames}; a table of benchmarks has {list(COLUMNS)}.")
        return [_parse_row(line) for line in lines]


def _make_key(row: Row) -> tuple[str, ...]:
    return tuple(getattr(row, name) for name in KEY)


def _format_cell(value: str | float | None) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _parse_row(line: dict[str, str]) -> Row:
    numbers = {name: float(line[name]) if line[name] else None for name in NUMBERS}
    texts = {name: line[name] for name in COLUMNS if name not in (*NUMBERS, "commit")}
    return Row(**texts, **numbers, commit=line["commit"] or None)  # type: ignore[arg-type]


def _find_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _run_git(folder: Path, *words: str) -> str | None:
    """What git says, None where there is no git, no repository, or nothing to say."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None


@cache
def _find_processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in _read_lines(info) if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _read_lines(path: Path) -> Iterable[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else ()
