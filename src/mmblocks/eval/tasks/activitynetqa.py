from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from mmblocks.eval.document import Document, ScoredDocument
from mmblocks.eval.documents import DocumentLayout
from mmblocks.eval.metrics import activitynet
from mmblocks.eval.tasks import JudgeRequest, Scores, tasks
from mmblocks.eval.tasks._averages import NO_ANSWER, count_unreadable, group_rows
from mmblocks.eval.tasks._base import FileTask
from mmblocks.eval.tasks._judging import make_message, read_instruction
from mmblocks.model.generation.decoding import Decoding

INSTRUCTION = """\
You compare a predicted answer to a question about a video with the correct answer. They match where they mean the same; \
synonyms and paraphrases match. Reply with a Python dictionary alone: {'pred': 'yes', 'score': 5}, where pred is 'yes' for a \
match and 'no' otherwise, and score is a whole number from 0 to 5 that says how well they match."""
VERDICTS = {1.0: "yes", 0.0: "no"}
UNDECIDED = "maybe"


@tasks.register(
    "activitynetqa", source="https://arxiv.org/abs/1906.02467", verified_against="lmms-eval (parser, aggregates)"
)
@dataclass(frozen=True)
class ActivityNetQA(FileTask):
    """ActivityNet-QA test: a judge says whether the answer matches, and how well from 0 to 5.

    judge_prompt: a text file with the judge's instruction; without it ours, whose figures are not those of the published one.
    """

    judge_prompt: str | None = None

    files: ClassVar = (
        "lmms-lab/ActivityNetQA, or test_q.json with test_a.json as annotations=, with the folder of clips as videos="
    )
    layout: ClassVar = DocumentLayout(
        required={"question": (), "answer": ()},
        key=(("question_id",),),
        images=(),
        videos=("video_name",),
        cluster=("video_name",),
    )
    video_prefix: ClassVar = "v_"
    suffix: ClassVar = " Answer the question using a single word or phrase."
    metric: ClassVar = "a judge's yes or no, and its score"
    decoding: ClassVar = Decoding(max_new_tokens=64)
    judge: ClassVar = "gpt-3.5-turbo-0613"

    def write_prompt(self, fields: Mapping[str, Any], where: str) -> str:
        return f"{str(fields['question']).capitalize()}?{self.suffix}"

    def score(self, document: Document, answer: str) -> Scores:
        return {}

    def ask_judge(self, document: Document, answer: str) -> JudgeRequest:
        question, right = document.fields["question"], document.fields["answer"]
        content = f"Question: {question}\nCorrect Answer: {right}\nPredicted Answer: {answer}\n"
        instruction = read_instruction(self.judge_prompt, INSTRUCTION)
        return JudgeRequest((make_message(instruction, "system"), make_message(content)), max_tokens=64)

    def read_reply(self, reply: str) -> Scores:
        verdict = activitynet.read_verdict(reply)
        if verdict is None:
            return {"accuracy": None, "judge_score": None}
        match = {word: value for value, word in VERDICTS.items()}.get(verdict[0].lower())
        decided = {} if match is None else {"accuracy": match}
        return {**decided, "judge_score": float(verdict[1])}

    def summarise(self, rows: Sequence[ScoredDocument]) -> Mapping[str, float]:
        groups = {f"/type/{name}": members for name, members in group_rows(rows, "type").items()}
        verdicts = {suffix: _list_verdicts(members) for suffix, members in {"": rows, **groups}.items()}
        found = {suffix: activitynet.summarise(judged) for suffix, judged in verdicts.items() if judged}
        accuracies = {f"accuracy{suffix}": numbers["accuracy"] for suffix, numbers in found.items()}
        scores = {f"judge_score{suffix}": numbers["score"] for suffix, numbers in found.items()}
        return {**accuracies, **scores, NO_ANSWER: count_unreadable(rows)}


def _list_verdicts(rows: Sequence[ScoredDocument]) -> list[activitynet.Verdict]:
    """The verdicts of the replies that could be read."""
    scores = [(row.scores.get("accuracy"), row.scores.get("judge_score")) for row in rows]
    return [
        (UNDECIDED if match is None else VERDICTS[match], int(score)) for match, score in scores if score is not None
    ]
