from collections.abc import Mapping
from typing import Any, ClassVar

from mmblocks.eval.document import Document
from mmblocks.eval.documents import DocumentLayout
from mmblocks.eval.documents.layout import is_absent
from mmblocks.eval.metrics import general, mmmu_open
from mmblocks.eval.tasks import Scores, tasks
from mmblocks.eval.tasks._base import FileTask
from mmblocks.eval.tasks._choices import Choices, read_choices, read_options
from mmblocks.eval.tasks._prompts import LETTER, SHORT_ANSWER, list_options
from mmblocks.model.generation.decoding import Decoding


@tasks.register("mathvista", source="https://arxiv.org/abs/2310.02255")
class MathVista(FileTask):
    """MathVista testmini and the like: short answers and choices, read without a judge.

    Published figures have a judge that extracts the answer; these do not, so compare them among themselves only.
    """

    files: ClassVar = "AI4Math/MathVista"
    layout: ClassVar = DocumentLayout(
        required={"question": (), "answer": ()},
        optional={"choices": ("options",), "query": ()},
        key=(("pid",), ("question_id",), ("index",)),
        images=("decoded_image", "image", "image_path"),
    )
    suffix: ClassVar = SHORT_ANSWER
    metric: ClassVar = (
        "choices: the letter or the option's text; else equality, or a number equal to two places; our rule"
    )
    decoding: ClassVar = Decoding(max_new_tokens=1024)
    groups: ClassVar = ("question_type", "answer_type")

    def write_prompt(self, fields: Mapping[str, Any], where: str) -> str:
        """The published `query`, which says how to answer, where there is one."""
        choices = self._read_choices(fields, where)
        if not is_absent(fields.get("query")):
            return str(fields["query"])
        if choices is None:
            return f"{fields['question']}{self.suffix}"
        return f"{fields['question']}\n{list_options(choices.options)}{LETTER}"

    def score(self, document: Document, answer: str) -> Scores:
        choices = self._read_choices(document.fields, document.where)
        if choices is None:
            gold = str(document.fields["answer"])
            found = general.score_exact(answer, [gold])
            is_number = mmmu_open.score_answers(mmmu_open.read_answers(answer), gold) if found == 0 else False
            return {"accuracy": 1.0 if is_number else found}
        text = general.score_exact(answer, [choices.options[choices.right]])
        return {"accuracy": 1.0 if text else general.score_choice(answer, [choices.letter])}

    def _read_choices(self, fields: Mapping[str, Any], where: str) -> Choices | None:
        """The choices, None for a question without; the answer is the text of one, even where it is a number."""
        if is_absent(fields.get("choices")):
            return None
        options = read_options(fields, where, "choices")
        answer = str(fields["answer"])
        return Choices(options, options.index(answer)) if answer in options else read_choices(fields, where, "choices")
