"""Questions of which several people's answers are known: VQAv2, TextVQA, OK-VQA, VizWiz."""

import ast
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mmblocks.errors import DataError
from mmblocks.eval.document import Document
from mmblocks.eval.documents import DocumentLayout
from mmblocks.eval.metrics import vqa
from mmblocks.eval.tasks import Scores, tasks
from mmblocks.eval.tasks._base import FileTask
from mmblocks.eval.tasks._prompts import SHORT_ANSWER
from mmblocks.model.generation.decoding import Decoding


def read_answers(fields: Mapping[str, Any], where: str) -> list[str]:
    """The people's answers: texts, objects with an "answer", or such a list written as text."""
    answers = fields["answers"]
    if isinstance(answers, str):
        with suppress(ValueError, SyntaxError):
            answers = ast.literal_eval(answers)
    if not isinstance(answers, Sequence) or isinstance(answers, str) or not answers:
        raise DataError(f"{where}: 'answers' is {answers!r:.80}; write a list with at least one.")
    return [str(one["answer"] if isinstance(one, Mapping) else one) for one in answers]


@tasks.register("vqav2", source="https://arxiv.org/abs/1612.00837", verified_against="GT-Vision-Lab/VQA, lmms-eval")
@dataclass(frozen=True)
class VQAv2(FileTask):
    """VQAv2: soft accuracy over ten people's answers.

    rule: "official" normalises only where the ten answers differ, "lmms" always, as lmms-eval does.
    """

    rule: Literal["official", "lmms"] = "official"

    files: ClassVar = "lmms-lab/VQAv2; or LLaVA's questions .jsonl with VQA's annotations .json as annotations="
    layout: ClassVar = DocumentLayout(required={"question": ("text",), "answers": ("answer",)})
    suffix: ClassVar = SHORT_ANSWER
    metric: ClassVar = "VQA soft accuracy"
    groups: ClassVar = ("answer_type",)

    def ask(self, document: Document):
        read_answers(document.fields, document.where)
        return super().ask(document)

    def score(self, document: Document, answer: str) -> Scores:
        score = vqa.score_vqav2 if self.rule == "official" else vqa.score_vqav2_lmms
        return {"accuracy": score(answer, read_answers(document.fields, document.where))}


tasks.preset("vqav2_lmms", of="vqav2", rule="lmms")


@tasks.register(
    "textvqa", source="https://arxiv.org/abs/1904.08920", verified_against="LLaVA's m4c_evaluator, lmms-eval"
)
class TextVQA(FileTask):
    """TextVQA: soft accuracy with the normaliser of M4C. The question's first letter is upper case, all others lower."""

    files: ClassVar = "lmms-lab/textvqa; or TextVQA_0.5.1_val.json with images="
    layout: ClassVar = DocumentLayout(
        required={"question": ("text",), "answers": ("answer",)}, images=("image", "images", "image_path", "image_id")
    )
    suffix: ClassVar = SHORT_ANSWER
    metric: ClassVar = "VQA soft accuracy, M4C's normaliser"
    decoding: ClassVar = Decoding(max_new_tokens=1024)

    def write_prompt(self, fields: Mapping[str, Any], where: str) -> str:
        read_answers(fields, where)
        return f"{str(fields['question']).capitalize()}{self.suffix}"

    def score(self, document: Document, answer: str) -> Scores:
        return {"accuracy": vqa.score_textvqa(answer, read_answers(document.fields, document.where))}


@tasks.register("okvqa", source="https://arxiv.org/abs/1906.00067", verified_against="LLaVA's m4c_evaluator")
class OKVQA(TextVQA):
    """OK-VQA: scored by the rule of TextVQA."""

    files: ClassVar = "lmms-lab/OK-VQA; or questions .jsonl with OK-VQA's annotations .json as annotations="

    def write_prompt(self, fields: Mapping[str, Any], where: str) -> str:
        read_answers(fields, where)
        return f"{fields['question']}{self.suffix}"


@tasks.register("vizwiz", source="https://arxiv.org/abs/1802.08218", verified_against="LLaVA's m4c_evaluator")
class VizWiz(OKVQA):
    """VizWiz-VQA: scored by the rule of TextVQA; the prompt names the answer for pictures that do not show it."""

    files: ClassVar = "lmms-lab/VizWiz-VQA; or VizWiz's val.json with images="
    suffix: ClassVar = f"\nWhen the provided information is insufficient, respond with 'Unanswerable'.{SHORT_ANSWER}"
    groups: ClassVar = ("answer_type",)
