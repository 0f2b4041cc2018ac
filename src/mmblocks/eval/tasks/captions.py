"""Captions of images: COCO, Flickr30k, NoCaps."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mmblocks.eval.document import Document, ScoredDocument
from mmblocks.eval.documents import DocumentLayout
from mmblocks.eval.metrics import captions
from mmblocks.eval.tasks import Scores, tasks
from mmblocks.eval.tasks._averages import average_scores
from mmblocks.eval.tasks._base import FileTask
from mmblocks.eval.tasks._choices import read_options
from mmblocks.model.generation.decoding import Decoding


@tasks.register("captions", source="https://arxiv.org/abs/1504.00325", verified_against="pycocoevalcap")
class Captions(FileTask):
    """Captions against several people's: CIDEr and ROUGE-L as COCO computes them."""

    files: ClassVar = "lmms-lab/COCO-Caption, lmms-lab/flickr30k, lmms-lab/NoCaps"
    layout: ClassVar = DocumentLayout(
        required={"answer": ("caption", "captions", "annotations_captions")},
        key=(("question_id",), ("image_id",), ("id",), ("img_id",)),
        cluster=(),
    )
    suffix: ClassVar = "Provide a one-sentence caption for the provided image."
    metric: ClassVar = "CIDEr of the corpus, ROUGE-L"
    decoding: ClassVar = Decoding(max_new_tokens=64)

    def write_prompt(self, fields: Mapping[str, Any], where: str) -> str:
        _read_captions(fields, where)
        return self.suffix

    def score(self, document: Document, answer: str) -> Scores:
        return {"rouge_l": captions.score_rouge_l(answer, _read_captions(document.fields, document.where))}

    def summarise(self, rows: Sequence[ScoredDocument]) -> Mapping[str, float]:
        """CIDEr weighs words by the references of all rows, so it has no score of one row."""
        references = [_read_captions(row.fields, row.key) for row in rows]
        scores = captions.score_cider([row.answer for row in rows], references)
        return {"cider": 100 * sum(scores) / len(scores), **average_scores(rows)}


def _read_captions(fields: Mapping[str, Any], where: str) -> Sequence[str]:
    answer = fields["answer"]
    is_one = isinstance(answer, str) and not answer.startswith("[")
    return [answer] if is_one else read_options(fields, where, "answer")
