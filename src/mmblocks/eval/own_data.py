"""Anyone's records as a task: the last answer of each conversation is the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from mmblocks.conversation import Conversation, Visual
from mmblocks.data.record_errors import name_errors
from mmblocks.data.sources import Source, describe_origin, sources
from mmblocks.data.sources.guess import guess_source
from mmblocks.errors import ConfigError, DataError
from mmblocks.eval.document import Document, ScoredDocument
from mmblocks.eval.judge.references import METRIC as JUDGE
from mmblocks.eval.metrics.general import METRICS
from mmblocks.eval.tasks import Scores
from mmblocks.eval.tasks._averages import average_scores
from mmblocks.model.generation.decoding import Decoding
from mmblocks.model.generation.results import Score
from mmblocks.settings import format_suggestion

LOSS, TOKENS = "loss", "tokens"
MAX_EXPONENT = 700.0


@dataclass(frozen=True, slots=True)
class OwnDocuments:
    """The conversations of a source, each read on access."""

    source: Source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, number: int) -> Document:
        where = describe_origin(self.source, number) or f"record {number}"
        with name_errors(where):
            return _make_document(self.source[number], f"#{number}", where)


def _make_document(item: object, key: str, where: str) -> Document:
    if not isinstance(item, Conversation):
        raise DataError(f"{where}: it is no conversation; evaluate records of a question and an answer.")
    *earlier, last = item.messages
    if last.role != "assistant" or not earlier:
        raise DataError(f"{where}: its last turn is no answer, which is the reference; end the record with an answer.")
    visuals = item.visuals
    fields = {"question": earlier[-1].text, "references": [last.text]}
    conversation = replace(item, messages=tuple(earlier))
    return Document(key, fields, visuals, where, _name_shared(visuals), conversation)


def _name_shared(visuals: Sequence[Visual]) -> str:
    """The file of the first image or video, which other records may show too."""
    source = visuals[0].source if visuals else ""
    return str(source) if isinstance(source, str | Path) else ""


@dataclass(frozen=True)
class OwnRecords:
    """The records of a file that training reads.

    data: a file or folder, whose source is found by its name (`mmblocks.data.sources.guess`). images, videos: folders that
    paths in it are relative to. ignore: keys of its records that need not be known.
    """

    data: str
    images: str | None = None
    videos: str | None = None
    ignore: tuple[str, ...] = ()

    def read_documents(self) -> OwnDocuments:
        given = {"images": self.images, "videos": self.videos, "ignore": [*self.ignore] or None}
        settings = {name: value for name, value in given.items() if value is not None}
        return OwnDocuments(sources.build({**guess_source(self.data), **settings}))

    def ask(self, document: Document) -> Conversation:
        if document.conversation is None:
            raise DataError(f"{document.where}: it holds no conversation; ask documents that `read_documents` gives.")
        return document.conversation


@dataclass(frozen=True)
class OwnData(OwnRecords):
    """Generated answers to the last question of each record, scored by a metric of `mmblocks.eval.metrics.general` or a judge."""

    metric: str = "exact"

    decoding: ClassVar[Decoding] = Decoding()

    def __post_init__(self) -> None:
        if self.metric == LOSS:
            raise ConfigError(f"metric={LOSS!r} generates no answers; OwnLoss computes it.")
        if self.metric not in (known := [*METRICS, JUDGE]):
            raise ConfigError(f"metric={self.metric!r} is not known.{format_suggestion(self.metric, [*known, LOSS])}")

    def score(self, document: Document, answer: str) -> Scores:
        if self.metric == JUDGE:
            return {}
        return {self.metric: METRICS[self.metric](answer, document.fields["references"])}

    def summarise(self, rows: Sequence[ScoredDocument]) -> Mapping[str, float]:
        return average_scores(rows)


@dataclass(frozen=True)
class OwnLoss(OwnRecords):
    """The loss of the last answer of each record: minus the mean log-probability of its tokens, without an end token.

    The loss of the file is the mean over all tokens, perplexity its exponential.
    """

    metric: Literal["loss"] = LOSS

    def list_continuations(self, document: Document) -> Sequence[str]:
        return document.fields["references"]

    def score_likelihoods(self, document: Document, likelihoods: Sequence[Score]) -> Scores:
        (only,) = likelihoods
        return {LOSS: -only.log_prob / only.tokens, TOKENS: float(only.tokens)}

    def summarise(self, rows: Sequence[ScoredDocument]) -> Mapping[str, float]:
        sums = [(row.scores[TOKENS] or 0.0, row.scores[LOSS] or 0.0) for row in rows]
        tokens = math.fsum(n for n, _ in sums)
        loss = math.fsum(n * loss for n, loss in sums) / tokens
        return {LOSS: loss, "perplexity": math.exp(min(loss, MAX_EXPONENT)), TOKENS: tokens}
