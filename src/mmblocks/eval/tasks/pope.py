from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mmblocks.errors import DataError
from mmblocks.eval.document import Document, ScoredDocument
from mmblocks.eval.documents import DocumentLayout
from mmblocks.eval.metrics import pope
from mmblocks.eval.tasks import Scores, tasks
from mmblocks.eval.tasks._averages import NO_ANSWER, count_unreadable, group_rows
from mmblocks.eval.tasks._base import FileTask
from mmblocks.eval.tasks._prompts import SHORT_ANSWER
from mmblocks.model.generation.decoding import Decoding

RATIOS = ("f1", "accuracy", "precision", "recall", "yes_ratio")


@tasks.register("pope", source="https://arxiv.org/abs/2305.10355", verified_against="POPE, lmms-eval")
@dataclass(frozen=True)
class POPE(FileTask):
    """POPE: whether an object is in the picture; F1 of "yes", of all and by category.

    rule: "official" looks for a no in the first sentence and takes anything else for a yes; "lmms" wants the bare word, so
    "Yes." is wrong. The yes_ratio of "lmms" is that of the labels, as in lmms-eval; predicted_yes is that of the answers.
    """

    rule: Literal["official", "lmms"] = "official"

    files: ClassVar = "lmms-lab/POPE; or coco_pope_random.json and the like, with images="
    layout: ClassVar = DocumentLayout(
        required={"question": ("text",), "answer": ("label",)},
        optional={"category": ()},
        key=(("category", "question_id"), ("question_id",), ("index",)),
        cluster=("image_source",),
    )
    suffix: ClassVar = SHORT_ANSWER
    metric: ClassVar = "F1, accuracy, precision, recall and ratio of yes"
    decoding: ClassVar = Decoding(max_new_tokens=128)

    def write_prompt(self, fields: Mapping[str, Any], where: str) -> str:
        if str(fields["answer"]).strip().lower() not in ("yes", "no"):
            raise DataError(f"{where}: the answer is {fields['answer']!r:.80}; POPE's answers are yes and no.")
        return f"{str(fields['question']).strip()}{self.suffix}"

    def score(self, document: Document, answer: str) -> Scores:
        word = self._read_answer(answer)
        return {"accuracy": None if word is None else float(word == str(document.fields["answer"]).strip().lower())}

    def summarise(self, rows: Sequence[ScoredDocument]) -> Mapping[str, float]:
        by_category = {
            f"{name}/category/{category}": value
            for category, members in group_rows(rows, "category").items()
            for name, value in self._compute_ratios(members).items()
        }
        return {**self._compute_ratios(rows), **by_category, NO_ANSWER: count_unreadable(rows)}

    def _read_answer(self, answer: str) -> str | None:
        return pope.read_official(answer) if self.rule == "official" else pope.read_lmms(answer)

    def _compute_ratios(self, rows: Sequence[ScoredDocument]) -> Mapping[str, float]:
        pairs = [(row.answer, str(row.fields["answer"]).strip().lower()) for row in rows]
        found = (pope.summarise_official if self.rule == "official" else pope.summarise_lmms)(pairs)
        yes = sum(self._read_answer(row.answer) == "yes" for row in rows) / len(rows)
        return {**{name: 100 * found[name] for name in RATIOS}, "predicted_yes": 100 * yes}


tasks.preset("pope_lmms", of="pope", rule="lmms")
