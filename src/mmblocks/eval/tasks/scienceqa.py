from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from mmblocks.data.records.json_records import open_json
from mmblocks.errors import DataError
from mmblocks.eval.document import Document, ScoredDocument
from mmblocks.eval.documents import DocumentLayout
from mmblocks.eval.documents.opening import open_rows
from mmblocks.eval.documents.rows import DocumentRows
from mmblocks.eval.documents.scienceqa_rows import PROBLEMS, open_scienceqa_rows
from mmblocks.eval.documents.selected_rows import select_rows
from mmblocks.eval.metrics import scienceqa
from mmblocks.eval.tasks import Scores, tasks
from mmblocks.eval.tasks._averages import average_scores
from mmblocks.eval.tasks._base import FileTask
from mmblocks.eval.tasks._choices import read_choices, read_letters
from mmblocks.eval.tasks._prompts import LETTER, list_options


@tasks.register("scienceqa", source="https://arxiv.org/abs/2209.09513", verified_against="LLaVA, lmms-eval")
@dataclass(frozen=True)
class ScienceQA(FileTask):
    """ScienceQA: the letter of the choice, of all questions and of those with an image.

    rule: "lmms" reads a letter, "llava" also "X. " and "The answer is X.". subset: "img" leaves out questions without an
    image. gpt4: the file of GPT-4's answers ({"outputs": {id: text}}); with it the summary has the complement of LLaVA's
    paper. gpt4_judge: lines {"question_id", "text"} of GPT-4's second answers; with it the summary has the judge's accuracy.
    """

    rule: Literal["lmms", "llava"] = "lmms"
    subset: Literal["full", "img"] = "full"
    gpt4: str | None = None
    gpt4_judge: str | None = None

    files: ClassVar = "the folder of problems.json, pid_splits.json and images; or lmms-lab/ScienceQA"
    layout: ClassVar = DocumentLayout(
        required={"question": (), "choices": (), "answer": ()},
        optional={"hint": ()},
        key=(("question_id",), ("id",), ("index",)),
        needs_visual=False,
    )
    suffix: ClassVar = LETTER
    metric: ClassVar = "the letter by LLaVA's or lmms-eval's rule; with GPT-4's answers, complement and judge"
    groups: ClassVar = ("subject",)

    def read_rows(self) -> DocumentRows:
        is_folder = (Path(self.data) / PROBLEMS).is_file()
        rows = (
            open_scienceqa_rows(Path(self.data), self.split or "test")
            if is_folder
            else open_rows(self.data, self.split)
        )
        is_selected = self.subset == "img" and not self.layout.list_missing(rows.columns)
        return select_rows(rows, "image") if is_selected else rows

    def write_prompt(self, fields: Mapping[str, Any], where: str) -> str:
        context = f"Context: {fields['hint']}\n" if fields.get("hint") else ""
        options = list_options(read_choices(fields, where, "choices").options)
        return f"{context}{fields['question']}\n{options}{self.suffix}"

    def list_choices(self, document: Document) -> Sequence[str]:
        return read_letters(document.fields, document.where, "choices")

    def score(self, document: Document, answer: str) -> Scores:
        choices = read_choices(document.fields, document.where, "choices")
        if self.rule == "lmms":
            accuracy: float | None = scienceqa.score_lmms(answer, choices.right)
        else:
            letter = scienceqa.read_llava(answer)
            found = scienceqa.to_index(letter, len(choices.options))
            accuracy = None if letter is None else float(found == choices.right)
        with_image = {"img_accuracy": accuracy} if document.visuals else {}
        return {"accuracy": accuracy, **with_image}

    def summarise(self, rows: Sequence[ScoredDocument]) -> Mapping[str, float]:
        return {**average_scores(rows, self.groups), **self._summarise_ensembles(rows)}

    def _summarise_ensembles(self, rows: Sequence[ScoredDocument]) -> Mapping[str, float]:
        """Percent right of the ensembles with GPT-4 whose files are given."""
        if self.gpt4 is None:
            return {}
        counts = scienceqa.summarise_ensembles(self._list_ensembles(rows))
        wanted = ["complement", "upper_bound", *(["judge"] if self.gpt4_judge else [])]
        shares = {name: 100 * counts[f"{name}_correct"] / counts["total"] for name in wanted}
        return {**shares, "gpt4_no_answer": counts["gpt4_failed"]}

    def _list_ensembles(self, rows: Sequence[ScoredDocument]) -> Iterator[scienceqa.Ensemble]:
        answers = _read_outputs(Path(self.gpt4 or ""))
        judged = _read_texts(Path(self.gpt4_judge)) if self.gpt4_judge else {}
        for row in rows:
            if row.key not in answers:
                raise DataError(
                    f"{self.gpt4}: there is no answer to {row.key!r}; evaluate the split that the file is of."
                )
            choices = read_choices(row.fields, row.key, "choices")
            yield scienceqa.Ensemble(
                len(choices.options), choices.right, row.answer, answers[row.key], judged.get(row.key)
            )


def _read_outputs(path: Path) -> Mapping[str, str]:
    """GPT-4's answers as LLaVA publishes them: {"outputs": {id: text}}."""
    content = open_json(path)
    outputs = content.get("outputs") if isinstance(content, Mapping) else None
    if not isinstance(outputs, Mapping):
        raise DataError(f"{path}: it holds no 'outputs'; expected is {{'outputs': {{id: text}}}}.")
    return {str(key): str(text) for key, text in outputs.items()}


def _read_texts(path: Path) -> Mapping[str, str]:
    """Answers in lines as LLaVA writes them: {"question_id", "text"}."""
    rows = open_rows(str(path))
    return {str(key[0]): str(key[1]) for key in rows.read_values(["question_id", "text"]) if key is not None}


tasks.preset("scienceqa_img", of="scienceqa", subset="img")
