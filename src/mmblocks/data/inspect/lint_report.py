"""Faults of samples by kind and by source, as `mmblocks.data.inspect.lint` finds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mmblocks.conversation import Conversation
from mmblocks.data.sample.encode import Encoded
from mmblocks.errors import DataError

FindingKind = Literal[
    "broken", "nothing_trained", "too_long", "given_trained", "no_end", "cut", "visuals", "shifted", "control"
]
FINDING_KINDS: dict[FindingKind, str] = {
    "broken": "cannot be read",
    "nothing_trained": "no trained token",
    "too_long": "longer than the limit of tokens",
    "given_trained": "trained text that the assistant did not say",
    "no_end": "the end of a turn is not trained",
    "cut": "an answer is not trained to its end",
    "visuals": "visual tokens differ from the plans",
    "shifted": "a trained token is not the one that follows",
    "control": "text that looks like the chat template's own",
}
SKIPPABLE_KINDS: tuple[FindingKind, ...] = ("broken", "nothing_trained", "too_long")
"""Kinds that a run with broken=skip leaves out of training, and so may pass over."""
REMARK_KINDS: tuple[FindingKind, ...] = ("control",)
"""Kinds that are reported and refuse nothing."""
MAX_EXAMPLES = 3
"""Origins named for each kind of fault of a source."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault of one sample. `detail` says it with the sample's own words and numbers; `tokens` of one that is too long."""

    kind: FindingKind
    origin: str
    detail: str
    tokens: int = 0

    def __str__(self) -> str:
        return f"{self.origin}: {self.detail}"


@dataclass(frozen=True, slots=True)
class LintedConversation:
    """A checked conversation: what it encodes to, None where it cannot be encoded, and its faults.

    One beyond the limit is encoded without it, unless the processor cuts its last answer.
    """

    conversation: Conversation
    encoded: Encoded | None
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class SourceLint:
    """Faults of one source: `num_checked` samples of its `size` records, and the findings of each faulty one.

    cut: for each sample whose last answer is cut to the limit, the tokens that it loses; that is no fault.
    """

    name: str
    size: int
    num_checked: int
    faulty: tuple[tuple[Finding, ...], ...]
    cut: tuple[int, ...] = ()

    @classmethod
    def from_conversations(cls, name: str, size: int, checked: Sequence[LintedConversation]) -> SourceLint:
        cut = tuple(one.encoded.num_cut for one in checked if one.encoded is not None and one.encoded.num_cut)
        return cls(name, size, len(checked), tuple(one.findings for one in checked if one.findings), cut)

    @property
    def counts(self) -> dict[FindingKind, int]:
        """Samples by kind of fault, kinds without any left out."""
        found: dict[FindingKind, int] = {
            kind: sum(kind in {f.kind for f in findings} for findings in self.faulty) for kind in FINDING_KINDS
        }
        return {kind: count for kind, count in found.items() if count}

    def format_lines(self) -> Iterator[str]:
        """The source, and each kind of fault with the first samples that have it."""
        yield f"{self.name}: {len(self.faulty) or 'no'} faulty of {self.num_checked} looked at ({self.size} records)"
        for kind, count in self.counts.items():
            longest = max(finding.tokens for findings in self.faulty for finding in findings)
            cure = f"; with max_tokens={longest} none would be" if kind == "too_long" else ""
            yield f"  {count} x {FINDING_KINDS[kind]}{cure}"
            of_kind = [finding for findings in self.faulty for finding in findings if finding.kind == kind]
            yield from (f"    {finding}" for finding in of_kind[:MAX_EXAMPLES])
        if self.cut:
            yield f"  {len(self.cut)} x cut at the end of the last answer, {sum(self.cut)} tokens in all"


@dataclass(frozen=True, slots=True)
class LintReport:
    """Faults by source."""

    sources: tuple[SourceLint, ...]

    @property
    def counts(self) -> dict[FindingKind, int]:
        """Samples by kind of fault, over all sources."""
        sums: dict[FindingKind, int] = {
            kind: sum(source.counts.get(kind, 0) for source in self.sources) for kind in FINDING_KINDS
        }
        return {kind: count for kind, count in sums.items() if count}

    def __str__(self) -> str:
        return "\n".join(line for source in self.sources for line in source.format_lines())

    def require_no_faults(self, *, skip_broken: bool = False, skip_overlong: bool = False) -> None:
        """Raise one `DataError` that lists every fault.

        skip_broken: pass over samples that are left out of training anyway (`SKIPPABLE_KINDS`), unless a source has no others.
        skip_overlong: the same of those that are too long alone.
        """
        passed: tuple[FindingKind, ...] = SKIPPABLE_KINDS if skip_broken else ("too_long",) if skip_overlong else ()
        wrong = []
        for source in self.sources:
            kinds = [{finding.kind for finding in findings} - set(REMARK_KINDS) for findings in source.faulty]
            num_skipped = sum(not of_sample.isdisjoint(passed) for of_sample in kinds)
            has_faults = any(of_sample and of_sample.isdisjoint(passed) for of_sample in kinds)
            if has_faults or 0 < num_skipped >= source.num_checked:
                wrong.append(source)
        if wrong:
            listed = "\n".join(line for source in wrong for line in source.format_lines())
            raise DataError(
                f"these samples would not train what they should:\n{listed}\n"
                "Mend or drop the records, raise max_tokens or set `overlong`, or choose another chat template; "
                "`mmblocks inspect RECIPE --record N` shows what is trained."
            )
