"""Records that cannot be read: raised, or left out, counted and listed. No other sample takes their place."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from mmblocks.data.mixing.mixture import Draw, Draws, Mixture
from mmblocks.data.mixing.overlong import OVERLONG_CURE, describe_overlong
from mmblocks.data.record_errors import split_reason
from mmblocks.data.records.json_lines import append_lines, read_lines
from mmblocks.data.sample.encode import Targets, TooLong
from mmblocks.data.sample.processor import Processor, Sample
from mmblocks.errors import ConfigError, DataError

Policy = Literal["raise", "skip"]
_MOST_FREQUENT = 3
_LONGEST_KIND, _LONGEST_REASON = 160, 1000
_NUMBER = re.compile(r"\d+(\.\d+)?")
_NAME = re.compile(r"\S*/\S*|\S+\.\w\S*")  # a word that names a file


@dataclass(frozen=True, slots=True)
class SkippedRecord:
    """A record that was left out: where it stands ("file:record"), why, and the source of the mixture it belongs to."""

    origin: str
    reason: str
    source: str = ""

    @property
    def kind(self) -> str:
        """The reason without what belongs to this record alone: names of files and numbers."""
        reason = self.reason[:_LONGEST_REASON]
        head, colon, rest = reason.partition(": ")
        while colon and _NAME.search(
            head
        ):  # the name of a file may have spaces: "my images/a.jpg: there is no such file"
            reason = rest
            head, colon, rest = reason.partition(": ")
        return " ".join(_NAME.sub("", _NUMBER.sub("N", reason)).split())[:_LONGEST_KIND]


def make_samples(
    mixture: Mixture, draws: Draws | Sequence[Draw], processor: Processor, targets: Targets, policy: Policy
) -> tuple[list[Sample], list[SkippedRecord]]:
    """The samples of these draws in their order, and with policy "skip" the records that gave none.

    A draw gives all samples of its item or none (a pair gives two). Nothing replaces a broken record, so there may be no
    sample at all. A record is broken if it raises a `DataError` (`record_errors` makes one of any error of a record). With
    policy "raise" the error is passed on, except that of a sample over the limit of tokens with overlong="skip".
    """
    if policy not in get_args(Policy):
        raise ConfigError(f"broken={policy!r}; write one of {', '.join(get_args(Policy))}.")
    samples: list[Sample] = []
    skipped: list[SkippedRecord] = []
    for draw in (draws[n] for n in range(len(draws))):
        try:
            samples += processor.make_training_samples(mixture[draw], targets)
        except DataError as fault:
            too_long = isinstance(fault, TooLong)
            if policy == "raise" and too_long and processor.overlong != "skip":
                raise TooLong(
                    f"{fault} {describe_overlong(mixture, draw, processor, targets)} {OVERLONG_CURE}"
                ) from fault
            if policy == "raise" and not too_long:
                raise
            try:
                origin = mixture[draw].origin
            except DataError:  # there is not even a conversation
                origin = mixture.describe_origin(draw)
            skipped.append(SkippedRecord(*split_reason(fault, origin), mixture.names[draw.source]))
    return samples, skipped


def append_skipped(file: Path, skipped: Iterable[SkippedRecord]) -> None:
    """Add records to the list of a run; several processes may do so at once."""
    append_lines(file, map(asdict, skipped))


def read_skipped(file: Path) -> list[SkippedRecord]:
    """The records of a run's list, each once, however often it was drawn or the run was resumed."""
    first: dict[str, SkippedRecord] = {}
    for line in read_lines(file):
        record = SkippedRecord(*(str(line.get(key, "")) for key in ("origin", "reason", "source")))
        # The first reason is the true one: the next time, a video that hung is merely found in quarantine.
        first.setdefault(record.origin, record)
    return list(first.values())


def format_skipped(skipped: Iterable[SkippedRecord], sizes: Mapping[str, int]) -> list[str]:
    """A line per source that lost records: "source: n of m records left out: k x reason; ...", most frequent first.

    `sizes` says how many records a source holds (see `count_records`).
    """
    kinds: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for record in skipped:
        kinds[record.source][record.kind] += 1
    lines = []
    for source, counts in sorted(kinds.items()):
        common = counts.most_common(_MOST_FREQUENT)
        reasons = [f"{count} x {kind}" for kind, count in common]
        if rest := counts.total() - sum(count for _, count in common):
            reasons.append(f"{rest} x other reasons")
        of = f" of {sizes[source]}" if source in sizes else ""
        lines.append(f"{source or 'unknown source'}: {counts.total()}{of} records left out: {'; '.join(reasons)}")
    return lines


def count_records(mixture: Mixture) -> dict[str, int]:
    """Records of each source by the name that reports call it."""
    return {name: len(source) for name, source in zip(mixture.names, mixture.sources, strict=True)}
