"""Samples over the limit of tokens: how many of a source there are and which limit takes them all; which were cut."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    """What the samples of one record lost: one `Cut` for all of them, none where they are whole."""
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
    return max(len(encoded) for encoded in replace(processor, max_tokens=None).encode_item(item, targets))


def describe_overlong(mixture: Mixture, draw: Draw, processor: Processor, targets: Targets) -> str:
    """How many records of the source of a record that is too long are so, and which limit takes them all.

    Told from headers: of all records of a small source, of this one and of others that are evenly drawn from a large one.
    """
    size = len(mixture.sources[draw.source])
    records = {*map(int, choose_records(size, MAX_CHECKED)), draw.record}
    lengths = [_tokens_over(mixture, Draw(draw.source, record), processor, targets) for record in records]
    return format_overlong(mixture.names[draw.source], [tokens for tokens in lengths if tokens], len(records), size)


def format_overlong(name: str, too_long: Sequence[int], looked_at: int, size: int) -> str:
    """The same in words. too_long: the tokens of those of `looked_at` of the source's records that are too long."""
    of = f"the {size} records" if looked_at == size else f"{looked_at} of the {size} records"
    are = "is" if len(too_long) == 1 else "are"
    return f"Of {of} of {name!r} {len(too_long)} {are} too long; with max_tokens={max(too_long)} none would be."


def _tokens_over(mixture: Mixture, draw: Draw, processor: Processor, targets: Targets) -> int:
    """Tokens of a record that is too long; 0 for one that is not, or cannot be read."""
    try:
        item = mixture[draw]
        try:
            processor.encode_item(item, targets)
        except TooLong:
            return count_item_tokens(item, processor, targets)
    except DataError:
        pass
    return 0
