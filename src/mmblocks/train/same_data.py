"""Whether a stage that goes on finds the data that it stopped on: the records' fingerprints beside its states."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from mmblocks.conversation import Conversation, Item, PreferencePair
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
"""Images of a record that a message names."""


class RecordsFile(NamedTuple):
    """Where the fingerprints of a stage's records are kept, once for all its states. what: "records" or "held_out"."""

    out: Path
    stage: int
    what: str = "records"

    def write(self, records: Fingerprints) -> str:
        """Write fingerprints, whole or not at all; returns the digest that names them. Those of stages before are removed."""
        folder = self.out / STATE
        path = self._to_path(records.digest)
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            columns: Any = {one.name: np.asarray(getattr(records, one.name)) for one in fields(records)}
            with replace_file(path) as file:
                np.savez(file, **columns)
        for stage in range(self.stage):
            for old in folder.glob(f"{self.what}-{stage}-*"):
                old.unlink(missing_ok=True)
        return records.digest

    def read(self, digest: str) -> Fingerprints | None:
        """The fingerprints of that digest; None where they are gone or not whole."""
        found = self._read_path(self._to_path(digest))
        return found if found is not None and found.digest == digest else None

    def read_latest(self) -> Fingerprints | None:
        """What was kept last, whatever it is: files that still look as they did then need not be read again."""
        kept = sorted((self.out / STATE).glob(f"{self.what}-{self.stage}-*.npz"), key=lambda path: path.stat().st_mtime)
        return self._read_path(kept[-1]) if kept else None

    def _to_path(self, digest: str) -> Path:
        return self.out / STATE / f"{self.what}-{self.stage}-{digest}.npz"

    def _read_path(self, path: Path) -> Fingerprints | None:
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
                sizes, *columns = (kept[one.name] for one in fields(Fingerprints))
            return Fingerprints(tuple(sizes.tolist()), *columns)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None


@dataclass(frozen=True, slots=True)
class DataComparison:
    """The comparison of stage `number`'s data with those that it stopped on. Each call returns what to note beside states."""

    out: Path
    number: int
    name: str
    accepts_changes: bool

    def check_stage_data(self, data: StageData, notes: Mapping[str, Any]) -> dict[str, str]:
        """Raises `DataError` with the first difference, or warns of it where changes are accepted."""
        assert data.records is not None, "the first process has looked at the records"
        file, digest = RecordsFile(self.out, self.number), data.records.digest
        if notes and (notes["data"], notes.get("records", digest)) != (data.digest, digest):
            self._tell(self._difference(file.read(notes.get("records", "")), data), notes["step"])
        return {"data": data.digest, "records": file.write(data.records)}

    def check_held_out(self, evaluate: Evaluation | None, seed: int, notes: Mapping[str, Any]) -> dict[str, str]:
        """Warns where what is measured has changed: losses before and after are not to be compared."""
        if evaluate is None or not evaluate.data:
            return {}
        file = RecordsFile(self.out, self.number, "held_out")
        mixture, now = fingerprint_held_out(evaluate, seed, file.read_latest())
        then = None if (digest := notes.get("held_out", now.digest)) == now.digest else file.read(digest)
        if digest != now.digest:
            what = "records have changed" if then is None else find_first_difference(then, now, mixture)
            log.warning("evaluate.data is not as it was: %s. Losses before and after are not to be compared.", what)
        return {"held_out": file.write(now)}

    def _difference(self, then: Fingerprints | None, data: StageData) -> str:
        known = (
            None if then is None or data.records is None else find_first_difference(then, data.records, data.mixture)
        )
        return known or "its records are drawn or packed in another way"

    def _tell(self, difference: str, step: int) -> None:
        if not self.accepts_changes:
            raise DataError(
                f"stage {self.name!r} was at step {step} of other data: {difference.rstrip('.')}. Put the data back as they "
                "were, go on with what is there now by resume_changed_data=true, or begin anew with resume=false."
            )
        log.warning(
            "resume_changed_data: stage %r goes on from step %d with other data: %s", self.name, step, difference
        )


def find_first_difference(then: Fingerprints, now: Fingerprints, mixture: Mixture) -> str | None:
    """What of the data of `now`, those of `mixture`, is not as it was: how many records there are, and the first record of
    both, in the order of the files, that says or shows something else. None where nothing tells them apart.
    """
    said = [
        f"{name!r} held {before} records then and holds {after} now"
        for name, before, after in zip(mixture.names, then.sizes, now.sizes, strict=False)
        if before != after
    ]
    if len(then.sizes) != len(now.sizes):
        said.insert(0, f"the data were {len(then.sizes)} files or sources then and are {len(now.sizes)} now")
    old, new = then.map_by_draw(), now.map_by_draw()
    both = [draw for draw in new if draw in old]
    changed = [draw for draw in both if not new[draw].has_same_content(old[draw])]
    if changed:
        first = changed[0]
        more = f" ({len(changed)} of the {len(both)} records that are drawn differ)" if len(changed) > 1 else ""
        said.append(f"{_describe_change(first, then, now, mixture)}{more}")
    if not said and old.keys() != new.keys():
        said.append("other records are drawn")
    return "; ".join(said) or None


def _describe_change(draw: Draw, then: Fingerprints, now: Fingerprints, mixture: Mixture) -> str:
    """How a record differs."""
    before, after = then.map_by_draw()[draw], now.map_by_draw()[draw]
    try:
        item: Item = mixture[draw]
    except DataError as fault:
        return f"{fault} It could be read then"
    if not after.text:
        return f"{item.origin} could be used then, and cannot be now"
    if not before.text:
        return f"{item.origin} could not be used then, and can be now"
    if before.text == after.text:
        return f"{item.origin} shows another image or video under the same name: {_names(item)}"
    if (place := _moved_from(draw, then, now)) is not None:
        return f"the records stand in another order: {item.origin} says what {mixture.describe_origin(Draw(draw.source, place))} said"
    return f"{item.origin} says something else: its text was edited"


def _moved_from(draw: Draw, then: Fingerprints, now: Fingerprints) -> int | None:
    """The number that a record had then, where it only stands elsewhere now, and what stood here is still there."""
    here_then, here_now = then.source == draw.source, now.source == draw.source
    text = {
        kind: f.text[here & (f.record == draw.record)]
        for kind, f, here in (("then", then, here_then), ("now", now, here_now))
    }
    places = then.record[here_then & (then.text == text["now"])]
    return int(places[0]) if len(places) and (now.text[here_now] == text["then"]).any() else None


def _names(item: Item) -> str:
    shown: Conversation = item.chosen if isinstance(item, PreferencePair) else item
    names = [describe_source(visual.source, visual.kind) for visual in shown.visuals]
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return f"{', '.join(names[:_MAX_NAMED])}{more}"
