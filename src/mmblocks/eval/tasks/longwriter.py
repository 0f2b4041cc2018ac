"""Long texts: LongBench-Write and LongWrite-Ruler."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from mmblocks.errors import DataError
from mmblocks.eval.document import Document, ScoredDocument
from mmblocks.eval.documents import DocumentLayout
from mmblocks.eval.metrics import longwriter
from mmblocks.eval.tasks import JudgeRequest, Scores, tasks
from mmblocks.eval.tasks._averages import NO_ANSWER, count_unreadable
from mmblocks.eval.tasks._base import FileTask
from mmblocks.eval.tasks._judging import make_message, read_instruction
from mmblocks.model.generation.decoding import Decoding

REQUEST, RESPONSE = "$INST$", "$RESPONSE$"
"""Where LongWriter's judge.txt has the request and the answer."""
INSTRUCTION = f"""\
Rate an answer to a user's request for a text, whatever its length. Give 1 (worst) to 5 (best) for each of \
{", ".join(longwriter.DIMENSIONS)}.

Request:
{REQUEST}

Answer:
{RESPONSE}

Reply with one JSON object alone, whose keys are {", ".join(longwriter.DIMENSIONS)}."""
LENGTHS = ((0, "below 500"), (500, "500-2000"), (2000, "2000-4000"), (4000, "4000-20000"))
"""The groups of the published table, each from its number of words on."""


@tasks.register("longwrite_ruler", source="https://arxiv.org/abs/2408.07055", verified_against="LongWriter")
@dataclass(frozen=True)
class LongWriteRuler(FileTask):
    """LongWrite-Ruler: how long a text gets when 1,000 to 30,000 words are asked for; longest_words is the longest."""

    files: ClassVar = "longwrite_ruler.jsonl of THUDM/LongWriter"
    layout: ClassVar = DocumentLayout(
        required={"prompt": (), "length": ()}, optional={"type": ()}, key=(("id",),), images=(), needs_visual=False
    )
    metric: ClassVar = "length score"
    decoding: ClassVar = Decoding(max_new_tokens=32768, temperature=0.5)

    def write_prompt(self, fields: Mapping[str, Any], where: str) -> str:
        if not str(fields["length"]).isdecimal() or int(fields["length"]) < 1:
            raise DataError(
                f"{where}: 'length' is {fields['length']!r:.80}; write the number of words that are asked for."
            )
        return str(fields["prompt"])

    def score(self, document: Document, answer: str) -> Scores:
        written = longwriter.count_words(answer)
        return {
            "length_score": longwriter.score_length(int(document.fields["length"]), written),
            "words": float(written),
        }

    def summarise(self, rows: Sequence[ScoredDocument]) -> Mapping[str, float]:
        lengths = [(int(row.fields["length"]), row.scores["length_score"] or 0.0) for row in rows]
        means = {"length_score": sum(score for _, score in lengths) / len(lengths)}
        for (least, name), most in zip(LENGTHS, [*(least for least, _ in LENGTHS[1:]), float("inf")], strict=True):
            if members := [score for length, score in lengths if least <= length < most]:
                means[f"length_score/words/{name}"] = sum(members) / len(members)
        return {**means, "longest_words": max(row.scores["words"] or 0.0 for row in rows)}


@tasks.register("longbench_write", source="https://arxiv.org/abs/2408.07055", verified_against="LongWriter")
@dataclass(frozen=True)
class LongBenchWrite(LongWriteRuler):
    """LongBench-Write: length score, quality by a judge, and the mean of both.

    judge_prompt: LongWriter's judge.txt, for its figures; without it our instruction.
    """

    judge_prompt: str | None = None

    files: ClassVar = (
        "longbench_write.jsonl or longbench_write_en.jsonl of THUDM/LongWriter, with judge.txt as judge_prompt="
    )
    metric: ClassVar = "length score; a judge's six ratings; their mean"
    judge: ClassVar = "gpt-4o-2024-05-13"

    def ask_judge(self, document: Document, answer: str) -> JudgeRequest:
        instruction = read_instruction(self.judge_prompt, INSTRUCTION)
        before, _, after = instruction.replace(REQUEST, document.fields["prompt"]).partition(RESPONSE)
        return JudgeRequest((make_message(f"{before}{answer}{after}"),), temperature=0.5, tries=5)

    def read_reply(self, reply: str) -> Scores:
        rating = longwriter.read_rating(reply)
        return {name: None if rating is None else rating[name] for name in longwriter.DIMENSIONS}

    def summarise(self, rows: Sequence[ScoredDocument]) -> Mapping[str, float]:
        """Replies that could not be read are left out of the quality."""
        lengths = super().summarise(rows)
        ratings = [{name: row.scores.get(name) for name in longwriter.DIMENSIONS} for row in rows]
        whole = [{k: v for k, v in rating.items() if v is not None} for rating in ratings]
        quality = longwriter.summarise_quality(rating for rating in whole if len(rating) == len(longwriter.DIMENSIONS))
        names = {name: f"quality/dimension/{name}" for name in longwriter.DIMENSIONS} | {"total": "quality"}
        overall = {"overall": (lengths["length_score"] + quality["total"]) / 2} if quality else {}
        return {**overall, **lengths, **{names[k]: v for k, v in quality.items()}, NO_ANSWER: count_unreadable(rows)}
