"""Sources made of sources: a part of one, several in a row, one whose questions end in a prompt."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate
from math import ceil

import numpy as np

from mmblocks.conversation import Conversation, Item, PreferencePair, Text
from mmblocks.data.sources import Source, describe_origin, is_synthetic
from mmblocks.errors import ConfigError
from mmblocks.faults import Fault

_SUBSET = re.compile(r"(first|end|random):(\d+(?:\.\d+)?%|\d+)(?::(\d+))?")
SUBSET_CURE = "Write all, first:N, end:N or random:N (random:N:SEED), N a number or a percentage such as 10%."


def select_subset(source: Source, subset: str) -> Source:
    """The conversations of a source that `subset` names, in their order; see `choose_indices`."""
    return source if subset == "all" else SourceSubset(source, choose_indices(len(source), subset))


def choose_indices(length: int, subset: str, seed: Sequence[int] = (0,)) -> np.ndarray:
    """Which of `length` records are kept: ascending numbers, int64 (n,).

    subset: all, first:N, end:N or random:N; N is a number, or a share "10%" of which a fraction of a record is a whole
    one, as in LLaVA-NeXT's mixtures. random:N:SEED draws with that seed instead of `seed`. More than there are is all.
    """
    if fault := find_subset_fault(subset):
        raise ConfigError.from_faults([fault])
    if subset == "all":
        return np.arange(length)
    kind, amount, own = _SUBSET.fullmatch(subset).groups()  # type: ignore[union-attr]
    wanted = ceil(Fraction(amount[:-1]) * length / 100) if amount.endswith("%") else int(amount)
    size = min(length, wanted)
    if kind == "random":
        drawn = np.random.default_rng(tuple(seed) if own is None else (int(own),)).permutation(length)[:size]
        return np.sort(drawn)
    return np.arange(length)[:size] if kind == "first" else np.arange(length - size, length)


def find_subset_fault(subset: object, name: str = "subset") -> Fault | None:
    """What is wrong with a choice of records in a setting of this name; None if nothing is."""
    found = _SUBSET.fullmatch(subset) if isinstance(subset, str) else None
    if subset == "all":
        return None
    if found is None:
        return Fault(name, f"{subset!r} chooses no records.", SUBSET_CURE)
    if found[2].endswith("%") and Fraction(found[2][:-1]) > 100:
        return Fault(name, f"{subset!r} is more than there is.", "Write a percentage up to 100%.")
    if found[3] is not None and found[1] != "random":
        return Fault(name, f"{subset!r} has a seed, but nothing is drawn.", f"Write {found[1]}:{found[2]}.")
    return None


@dataclass(frozen=True, slots=True, eq=False)
class SourceSubset:
    """Some conversations of a source: those of the numbers `indices` (n,)."""

    source: Source
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Item:
        return self.source[int(self.indices[index])]

    @property
    def is_synthetic(self) -> bool:
        return is_synthetic(self.source)

    def describe_origin(self, index: int) -> str | None:
        """Where the record stands in its source."""
        return describe_origin(self.source, int(self.indices[index]))


class ConcatenatedSource:
    """Sources one after another. `names` are those of the parts in reports."""

    def __init__(self, parts: Sequence[Source], names: Sequence[str]) -> None:
        self.parts, self.names = tuple(parts), tuple(names)
        self._ends = list(accumulate(map(len, self.parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Item:
        part, number = self._locate_record(index)
        return self.parts[part][number]

    @property
    def is_synthetic(self) -> bool:
        return all(map(is_synthetic, self.parts))

    def describe_origin(self, index: int) -> str | None:
        """Where the record stands in its part."""
        part, number = self._locate_record(index)
        return describe_origin(self.parts[part], number)

    def _locate_record(self, index: int) -> tuple[int, int]:
        """The part that holds a record, and its number there."""
        number = range(len(self))[index]
        part = bisect_right(self._ends, number)
        return part, number - (self._ends[part] - len(self.parts[part]))


@dataclass(frozen=True, slots=True)
class PromptedSource:
    """A source whose questions all end in a line that says what the answer is to look like.

    "Answer the question using a single word or phrase." is LLaVA-1.5's (https://arxiv.org/abs/2310.03744, 3.2).
    """

    source: Source
    prompt: str

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Item:
        item = self.source[index]
        if isinstance(item, PreferencePair):
            return PreferencePair(self._add_prompts(item.chosen), self._add_prompts(item.rejected))
        return self._add_prompts(item)

    @property
    def is_synthetic(self) -> bool:
        return is_synthetic(self.source)

    def describe_origin(self, index: int) -> str | None:
        """Where the record stands in its source."""
        return describe_origin(self.source, index)

    def _add_prompts(self, conversation: Conversation) -> Conversation:
        messages = []
        for message in conversation.messages:
            *before, last = message.parts or (Text(""),)
            if message.role == "user" and not isinstance(last, Text):
                message = replace(message, parts=(*message.parts, Text(f"\n{self.prompt}")))
            elif message.role == "user" and isinstance(last, Text):
                text = last.text.rstrip()
                prompted = Text(f"{text}\n{self.prompt}" if text or before else self.prompt)
                message = replace(message, parts=(*before, prompted))
            messages.append(message)
        return replace(conversation, messages=tuple(messages))
