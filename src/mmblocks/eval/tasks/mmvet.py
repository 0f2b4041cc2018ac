from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from mmblocks.eval.document import Document, ScoredDocument
from mmblocks.eval.documents import DocumentLayout
from mmblocks.eval.documents.extended_rows import ExtendedRows
from mmblocks.eval.documents.rows import DocumentRows
from mmblocks.eval.metrics import mmvet
from mmblocks.eval.tasks import JudgeRequest, Scores, tasks
from mmblocks.eval.tasks._averages import NO_ANSWER, count_unreadable, list_judged
from mmblocks.eval.tasks._base import FileTask
from mmblocks.eval.tasks._judging import make_message, read_instruction
from mmblocks.model.generation.decoding import Decoding

PREAMBLE = (
    "First please perform reasoning, and think step by step to provide best answer to the following question: \n\n"
)
INSTRUCTION = """\
Rate predictions against ground truths with 0.0 (wrong), 0.1, ... 0.9 or 1.0 (right). Elements joined by <AND> are all \
needed; of those joined by <OR> one is enough. Write the missing last cell of the table, the number alone.
Question | Ground truth | Prediction | Correctness
--- | --- | --- | ---
Which fruits are there? | apple <AND> pear | a banana | 0.0
Which fruits are there? | apple <AND> pear | an apple | 0.5
Which fruits are there? | apple <AND> pear | two pears and an apple | 1.0
"""


@tasks.register("mmvet", source="https://arxiv.org/abs/2308.02490", verified_against="lmms-eval (parser, aggregates)")
@dataclass(frozen=True)
class MMVet(FileTask):
    """MM-Vet: a judge scores answers from 0 to 1; of all, by capability and by combination of capabilities.

    judge_prompt: a text file with the published instruction and its table of examples, for its figures; without it ours.
    """

    judge_prompt: str | None = None

    files: ClassVar = "lmms-lab/MMVet; or mm-vet.json with images="
    layout: ClassVar = DocumentLayout(
        required={"question": (), "answer": (), "capability": ()},
        images=("image", "imagename", "image_path"),
        cluster=("imagename",),
    )
    suffix: ClassVar = ""
    metric: ClassVar = "a judge's score from 0.0 to 1.0"
    decoding: ClassVar = Decoding(max_new_tokens=1024)
    judge: ClassVar = "gpt-4-0613"

    def read_rows(self) -> DocumentRows:
        return ExtendedRows(super().read_rows(), (), _join_capabilities)

    def write_prompt(self, fields: Mapping[str, Any], where: str) -> str:
        return f"{PREAMBLE}{fields['question']}"

    def score(self, document: Document, answer: str) -> Scores:
        return {}

    def ask_judge(self, document: Document, answer: str) -> JudgeRequest:
        right = str(document.fields["answer"]).replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        row = f"{document.fields['question']} | {right} | {answer} |"
        message = make_message(f"{read_instruction(self.judge_prompt, INSTRUCTION)}\n{row}")
        return JudgeRequest((message,), max_tokens=128, tries=5, temperature_step=0.5)

    def read_reply(self, reply: str) -> Scores:
        return {"judge_score": mmvet.read_score(reply)}

    def summarise(self, rows: Sequence[ScoredDocument]) -> Mapping[str, float]:
        """Replies that could not be read are left out."""
        rated = [(str(row.fields["capability"]), score) for row, score in list_judged(rows, "judge_score")]
        if not rated:
            return {NO_ANSWER: count_unreadable(rows)}
        found = mmvet.summarise(rated)
        capabilities = {f"judge_score/capability/{name}": value for name, value in found.capabilities.items()}
        combinations = {f"judge_score/combination/{name}": value for name, value in found.combinations.items()}
        return {"judge_score": found.overall, **capabilities, **combinations, NO_ANSWER: count_unreadable(rows)}


def _join_capabilities(row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """mm-vet.json lists capabilities, the hub's table parts them by commas."""
    names = row.get("capability")
    return {"capability": ",".join(map(str, names))} if isinstance(names, list) else {}
