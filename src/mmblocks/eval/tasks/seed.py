from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mmblocks.eval.document import Document
from mmblocks.eval.documents import DocumentLayout
from mmblocks.eval.metrics import seed
from mmblocks.eval.metrics.letters import list_letters
from mmblocks.eval.tasks import Scores, tasks
from mmblocks.eval.tasks._base import FileTask
from mmblocks.eval.tasks._prompts import LETTER, list_options
from mmblocks.model.generation.decoding import Decoding

CHOICES = {"choice_a": ("A",), "choice_b": ("B",), "choice_c": ("C",), "choice_d": ("D",)}
"""Each with its name in VLMEvalKit's table."""


@tasks.register("seed", source="https://arxiv.org/abs/2307.16125", verified_against="lmms-eval")
class SEEDBench(FileTask):
    """SEED-Bench: the first character of the answer is the letter; of all, of images and of videos (as frames)."""

    files: ClassVar = (
        "lmms-lab/SEED-Bench; VLMEvalKit's SEEDBench_IMG.tsv; or the image questions of SEED-Bench's .json with images="
    )
    layout: ClassVar = DocumentLayout(
        required={"question": (), "answer": (), **CHOICES},
        optional={"data_type": ()},
        images=("image", "images", "data_id"),
        cluster=("data_id",),
    )
    suffix: ClassVar = LETTER
    metric: ClassVar = "the first character, without case"
    decoding: ClassVar = Decoding(max_new_tokens=1024)
    groups: ClassVar = ("data_type", "question_type_id")

    def write_prompt(self, fields: Mapping[str, Any], where: str) -> str:
        return f"{fields['question']}\n{list_options(str(fields[name]) for name in CHOICES)}{self.suffix}"

    def list_choices(self, document: Document) -> Sequence[str]:
        return tuple(list_letters(len(CHOICES)))

    def score(self, document: Document, answer: str) -> Scores:
        return {"accuracy": seed.score_letter(answer, str(document.fields["answer"]))}
