from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mmblocks.eval.document import Document
from mmblocks.eval.documents import DocumentLayout
from mmblocks.eval.metrics import multiple_choice
from mmblocks.eval.tasks import Scores, tasks
from mmblocks.eval.tasks._base import FileTask
from mmblocks.eval.tasks._choices import read_choices, read_letters
from mmblocks.eval.tasks._prompts import LETTER

INSTRUCTION = (
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
    "Respond with only the letter (A, B, C, or D) of the correct option."
)


@tasks.register("videomme", source="https://arxiv.org/abs/2405.21075", verified_against="lmms-eval")
class VideoMME(FileTask):
    """Video-MME without subtitles: of all, and by length, domain and kind of question."""

    files: ClassVar = "lmms-lab/Video-MME, with the folder of clips as videos="
    layout: ClassVar = DocumentLayout(
        required={"question": (), "answer": (), "options": ()},
        key=(("question_id",),),
        images=(),
        videos=("videoID", "video_id"),
        cluster=("videoID", "video_id"),
    )
    suffix: ClassVar = f"\n{LETTER}"
    metric: ClassVar = "the letter by lmms-eval's extractor"
    groups: ClassVar = ("duration", "domain", "sub_category", "task_type")

    def write_prompt(self, fields: Mapping[str, Any], where: str) -> str:
        options = "\n".join(read_choices(fields, where).options)
        return f"{INSTRUCTION}\n{fields['question']}\n{options}{self.suffix}"

    def list_choices(self, document: Document) -> Sequence[str]:
        return read_letters(document.fields, document.where)

    def score(self, document: Document, answer: str) -> Scores:
        return {"accuracy": multiple_choice.score_letter(answer, str(document.fields["answer"]))}
