import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mmblocks.conversation import Conversation
from mmblocks.errors import DataError
from mmblocks.eval.document import Document, ScoredDocument
from mmblocks.eval.documents import DocumentLayout
from mmblocks.eval.documents.extended_rows import ExtendedRows
from mmblocks.eval.documents.rows import DocumentRows
from mmblocks.eval.metrics import interleave
from mmblocks.eval.metrics.means import average_by
from mmblocks.eval.tasks import Scores, tasks
from mmblocks.eval.tasks._base import FileTask
from mmblocks.eval.tasks._prompts import make_question, place_turns

PUBLISHED = {"question_type": "question_type", "sub_task": "dataset"}
"""Fields of the hub's tables, and what they are called in the metadata of the published .json."""


@tasks.register("interleave", source="https://arxiv.org/abs/2407.07895", verified_against="LLaVA-NeXT, lmms-eval")
@dataclass(frozen=True)
class Interleave(FileTask):
    """LLaVA-Interleave Bench, in-domain, out-domain or multi-view, whichever the file is of.

    rule: "original" is LLaVA-NeXT's script: both sides normalised, a category is the mean over its data sets; "lmms" scores
    the texts as they are, and a category is the mean over its records. "average" is the mean over the categories; out-domain
    and multi-view data sets are categories of their own.
    """

    rule: Literal["original", "lmms"] = "original"

    files: ClassVar = "lmms-lab/LLaVA-NeXT-Interleave-Bench; or the published .json with images="
    layout: ClassVar = DocumentLayout(
        required={"answer": (), "question_type": (), "sub_task": ()},
        optional={"question": (), "conversations": ()},
        key=(("sub_task", "sample_id"), ("sample_id",), ("id",)),
        images=("image_*", "image", "images"),
        cluster=(),
        needs_visual=False,
    )
    metric: ClassVar = "ROUGE-L of open answers, equality of choices; by data set and category"

    def read_rows(self) -> DocumentRows:
        return ExtendedRows(super().read_rows(), tuple(PUBLISHED), _read_metadata)

    def ask(self, document: Document) -> Conversation:
        if (kind := document.fields["question_type"]) not in (interleave.OPEN, interleave.CHOICE):
            raise DataError(
                f"{document.where}: 'question_type' is {kind!r:.80}; write {interleave.OPEN!r} or {interleave.CHOICE!r}."
            )
        turns = document.fields.get("question") or document.fields.get("conversations")
        if isinstance(turns, str):
            with suppress(ValueError):
                turns = json.loads(turns)
        if isinstance(turns, str):
            return make_question(document, turns)
        return place_turns(turns, document.visuals, document.where)

    def score(self, document: Document, answer: str) -> Scores:
        score = interleave.score_row if self.rule == "original" else interleave.score_row_lmms
        return {"score": score(_to_answer(document.fields, answer))}

    def summarise(self, rows: Sequence[ScoredDocument]) -> Mapping[str, float]:
        answers = [_to_answer(row.fields, row.answer) for row in rows]
        if self.rule == "original":
            datasets = interleave.score_datasets(answers)
            categories = interleave.average_categories(datasets) or datasets
        else:
            datasets = average_by((one.dataset, interleave.score_row_lmms(one)) for one in answers)
            known = [(one, interleave.CATEGORY_OF_LMMS.get(one.dataset)) for one in answers]
            categories = average_by((name, interleave.score_row_lmms(one)) for one, name in known if name)
        average = {"average": 100 * sum(categories.values()) / len(categories)} if categories else {}
        by_category = {f"average/category/{name}": 100 * score for name, score in categories.items()}
        return {
            **average,
            **by_category,
            **{f"average/sub_task/{name}": 100 * score for name, score in datasets.items()},
        }


def _read_metadata(row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """What the published .json writes into `metadata`."""
    metadata = row.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    return {name: row.get(name) or metadata.get(other) for name, other in PUBLISHED.items()}


def _to_answer(fields: Mapping[str, Any], answer: str) -> interleave.InterleaveAnswer:
    return interleave.InterleaveAnswer(
        str(fields["sub_task"]), str(fields["question_type"]), answer, str(fields["answer"])
    )


tasks.preset("interleave_lmms", of="interleave", rule="lmms")
