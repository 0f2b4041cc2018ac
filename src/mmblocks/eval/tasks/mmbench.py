import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

from mmblocks.errors import DataError
from mmblocks.eval.document import Document, ScoredDocument
from mmblocks.eval.documents import DocumentLayout
from mmblocks.eval.documents.layout import is_absent
from mmblocks.eval.metrics import mmbench
from mmblocks.eval.tasks import Scores, tasks
from mmblocks.eval.tasks._averages import NO_ANSWER, count_unreadable
from mmblocks.eval.tasks._base import FileTask
from mmblocks.eval.tasks._choices import read_choices, read_letters
from mmblocks.eval.tasks._prompts import LETTER, list_options
from mmblocks.model.generation.decoding import Decoding


@tasks.register(
    "mmbench", source="https://arxiv.org/abs/2307.06281", verified_against="lmms-eval (mmbench_en_dev_static)"
)
class MMBench(FileTask):
    """MMBench dev, circular where the data has the rotations of a question: all must be right. Without a judge."""

    files: ClassVar = (
        "MMBench_DEV_EN.tsv of VLMEvalKit, with rotations as rows index + k * 1000000; or lmms-lab/MMBench"
    )
    layout: ClassVar = DocumentLayout(
        required={"index": (), "question": (), "answer": (), "A": (), "B": ()},
        optional={"l2_category": ("L2-category", "l2-category"), "hint": (), "category": ()},
        key=(("index",),),
    )
    suffix: ClassVar = f"\n{LETTER}"
    metric: ClassVar = "the letter, else the option's text; circular"
    decoding: ClassVar = Decoding(max_new_tokens=1024)

    def write_prompt(self, fields: Mapping[str, Any], where: str) -> str:
        if not re.fullmatch(r"\d+(\.0)?", str(fields["index"])):
            raise DataError(
                f"{where}: 'index' is {fields['index']!r:.80}; write a whole number, of which rotations differ by 1000000."
            )
        hint = "" if is_absent(fields.get("hint")) else f"{fields['hint']} "
        options = list_options(read_choices(fields, where).options)
        return f"{hint}{fields['question']} There are several options:\n{options}{self.suffix}"

    def list_choices(self, document: Document) -> Sequence[str]:
        return read_letters(document.fields, document.where)

    def score(self, document: Document, answer: str) -> Scores:
        choices = read_choices(document.fields, document.where)
        letter = mmbench.read_letter(answer, choices.options)
        return {"accuracy": None if letter is None else float(letter == choices.letter)}

    def summarise(self, rows: Sequence[ScoredDocument]) -> Mapping[str, float]:
        rotations = [
            mmbench.Rotation(
                int(float(row.fields["index"])),
                bool(row.scores["accuracy"]),
                str(row.fields.get("category", "")),
                str(row.fields.get("l2_category", "")),
            )
            for row in rows
        ]
        found = cast(Mapping[str, Any], mmbench.summarise_circular(rotations))
        groups = {"category": found["category"], "l2_category": found["l2-category"]}
        shares = {
            f"circular/{field}/{name}": 100 * v for field, group in groups.items() for name, v in group.items() if name
        }
        return {"circular": 100 * found["overall"], **shares, NO_ANSWER: count_unreadable(rows)}
