"""Settings, reading and averaging that the tasks of one file share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from mmblocks.conversation import Conversation
from mmblocks.eval.document import Document, ScoredDocument
from mmblocks.eval.documents import DocumentLayout, Documents, open_documents
from mmblocks.eval.documents.joined_rows import join_rows
from mmblocks.eval.documents.opening import open_rows
from mmblocks.eval.documents.rows import DocumentRows
from mmblocks.eval.tasks._averages import average_scores
from mmblocks.eval.tasks._prompts import make_question
from mmblocks.model.generation.decoding import Decoding


@dataclass(frozen=True)
class FileTask:
    """A task whose documents are the rows of a file.

    data: a file (.json, .jsonl, .parquet, .arrow, .tsv, .csv), a pattern of parquet files, or a folder of them or of
    `save_to_disk`. images, videos: folders that names in it are relative to; its own folder without them. split: which part
    of a folder that holds several. annotations: a second file, such as one of the answers, whose records have the same ids.
    """

    data: str
    images: str | None = None
    videos: str | None = None
    split: str = ""
    annotations: str | None = None

    files: ClassVar[str] = ""
    """What is published, and where, for the page of tasks."""
    layout: ClassVar[DocumentLayout]
    metric: ClassVar[str] = ""
    """How an answer is scored, and whose scorer it equals."""
    suffix: ClassVar[str] = ""
    """What stands behind the question in the prompt."""
    decoding: ClassVar[Decoding] = Decoding(max_new_tokens=16)
    groups: ClassVar[tuple[str, ...]] = ()
    """Fields by whose values the summary has further means."""
    video_prefix: ClassVar[str] = ""
    join_fields: ClassVar[tuple[tuple[str, str], ...]] = (("question_id", "question_id"), ("id", "id"))
    """Of which one, in `data` and in `annotations`, says which records belong together."""

    def read_rows(self) -> DocumentRows:
        """The rows of the files."""
        rows = open_rows(self.data, self.split)
        return join_rows(rows, open_rows(self.annotations), self.join_fields) if self.annotations else rows

    def read_documents(self) -> Documents:
        return open_documents(
            self.read_rows(), self.layout, images=self.images, videos=self.videos, video_prefix=self.video_prefix
        )

    def ask(self, document: Document) -> Conversation:
        return make_question(document, self.write_prompt(document.fields, document.where))

    def write_prompt(self, fields: Mapping[str, Any], where: str) -> str:
        """The user's text: the question and the suffix."""
        return f"{fields['question']}{self.suffix}"

    def summarise(self, rows: Sequence[ScoredDocument]) -> Mapping[str, float]:
        return average_scores(rows, self.groups)
