from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mmblocks.eval.document import Document, ScoredDocument
from mmblocks.eval.documents import DocumentLayout
from mmblocks.eval.metrics import mme
from mmblocks.eval.tasks import Scores, tasks
from mmblocks.eval.tasks._averages import NO_ANSWER, count_unreadable
from mmblocks.eval.tasks._base import FileTask
from mmblocks.eval.tasks._prompts import SHORT_ANSWER

FORMAT_SENTENCE = " Please answer yes or no."


@tasks.register("mme", source="https://arxiv.org/abs/2306.13394", verified_against="lmms-eval")
class MME(FileTask):
    """MME: accuracy and "both questions of the image right", in points by category; perception up to 2000, cognition 800.

    Images of which only one question was answered are left out and counted as incomplete_images.
    """

    files: ClassVar = "lmms-lab/MME; or VLMEvalKit's MME.tsv"
    layout: ClassVar = DocumentLayout(
        required={"question": (), "answer": (), "category": (), "question_id": ("image_path", "index")},
        key=(("question_id", "question"), ("index",)),
        cluster=("question_id", "image_path"),
    )
    suffix: ClassVar = SHORT_ANSWER
    metric: ClassVar = "yes or no within the first four characters; points by image"

    def write_prompt(self, fields: Mapping[str, Any], where: str) -> str:
        return f"{str(fields['question']).replace(FORMAT_SENTENCE, '').strip()}{self.suffix}"

    def score(self, document: Document, answer: str) -> Scores:
        return {"accuracy": mme.score_answer(answer, str(document.fields["answer"]))}

    def summarise(self, rows: Sequence[ScoredDocument]) -> Mapping[str, float]:
        questions = [
            mme.ImageQuestion(row.fields["category"], row.fields["question_id"], bool(row.scores["accuracy"]))
            for row in rows
        ]
        counts = Counter((one.category, one.image) for one in questions)
        whole = [one for one in questions if counts[one.category, one.image] == mme.QUESTIONS_OF_AN_IMAGE]
        categories = {f"points/category/{name}": points for name, points in sorted(mme.score_categories(whole).items())}
        incomplete = sum(count != mme.QUESTIONS_OF_AN_IMAGE for count in counts.values())
        sums = mme.summarise(whole)
        total = {"total": sum(sums.values())}
        return {**sums, **total, **categories, "incomplete_images": incomplete, NO_ANSWER: count_unreadable(rows)}
