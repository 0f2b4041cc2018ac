from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mmblocks.errors import DataError
from mmblocks.eval.document import Document
from mmblocks.eval.documents import DocumentLayout
from mmblocks.eval.documents.extended_rows import ExtendedRows
from mmblocks.eval.documents.rows import DocumentRows
from mmblocks.eval.metrics import mmmu
from mmblocks.eval.metrics.letters import list_letters
from mmblocks.eval.tasks import Scores, tasks
from mmblocks.eval.tasks._base import FileTask
from mmblocks.eval.tasks._prompts import list_options
from mmblocks.model.generation.decoding import Decoding

OPTIONS = ("a0", "a1", "a2", "a3", "a4")
KINDS = {"C": "causal", "T": "temporal", "D": "descriptive"}
"""By the first letter of a question's type."""


@tasks.register("nextqa_mc", source="https://arxiv.org/abs/2105.08276", verified_against="lmms-eval")
class NExTQA(FileTask):
    """NExT-QA multiple choice: of all and of causal, temporal and descriptive questions."""

    files: ClassVar = "lmms-lab/NExTQA (MC), or NExT-QA's val.csv, with the folder of clips as videos="
    layout: ClassVar = DocumentLayout(
        required={"question": (), "answer": (), "video": (), **dict.fromkeys(OPTIONS, ())},
        optional={"type": ()},
        key=(("video", "qid"),),
        images=(),
        videos=("video",),
        cluster=("video",),
    )
    metric: ClassVar = "the letter by lmms-eval's copy of MMMU's parser"
    decoding: ClassVar = Decoding(max_new_tokens=1024)
    groups: ClassVar = ("kind", "type")

    def read_rows(self) -> DocumentRows:
        return ExtendedRows(super().read_rows(), ("kind",), _read_kind)

    def write_prompt(self, fields: Mapping[str, Any], where: str) -> str:
        _read_letter(fields, where)
        return f"{str(fields['question']).strip()}\n{list_options(_list_texts(fields))}"

    def list_choices(self, document: Document) -> Sequence[str]:
        return tuple(list_letters(len(OPTIONS)))

    def score(self, document: Document, answer: str) -> Scores:
        letter = mmmu.read_lmms(answer, _list_texts(document.fields))
        right = _read_letter(document.fields, document.where)
        return {"accuracy": None if letter is None else float(letter == right)}


def _list_texts(fields: Mapping[str, Any]) -> Sequence[str]:
    return [str(fields[name]).strip() for name in OPTIONS]


def _read_letter(fields: Mapping[str, Any], where: str) -> str:
    answer = str(fields["answer"]).strip()
    if answer not in ("0", "1", "2", "3", "4"):
        raise DataError(f"{where}: the answer is {answer!r:.80}; NExT-QA's is the number of the option, 0 to 4.")
    return list_letters(len(OPTIONS))[int(answer)]


def _read_kind(row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The kind of question that a type such as "TN" belongs to."""
    return {"kind": KINDS.get(str(row.get("type"))[:1])}
