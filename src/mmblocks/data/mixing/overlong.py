"""Samples over the limit of tokens: how many a source has and which limit takes them all; which were cut."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mmblocks.conversation import Item
from mmblocks.data.inspect.lint import choose_records
from mmblocks.data.mixing.mixture import Draw, Mixture
from mmblocks.data.records.json_lines import append_lines, read_lines
from mmblocks.data.sample.encode import Targets, TooLong
from mmblocks.data.sample.processor import Processor, Sample
from mmblocks.errors import DataError

MAX_CHECKED = 200
"""Records of a source whose headers are read to say how many are too long, where their lengths are not known."""
OVERLONG_CURE = "Or write overlong: skip, or overlong: cut_answer, in the stage."


@dataclass(frozen=True, slots=True)
class CutRecord:
    """A record whose samples lost so many tokens at the end of their last answers, and its source of the mixture."""

    origin: str
    tokens: int
    source: str


def list_cuts(samples: Sequence[Sample], source: str) -> list[CutRecord]:
    """What the samples of one record lost: one `CutRecord` for all of them, none where they are whole."""
    lost = sum(sample.encoded.num_cut for sample in samples)
    return [CutRecord(samples[0].encoded.origin, lost, source)] if lost else []


def append_cuts(file: Path, cut: Iterable[CutRecord]) -> None:
    """Add records to the list of a run; several processes may do so at once."""
    append_lines(file, map(asdict, cut))


def format_cuts(file: Path, sizes: Mapping[str, int]) -> Iterator[str]:
    """A line per source of a run's list: how many records were cut, each counted once, and how many tokens they lost."""
    found: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for line in read_lines(file):
        found[str(line.get("source", ""))][str(line.get("origin", ""))] = int(line.get("tokens", 0))
    for source, tokens in sorted(found.items()):
        of = f" of {sizes[source]}" if source in sizes else ""
        yield f"{source}: {len(tokens)}{of} records lost {sum(tokens.values())} tokens at the end of their last answer"


def count_item_tokens(item: Item, processor: Processor, targets: Targets) -> int:
    """Tokens of the longest sample of an item, whatever the limit."""
    return max(map(len, replace(processor, max_tokens=None).make_item_runs(item, targets)))


def describe_overlong(mixture: Mixture, draw: Draw, processor: Processor, targets: Targets) -> str:
    """How many records of a source are too long, as that of `draw` is, and the limit that takes them all.

    Measured from headers: of all records of a small source, of this one and of an even sample of a large one.
    """
    size = len(mixture.sources[draw.source])
    records = {*map(int, choose_records(size, MAX_CHECKED)), draw.record}
    too_long = []
    for record in records:
        with suppress(DataError):  # of records that cannot be read, nothing is said here
            item = mixture[Draw(draw.source, record)]
            try:
                processor.make_item_runs(item, targets)
            except TooLong:
                too_long.append(count_item_tokens(item, processor, targets))
    return format_overlong(mixture.names[draw.source], too_long, len(records), size)


def format_overlong(name: str, too_long: Sequence[int], num_checked: int, size: int) -> str:
    """That as a sentence. too_long: the tokens of each record that is too long, of `num_checked` records."""
    of = f"the {size} records" if num_checked == size else f"{num_checked} of the {size} records"
    are = "is" if len(too_long) == 1 else "are"
    return f"Of {of} of {name!r} {len(too_long)} {are} too long; with max_tokens={max(too_long)} none would be."
