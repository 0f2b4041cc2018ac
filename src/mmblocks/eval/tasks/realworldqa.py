from typing import ClassVar

from mmblocks.eval.document import Document
from mmblocks.eval.documents import DocumentLayout
from mmblocks.eval.metrics import multiple_choice
from mmblocks.eval.tasks import Scores, tasks
from mmblocks.eval.tasks._base import FileTask


@tasks.register(
    "realworldqa", source="https://huggingface.co/datasets/xai-org/RealworldQA", verified_against="lmms-eval"
)
class RealWorldQA(FileTask):
    """RealWorldQA: a letter, or a short answer without case and final periods. The question says how to answer."""

    files: ClassVar = "lmms-lab/RealWorldQA"
    layout: ClassVar = DocumentLayout(required={"question": (), "answer": ()})
    metric: ClassVar = "the letter by lmms-eval's extractor where the answer is one, else equality"

    def score(self, document: Document, answer: str) -> Scores:
        return {"accuracy": multiple_choice.score_realworldqa(answer, str(document.fields["answer"]))}
