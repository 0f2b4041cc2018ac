from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mmblocks.errors import DataError
from mmblocks.eval.document import Document, ScoredDocument
from mmblocks.eval.documents import DocumentLayout
from mmblocks.eval.documents.opening import open_rows
from mmblocks.eval.documents.rows import DocumentRows
from mmblocks.eval.documents.selected_rows import ChainedRows
from mmblocks.eval.metrics import mvbench
from mmblocks.eval.tasks import Scores, tasks
from mmblocks.eval.tasks._averages import NO_ANSWER, count_unreadable, group_rows
from mmblocks.eval.tasks._base import FileTask
from mmblocks.eval.tasks._choices import read_letters, read_options
from mmblocks.eval.tasks._prompts import list_options


@tasks.register("mvbench", source="https://arxiv.org/abs/2311.17005", verified_against="lmms-eval")
class MVBench(FileTask):
    """MVBench: percent right by task and the mean over tasks. As in lmms-eval, empty answers leave the denominator.

    data: a folder of one .json for each task, or one of them. Clips are shown whole: `start` and `end` are not read.
    """

    files: ClassVar = "OpenGVLab/MVBench: the folder json/, with the folder of clips as videos="
    layout: ClassVar = DocumentLayout(
        required={"question": (), "answer": (), "candidates": (), "video": ()},
        optional={"sub_task": ("part",)},
        key=(("part", "number"),),
        images=(),
        videos=("video",),
        cluster=("video",),
    )
    suffix: ClassVar = "Only give the best option.\n"
    metric: ClassVar = "the first lone letter A to E of either case"

    def read_rows(self) -> DocumentRows:
        path = Path(self.data)
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not files:
            raise DataError(f"{path}: this folder holds no .json; name the folder of MVBench's tasks.")
        return ChainedRows({file.stem: open_rows(str(file)) for file in files}, files[0].parent)

    def write_prompt(self, fields: Mapping[str, Any], where: str) -> str:
        candidates = read_options(fields, where, "candidates")
        if fields["answer"] not in candidates:
            raise DataError(
                f"{where}: the answer {fields['answer']!r:.80} is none of the candidates; write one of them."
            )
        return f"Question:{fields['question']}\nOption:\n{list_options(candidates, '({}) {}')}\n{self.suffix}"

    def list_choices(self, document: Document) -> Sequence[str]:
        return read_letters(document.fields, document.where, "candidates")

    def score(self, document: Document, answer: str) -> Scores:
        fields = document.fields
        candidates = read_options(fields, document.where, "candidates")
        return {"accuracy": mvbench.score_lmms(answer, candidates, fields["answer"])}

    def summarise(self, rows: Sequence[ScoredDocument]) -> Mapping[str, float]:
        groups = group_rows(rows, "sub_task")
        shares = {
            name: mvbench.summarise_lmms([row.scores["accuracy"] for row in group]) for name, group in groups.items()
        }
        means = {f"accuracy/sub_task/{name}": share for name, share in shares.items()}
        return {"accuracy": sum(shares.values()) / len(shares), **means, NO_ANSWER: count_unreadable(rows)}
