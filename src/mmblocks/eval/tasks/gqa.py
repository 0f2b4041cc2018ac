from pathlib import Path
from typing import ClassVar

from mmblocks.eval.document import Document
from mmblocks.eval.documents import DocumentLayout, Documents, open_documents
from mmblocks.eval.documents.joined_rows import join_rows
from mmblocks.eval.documents.opening import open_rows
from mmblocks.eval.metrics import gqa
from mmblocks.eval.tasks import Scores, tasks
from mmblocks.eval.tasks._base import FileTask
from mmblocks.eval.tasks._prompts import SHORT_ANSWER


@tasks.register("gqa", source="https://arxiv.org/abs/1902.09506", verified_against="lmms-eval")
class GQA(FileTask):
    """GQA testdev-balanced: exact match without case and punctuation. images: a folder, or the parquet files of the images."""

    files: ClassVar = (
        "lmms-lab/GQA: *_balanced_instructions, and *_balanced_images as images=; or GQA's questions .json"
    )
    layout: ClassVar = DocumentLayout(
        required={"question": (), "answer": ()}, images=("image", "imageId"), cluster=("imageId",)
    )
    suffix: ClassVar = SHORT_ANSWER
    metric: ClassVar = "exact match without case and punctuation"

    def read_documents(self) -> Documents:
        if self.images is None or not _holds_tables(Path(self.images)):
            return super().read_documents()
        rows = join_rows(self.read_rows(), open_rows(self.images, self.split), [("imageId", "id")])
        return open_documents(rows, self.layout)

    def score(self, document: Document, answer: str) -> Scores:
        return {"accuracy": gqa.score_exact(answer, str(document.fields["answer"]))}


def _holds_tables(path: Path) -> bool:
    return path.suffix in (".parquet", ".arrow") or (path.is_dir() and any(path.rglob("*.parquet")))
