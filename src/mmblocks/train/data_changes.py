"""Whether a stage that resumes finds the data that it stopped on: fingerprints of its records are kept with its states."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from mmblocks.conversation import PreferencePair
from mmblocks.data.media.files import describe_source
from mmblocks.data.mixing.fingerprints import Fingerprints
from mmblocks.data.mixing.mixture import Draw, Mixture
from mmblocks.errors import DataError
from mmblocks.storage import replace_file
from mmblocks.train.plan import StageData
from mmblocks.train.reports.evaluation import fingerprint_held_out
from mmblocks.train.stages import Evaluation
from mmblocks.train.state import STATE

log = logging.getLogger(__name__)

_MAX_NAMED = 3
"""Images of a record that a message lists."""


class RecordsFile(NamedTuple):
    """The file with the fingerprints of a stage's records, one for all its states. what: "records" or "held_out"."""

    out: Path
    stage: int
    what: str = "records"

    def write(self, records: Fingerprints) -> str:
        """Write fingerprints atomically and return the digest that names them. Those of earlier stages are removed."""
        folder = self.out / STATE
        path = self._to_path(records.digest)
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            columns: Any = {column.name: np.asarray(getattr(records, column.name)) for column in fields(records)}
            with replace_file(path) as file:
                np.savez(file, **columns)
        for stage in range(self.stage):
            for old in folder.glob(f"{self.what}-{stage}-*"):
                old.unlink(missing_ok=True)
        return records.digest

    def read(self, digest: str) -> Fingerprints | None:
        """The fingerprints of that digest; None where they are gone or damaged."""
        records = self._read_path(self._to_path(digest))
        return records if records is not None and records.digest == digest else None

    def read_latest(self) -> Fingerprints | None:
        """The fingerprints written last: files whose size and time are the same need not be read again."""
        kept = sorted((self.out / STATE).glob(f"{self.what}-{self.stage}-*.npz"), key=lambda path: path.stat().st_mtime)
        return self._read_path(kept[-1]) if kept else None

    def _to_path(self, digest: str) -> Path:
        return self.out / STATE / f"{self.what}-{self.stage}-{digest}.npz"

    def _read_path(self, path: Path) -> Fingerprints | None:
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
                sizes, *columns = (kept[column.name] for column in fields(Fingerprints))
            return Fingerprints(tuple(sizes.tolist()), *columns)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None


@dataclass(frozen=True, slots=True)
class DataComparison:
    """Compares the data of stage `number` with those it stopped on. Each call returns notes to save with its states."""

    out: Path
    number: int
    name: str
    accepts_changes: bool

    def check_stage_data(self, data: StageData, notes: Mapping[str, Any]) -> dict[str, str]:
        """Raises `DataError` with the first difference, or logs it where changes are accepted."""
        assert data.records is not None, "rank 0 has fingerprinted the records"
        file, digest = RecordsFile(self.out, self.number), data.records.digest
        if notes and (notes["data"], notes.get("records", digest)) != (data.digest, digest):
            before = file.read(notes.get("records", ""))
            difference = None if before is None else find_first_difference(before, data.records, data.mixture)
            difference = (difference or "its records are drawn or packed in another way").rstrip(".")
            if not self.accepts_changes:
                raise DataError(
                    f"stage {self.name!r} was at step {notes['step']} of other data: {difference}. Put the data back as they "
                    "were, resume with the changed data by resume_changed_data=true, or begin anew with resume=false."
                )
            log.warning(
                "resume_changed_data: stage %r resumes at step %d with other data: %s",
                self.name,
                notes["step"],
                difference,
            )
        return {"data": data.digest, "records": file.write(data.records)}

    def check_held_out(self, evaluate: Evaluation | None, seed: int, notes: Mapping[str, Any]) -> dict[str, str]:
        """Warns where the held-out data have changed, since losses before and after cannot be compared."""
        if evaluate is None or not evaluate.data:
            return {}
        file = RecordsFile(self.out, self.number, "held_out")
        mixture, now = fingerprint_held_out(evaluate, seed, file.read_latest())
        if (digest := notes.get("held_out", now.digest)) != now.digest:
            before = file.read(digest)
            change = "records have changed" if before is None else find_first_difference(before, now, mixture)
            log.warning("evaluate.data has changed: %s. Losses before and after cannot be compared.", change)
        return {"held_out": file.write(now)}


def find_first_difference(before: Fingerprints, now: Fingerprints, mixture: Mixture) -> str | None:
    """How the data of `now`, read from `mixture`, differ from those before: numbers of records, and the first record, in the
    order of the files, whose text or media differ. None where there is no difference.
    """
    differences = [
        f"{name!r} held {then} records then and holds {size} now"
        for name, then, size in zip(mixture.names, before.sizes, now.sizes, strict=False)
        if then != size
    ]
    if len(before.sizes) != len(now.sizes):
        differences.insert(0, f"the data were {len(before.sizes)} files or sources then and are {len(now.sizes)} now")
    old, new = before.map_by_draw(), now.map_by_draw()
    both = [draw for draw in new if draw in old]
    changed = [draw for draw in both if not new[draw].has_same_content(old[draw])]
    if changed:
        more = f" ({len(changed)} of the {len(both)} records that are drawn differ)" if len(changed) > 1 else ""
        differences.append(f"{_describe_change(changed[0], before, now, mixture)}{more}")
    if not differences and old.keys() != new.keys():
        differences.append("other records are drawn")
    return "; ".join(differences) or None


def _describe_change(draw: Draw, before: Fingerprints, now: Fingerprints, mixture: Mixture) -> str:
    """How a record differs, and where it stands now if it was only moved."""
    try:
        item = mixture[draw]
    except DataError as fault:
        return f"{fault} It could be read then"
    old_text, new_text = before.map_by_draw()[draw].text, now.map_by_draw()[draw].text
    if not new_text:
        return f"{item.origin} could be used then, and cannot be now"
    if not old_text:
        return f"{item.origin} could not be used then, and can be now"
    if old_text == new_text:
        shown = item.chosen if isinstance(item, PreferencePair) else item
        names = [describe_source(visual.source, visual.kind) for visual in shown.visuals]
        more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
        return f"{item.origin} shows another image or video under the same name: {', '.join(names[:_MAX_NAMED])}{more}"
    old_records = before.record[(before.source == draw.source) & (before.text == new_text)]
    if len(old_records) and ((now.source == draw.source) & (now.text == old_text)).any():
        moved_from = mixture.describe_origin(Draw(draw.source, int(old_records[0])))
        return f"the records stand in another order: {item.origin} says what {moved_from} said"
    return f"{item.origin} says something else: its text was edited"
