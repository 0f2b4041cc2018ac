from typing import ClassVar

from mmblocks.eval.document import Document
from mmblocks.eval.documents import DocumentLayout
from mmblocks.eval.metrics import anls
from mmblocks.eval.tasks import Scores, tasks
from mmblocks.eval.tasks._base import FileTask
from mmblocks.eval.tasks._prompts import SHORT_ANSWER
from mmblocks.eval.tasks.vqa import read_answers
from mmblocks.model.generation.decoding import Decoding


@tasks.register("docvqa", source="https://arxiv.org/abs/2007.00398", verified_against="lmms-eval, VLMEvalKit")
class DocVQA(FileTask):
    """DocVQA val: average normalised Levenshtein similarity to the nearest answer."""

    files: ClassVar = "lmms-lab/DocVQA; or val_v1.0.json with images="
    layout: ClassVar = DocumentLayout(
        required={"question": (), "answers": ("answer",)},
        key=(("questionId",), ("question_id",), ("index",)),
        cluster=("docId", "image_id"),
    )
    suffix: ClassVar = SHORT_ANSWER
    metric: ClassVar = "ANLS"
    decoding: ClassVar = Decoding(max_new_tokens=32)

    def ask(self, document: Document):
        read_answers(document.fields, document.where)
        return super().ask(document)

    def score(self, document: Document, answer: str) -> Scores:
        return {"anls": anls.score_lmms(answer, read_answers(document.fields, document.where))}


@tasks.register("infovqa", source="https://arxiv.org/abs/2104.12756", verified_against="lmms-eval, VLMEvalKit")
class InfoVQA(DocVQA):
    """InfographicVQA val: average normalised Levenshtein similarity to the nearest answer."""

    files: ClassVar = "lmms-lab/DocVQA, InfographicVQA; or infographicsVQA_val_v1.0.json with images="
