from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mmblocks.eval.document import Document
from mmblocks.eval.documents import DocumentLayout
from mmblocks.eval.metrics import perceptiontest
from mmblocks.eval.tasks import Scores, tasks
from mmblocks.eval.tasks._base import FileTask
from mmblocks.eval.tasks._choices import read_choices, read_letters
from mmblocks.eval.tasks._prompts import LETTER, list_options
from mmblocks.model.generation.decoding import Decoding


@tasks.register("perceptiontest", source="https://arxiv.org/abs/2305.13786", verified_against="lmms-eval")
class PerceptionTest(FileTask):
    """PerceptionTest val, multiple choice: the first lone capital letter."""

    files: ClassVar = "lmms-lab/PerceptionTest_Val, with the folder of clips as videos="
    layout: ClassVar = DocumentLayout(
        required={"question": (), "answer": ("answer_id",), "options": ()},
        key=(("video_name", "question_id"),),
        images=(),
        videos=("video_name", "video"),
        cluster=("video_name", "video"),
    )
    suffix: ClassVar = LETTER
    metric: ClassVar = "the first lone capital A to D"
    decoding: ClassVar = Decoding(max_new_tokens=1024)
    groups: ClassVar = ("area", "reasoning")

    def write_prompt(self, fields: Mapping[str, Any], where: str) -> str:
        return f"{fields['question']}\n{list_options(read_choices(fields, where).options)}{self.suffix}"

    def list_choices(self, document: Document) -> Sequence[str]:
        return read_letters(document.fields, document.where)

    def score(self, document: Document, answer: str) -> Scores:
        found = perceptiontest.read_index(answer)
        right = read_choices(document.fields, document.where).right
        return {"accuracy": None if found is None else float(found == right)}
