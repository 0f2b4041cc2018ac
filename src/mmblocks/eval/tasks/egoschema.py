from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mmblocks.eval.document import Document
from mmblocks.eval.documents import DocumentLayout
from mmblocks.eval.metrics import mmmu
from mmblocks.eval.tasks import Scores, tasks
from mmblocks.eval.tasks._base import FileTask
from mmblocks.eval.tasks._choices import Choices, read_choices, read_letters
from mmblocks.eval.tasks._prompts import LETTER


@tasks.register("egoschema_subset", source="https://arxiv.org/abs/2308.09126", verified_against="lmms-eval")
class EgoSchema(FileTask):
    """EgoSchema's subset of 500 questions, whose answers are public. The others are scored by a server, which nothing here asks."""

    files: ClassVar = "lmms-lab/egoschema (Subset), with the folder of clips as videos="
    layout: ClassVar = DocumentLayout(
        required={"question": (), "answer": (), "option": ("options",)},
        key=(("question_idx",), ("video_idx", "question"), ("q_uid",)),
        images=(),
        videos=("video_idx", "q_uid"),
        cluster=("video_idx", "q_uid"),
    )
    suffix: ClassVar = LETTER
    metric: ClassVar = "of the forms (B), B and B. that whose last place comes first, else an option's text"

    def write_prompt(self, fields: Mapping[str, Any], where: str) -> str:
        """The options as published, each behind its letter."""
        return "\n".join([str(fields["question"]), *_read_options(fields, where).options]) + self.suffix

    def list_choices(self, document: Document) -> Sequence[str]:
        return read_letters(document.fields, document.where, "option")

    def score(self, document: Document, answer: str) -> Scores:
        choices = _read_options(document.fields, document.where)
        letter = mmmu.read_egoschema(answer, [option.partition(". ")[2] or option for option in choices.options])
        return {"accuracy": None if letter is None else float(letter == choices.letter)}


def _read_options(fields: Mapping[str, Any], where: str) -> Choices:
    return read_choices(fields, where, "option")
