from collections.abc import Mapping
from typing import Any, ClassVar

from mmblocks.errors import DataError
from mmblocks.eval.document import Document
from mmblocks.eval.documents import DocumentLayout
from mmblocks.eval.documents.extended_rows import ExtendedRows
from mmblocks.eval.documents.rows import DocumentRows
from mmblocks.eval.metrics import general
from mmblocks.eval.tasks import Scores, tasks
from mmblocks.eval.tasks._base import FileTask


@tasks.register("nlvr2", source="https://arxiv.org/abs/1811.00491")
class NLVR2(FileTask):
    """NLVR2: whether a statement about two images is true. The prompt is ours; the published models are fine-tuned."""

    files: ClassVar = "dev.json or test1.json, lines with sentence, label and identifier, with images=; or a table with left_image, right_image"
    layout: ClassVar = DocumentLayout(
        required={"question": ("sentence",), "answer": ("label",)},
        key=(("identifier",), ("question_id",), ("id",)),
        images=("images",),
        cluster=(),
    )
    suffix: ClassVar = "\nIs this statement about the two images true or false? Answer with a single word."
    metric: ClassVar = "exact match with true or false"

    def read_rows(self) -> DocumentRows:
        return ExtendedRows(super().read_rows(), ("images",), _find_images)

    def write_prompt(self, fields: Mapping[str, Any], where: str) -> str:
        if str(fields["answer"]).lower() not in ("true", "false"):
            raise DataError(f"{where}: the answer is {fields['answer']!r:.80}; NLVR2's are true and false.")
        return f"{fields['question']}{self.suffix}"

    def score(self, document: Document, answer: str) -> Scores:
        return {"accuracy": general.score_exact(answer, [str(document.fields["answer"])])}


def _find_images(row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Both images of a row, in their order: "dev-1-0-2" has dev-1-0-img0.png and dev-1-0-img1.png."""
    if "left_image" in row:
        return {"images": [row["left_image"], row["right_image"]]}
    if "images" in row or "identifier" not in row:
        return {}
    stem = str(row["identifier"]).rpartition("-")[0]
    return {"images": [f"{stem}-img0.png", f"{stem}-img1.png"]}
