import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mmblocks.errors import DataError
from mmblocks.eval.document import Document, ScoredDocument
from mmblocks.eval.documents import DocumentLayout
from mmblocks.eval.metrics import multiple_choice
from mmblocks.eval.metrics.letters import list_letters
from mmblocks.eval.metrics.means import average_of_groups
from mmblocks.eval.tasks import Scores, tasks
from mmblocks.eval.tasks._averages import average_scores
from mmblocks.eval.tasks._base import FileTask
from mmblocks.eval.tasks._choices import MOST_OPTIONS
from mmblocks.eval.tasks._prompts import LETTER
from mmblocks.model.generation.decoding import Decoding


@tasks.register("mmstar", source="https://arxiv.org/abs/2403.20330", verified_against="lmms-eval")
class MMStar(FileTask):
    """MMStar: the letter of the option; "average" is the mean over the finer categories of their means."""

    files: ClassVar = "Lin-Chen/MMStar, whose questions hold the options"
    layout: ClassVar = DocumentLayout(
        required={"question": (), "answer": ()},
        optional={"l2_category": ("l2-category",), "category": ()},
        key=(("index",), ("question_id",)),
    )
    suffix: ClassVar = LETTER.rstrip(".")
    metric: ClassVar = "the letter by lmms-eval's extractor"
    decoding: ClassVar = Decoding(max_new_tokens=1024)
    groups: ClassVar = ("category", "l2_category")

    def write_prompt(self, fields: Mapping[str, Any], where: str) -> str:
        if str(fields["answer"]).strip().upper() not in {*multiple_choice.LETTERS}:
            raise DataError(
                f"{where}: the answer {fields['answer']!r:.80} is none of the letters A to D; MMStar's questions hold their "
                "options, and the answer is the letter of one."
            )
        return super().write_prompt(fields, where)

    def list_choices(self, document: Document) -> Sequence[str]:
        question, marks = str(document.fields["question"]), ":.)"
        position = max(question.rfind("Options:"), 0)
        letters: list[str] = []
        for letter in list_letters(MOST_OPTIONS):
            if (found := re.compile(rf"\b{letter}([{marks}])").search(question, position)) is None:
                break
            letters.append(letter)
            position, marks = (
                found.end(),
                found[1],
            )  # the others have the mark of the first: an option may end with "E."
        if len(letters) < 2:
            raise DataError(
                f"{document.where}: no options can be read in {question!r:.200}; write them as 'Options: A: text, B: text'."
            )
        return letters

    def score(self, document: Document, answer: str) -> Scores:
        return {"accuracy": multiple_choice.score_letter(answer, str(document.fields["answer"]))}

    def summarise(self, rows: Sequence[ScoredDocument]) -> Mapping[str, float]:
        pairs = [(str(row.fields.get("l2_category", "")), row.scores["accuracy"] or 0.0) for row in rows]
        return {"average": 100 * average_of_groups(pairs), **average_scores(rows, self.groups)}
