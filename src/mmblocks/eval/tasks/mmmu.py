import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from mmblocks.conversation import Conversation
from mmblocks.errors import DataError
from mmblocks.eval.document import Document
from mmblocks.eval.documents import DocumentLayout
from mmblocks.eval.documents.extended_rows import ExtendedRows
from mmblocks.eval.documents.rows import DocumentRows
from mmblocks.eval.metrics import mmmu, mmmu_open
from mmblocks.eval.metrics.letters import list_letters
from mmblocks.eval.tasks import Scores, tasks
from mmblocks.eval.tasks._base import FileTask
from mmblocks.eval.tasks._choices import read_choices, read_options
from mmblocks.eval.tasks._prompts import LETTER, SHORT_ANSWER, list_options, make_question
from mmblocks.model.generation.decoding import Decoding

OPEN = "open"
_IMAGE = re.compile(r"<image (\d+)>")
_SUBJECT = re.compile(r"[a-z]+_(.+)_\d+")


@tasks.register("mmmu", source="https://arxiv.org/abs/2311.16502", verified_against="MMMU, lmms-eval")
@dataclass(frozen=True)
class MMMU(FileTask):
    """MMMU val: letters and open answers, of all records and by subject.

    rule: how a letter is read, as lmms-eval does or "official". unparsed: an answer without a letter is "no_answer", or a
    letter that is drawn "random" as in the originals, here from `seed` and the record's id.
    """

    rule: Literal["lmms", "official"] = "lmms"
    unparsed: Literal["no_answer", "random"] = "no_answer"
    seed: int = 0

    files: ClassVar = "lmms-lab/MMMU; or the parquet files of MMMU/MMMU's subjects"
    layout: ClassVar = DocumentLayout(
        required={"question": (), "answer": (), "question_type": ()},
        optional={"options": ()},
        key=(("id",), ("index",)),
        images=("image_*",),
    )
    suffix: ClassVar = f"\n{LETTER}"
    metric: ClassVar = "the option's letter by MMMU's parser; open answers by its numbers and key phrases"
    decoding: ClassVar = Decoding(max_new_tokens=128)
    groups: ClassVar = ("subject",)

    def read_rows(self) -> DocumentRows:
        return ExtendedRows(super().read_rows(), ("subject",), _read_subject)

    def write_prompt(self, fields: Mapping[str, Any], where: str) -> str:
        if fields["question_type"] == OPEN:
            return f"{fields['question']}\n{SHORT_ANSWER}"
        return f"{fields['question']}\n{list_options(read_choices(fields, where).options)}{self.suffix}"

    def ask(self, document: Document) -> Conversation:
        text = self.write_prompt(document.fields, document.where)
        numbers = [int(name) for name in sorted(set(_IMAGE.findall(text)))]
        if numbers and max(numbers) > len(document.visuals):
            raise DataError(
                f"{document.where}: the question names <image {max(numbers)}>, but the record has {len(document.visuals)} "
                "images; add the image."
            )
        visuals = tuple(document.visuals[number - 1] for number in numbers) or document.visuals
        return make_question(replace(document, visuals=visuals), text)

    def score(self, document: Document, answer: str) -> Scores:
        fields = document.fields
        if fields["question_type"] == OPEN:
            return {
                "accuracy": float(mmmu_open.score_answers(mmmu_open.read_answers(answer), read_gold(fields["answer"])))
            }
        options = read_options(fields, document.where)
        letter = (mmmu.read_lmms if self.rule == "lmms" else mmmu.read_official)(answer, options)
        if letter is None and self.unparsed == "random":
            letter = random.Random(f"{self.seed} {document.key}").choice(list_letters(len(options)))
        return {"accuracy": None if letter is None else float(letter == fields["answer"])}


def read_gold(answer: object) -> str | list[str]:
    """The right answer to an open question: a text, or several, also written as text."""
    if isinstance(answer, str) and answer.startswith("["):
        return list(read_options({"answer": answer}, "answer", "answer"))
    return [str(one) for one in answer] if isinstance(answer, list | tuple) else str(answer)


def _read_subject(row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The subject that an id names: "validation_Art_1" is of Art."""
    found = _SUBJECT.fullmatch(str(row.get("id")))
    return {"subject": found[1]} if found else {}
