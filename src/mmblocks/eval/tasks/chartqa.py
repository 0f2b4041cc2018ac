from typing import ClassVar

from mmblocks.eval.document import Document
from mmblocks.eval.documents import DocumentLayout
from mmblocks.eval.metrics import chartqa
from mmblocks.eval.tasks import Scores, tasks
from mmblocks.eval.tasks._base import FileTask
from mmblocks.eval.tasks._prompts import ONE_WORD


@tasks.register("chartqa", source="https://arxiv.org/abs/2203.10244", verified_against="lmms-eval")
class ChartQA(FileTask):
    """ChartQA test: numbers within 5 %, other answers equal without case; of all, and of written and generated questions."""

    files: ClassVar = "lmms-lab/ChartQA; or test_human.json or test_augmented.json with images="
    layout: ClassVar = DocumentLayout(
        required={"question": ("query",), "answer": ("label",)},
        optional={"type": ("split",)},
        images=("image", "imgname", "image_path"),
        cluster=("imgname",),
    )
    suffix: ClassVar = ONE_WORD
    metric: ClassVar = "relaxed accuracy"
    groups: ClassVar = ("type",)

    def score(self, document: Document, answer: str) -> Scores:
        return {"relaxed": float(chartqa.score_relaxed(answer, str(document.fields["answer"])))}
