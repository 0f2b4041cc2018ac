from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mmblocks.eval.document import Document
from mmblocks.eval.documents import DocumentLayout
from mmblocks.eval.metrics import ai2d
from mmblocks.eval.tasks import Scores, tasks
from mmblocks.eval.tasks._base import FileTask
from mmblocks.eval.tasks._choices import read_choices, read_letters
from mmblocks.eval.tasks._prompts import LETTER, list_options


@tasks.register("ai2d", source="https://arxiv.org/abs/1603.07396", verified_against="lmms-eval")
class AI2D(FileTask):
    """AI2D test: the letter of the option, read by lmms-eval's rule."""

    files: ClassVar = "lmms-lab/ai2d; or VLMEvalKit's AI2D_TEST.tsv"
    layout: ClassVar = DocumentLayout(required={"question": (), "answer": ()}, optional={"options": ()})
    suffix: ClassVar = LETTER
    metric: ClassVar = "the letter at the start, else the whole answer, without case and punctuation"

    def write_prompt(self, fields: Mapping[str, Any], where: str) -> str:
        return f"{fields['question']}\n{list_options(read_choices(fields, where).options)}{self.suffix}"

    def list_choices(self, document: Document) -> Sequence[str]:
        return read_letters(document.fields, document.where)

    def score(self, document: Document, answer: str) -> Scores:
        return {"accuracy": ai2d.score_letter(answer, read_choices(document.fields, document.where).letter)}
