from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mmblocks.data.records.json_records import open_json
from mmblocks.errors import DataError
from mmblocks.eval.document import Document, ScoredDocument
from mmblocks.eval.documents import DocumentLayout
from mmblocks.eval.documents.joined_rows import join_rows
from mmblocks.eval.documents.opening import open_rows
from mmblocks.eval.documents.rows import DocumentRows
from mmblocks.eval.metrics import llava_bench
from mmblocks.eval.tasks import JudgeRequest, Scores, tasks
from mmblocks.eval.tasks._averages import NO_ANSWER, count_unreadable
from mmblocks.eval.tasks._base import FileTask
from mmblocks.eval.tasks._judging import make_message
from mmblocks.model.generation.decoding import Decoding

ROLE = "Assistant"
INSTRUCTION = """\
Rate how helpful, relevant, accurate and detailed the two answers to the user's question are. The user sees an image, which \
the context describes. Write two numbers from 1 to 10 and nothing else into the first line, the first for Assistant 1, the \
second for Assistant 2, with a blank between them; then explain them. The order of the answers must not matter."""


@tasks.register(
    "llava_bench", source="https://arxiv.org/abs/2304.08485", verified_against="LLaVA, lmms-eval (parsers, aggregates)"
)
@dataclass(frozen=True)
class LLaVABench(FileTask):
    """LLaVA-Bench (in the wild): a judge rates our answer beside GPT-4's; our mean in percent of its mean.

    annotations: answers_gpt4.jsonl; context: context.jsonl, which describes the images. rules: LLaVA's rule.json with the
    judge's instructions, for its figures; without it ours.
    """

    context: str | None = None
    rules: str | None = None

    files: ClassVar = (
        "lmms-lab/llava-bench-in-the-wild; or questions.jsonl, answers_gpt4.jsonl and context.jsonl with images="
    )
    layout: ClassVar = DocumentLayout(
        required={"question": ("text",), "gpt_answer": ("reference",), "caption": (), "category": ()},
        cluster=("image_id", "image"),
    )
    metric: ClassVar = "a judge's scores of both answers, 1 to 10; relative score"
    decoding: ClassVar = Decoding(max_new_tokens=4096)
    judge: ClassVar = "gpt-4-0314"

    def read_rows(self) -> DocumentRows:
        rows = open_rows(self.data, self.split)
        if self.annotations:
            rows = join_rows(rows, open_rows(self.annotations), self.join_fields, {"text": "gpt_answer"})
        if self.context:
            rows = join_rows(rows, open_rows(self.context), [("image", "image")])
        return rows

    def score(self, document: Document, answer: str) -> Scores:
        return {}

    def ask_judge(self, document: Document, answer: str) -> JudgeRequest:
        fields = document.fields
        caption = fields["caption"]
        context = "\n".join(map(str, caption)) if isinstance(caption, list) else caption
        first, second = (
            f"[{ROLE} {number}]\n{text}\n\n[End of {ROLE} {number}]\n\n"
            for number, text in ((1, fields["gpt_answer"]), (2, answer))
        )
        rule = self._read_rule(f"llava_bench_{fields['category']}")
        content = f"[Context]\n{context}\n\n[Question]\n{fields['question']}\n\n{first}{second}[System]\n{rule}\n\n"
        return JudgeRequest((make_message(content),), temperature=0.2)

    def read_reply(self, reply: str) -> Scores:
        reference, model = llava_bench.read_scores(reply) or (None, None)
        return {"reference_score": reference, "model_score": model}

    def summarise(self, rows: Sequence[ScoredDocument]) -> Mapping[str, float]:
        """Replies without two numbers are left out; LLaVA's script counts them as -1."""
        pairs = [
            (str(row.fields["category"]), (row.scores.get("reference_score"), row.scores.get("model_score")))
            for row in rows
        ]
        rated = [
            (category, (first, second))
            for category, (first, second) in pairs
            if first is not None and second is not None
        ]
        found = llava_bench.summarise(rated) if rated else {}
        relative = {
            "relative" if name == "all" else f"relative/category/{name}": score
            for name, (score, _, _) in found.items()
            if score is not None
        }
        means = {"reference_score": found["all"][1], "model_score": found["all"][2]} if found else {}
        return {**relative, **means, NO_ANSWER: count_unreadable(rows)}

    def _read_rule(self, category: str) -> str:
        if self.rules is None:
            return INSTRUCTION
        content = open_json(Path(self.rules))
        rule = content.get(category) if isinstance(content, Mapping) else None
        if not isinstance(rule, Mapping) or not isinstance(rule.get("prompt"), str):
            raise DataError(f"{self.rules}: there is no prompt for {category!r}; name LLaVA's rule.json.")
        return rule["prompt"]
