"""What a benchmark asks about: its documents, and their answers with scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmblocks.conversation import Conversation, Visual


@dataclass(frozen=True, slots=True)
class Document:
    """One question of a benchmark.

    key: unique in its task, the published id where there is one. fields: the record as published, media apart.
    visuals: images or videos in their order, not decoded. where: its file and record, for errors. cluster: the image or
    video that documents share; empty where it is not known. conversation: up to the last question, of records that hold
    messages.
    """

    key: str
    fields: Mapping[str, Any]
    visuals: tuple[Visual, ...]
    where: str
    cluster: str = ""
    conversation: Conversation | None = None


@dataclass(frozen=True, slots=True)
class ScoredDocument:
    """An answer and its scores by metric: None where no answer could be read, which counts as 0 and is reported."""

    key: str
    fields: Mapping[str, Any] = field(repr=False)
    answer: str
    scores: Mapping[str, float | None]
    cluster: str = ""

    @classmethod
    def from_document(cls, document: Document, answer: str, scores: Mapping[str, float | None]) -> ScoredDocument:
        """Without the document's visuals, which would fill the memory."""
        return cls(document.key, document.fields, answer, scores, document.cluster)
