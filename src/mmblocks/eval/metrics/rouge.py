"""ROUGE-L: as the package `rouge` 1.0.1 computes it, as COCO's captions use it, and the plain F1."""

import re
from collections.abc import Sequence
from itertools import chain

from mmblocks.eval.metrics.sequences import common_subsequence_length

TINY = 1e-8
COCO_BETA = 1.2
"""COCO weighs recall by its square."""
WORD = re.compile("[\u3040-\u30ff\u3400-\u9fff]|[^\\W_\u3040-\u30ff\u3400-\u9fff]+")
"""Letters and digits; a character of Chinese or Japanese is a word."""


def score_union(answer: str, reference: str) -> float:
    """As `rouge` 1.0.1 does: over sentences that periods end, the common subsequences' words as one set.

    A text without a sentence, on which it fails, has 0.
    """
    sentences, wanted = _split_sentences(answer), _split_sentences(reference)
    if not sentences or not wanted:
        return 0.0
    common: set[str] = set()
    for target in wanted:
        for sentence in sentences:
            common.update(_list_common_words(target, sentence))
    precision = len(common) / len(set(chain(*sentences)))
    recall = len(common) / len(set(chain(*wanted)))
    return 2 * (precision * recall / (precision + recall + TINY))


def score_plain(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence of words in lower case: on ASCII text as Google's `rouge-score` has it."""
    words, wanted = WORD.findall(answer.lower()), WORD.findall(reference.lower())
    common = common_subsequence_length(words, wanted)
    return 2 * common / (len(words) + len(wanted)) if common else 0.0


def score_coco(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """As pycocoevalcap does for captions in words: the best precision and the best recall over the references."""
    common = [common_subsequence_length(words, reference) for reference in references]
    precision = max(common) / max(len(words), 1)
    recall = max(c / max(len(reference), 1) for c, reference in zip(common, references, strict=True))
    if not precision:
        return 0.0
    return (1 + COCO_BETA**2) * precision * recall / (recall + COCO_BETA**2 * precision)


def _split_sentences(text: str) -> list[list[str]]:
    """Words by sentence; a sentence of blanks is one empty word."""
    return [sentence.split() or [""] for sentence in text.split(".") if sentence]


def _list_common_words(target: Sequence[str], sentence: Sequence[str]) -> list[str]:
    """The words of one longest common subsequence; of several that which `rouge` finds."""
    lengths = [[0] * (len(sentence) + 1)]
    for word in target:
        above, row = lengths[-1], [0]
        for column, other in enumerate(sentence):
            row.append(above[column] + 1 if word == other else max(above[column + 1], row[-1]))
        lengths.append(row)
    found, i, j = [], len(target), len(sentence)
    while i and j:
        if target[i - 1] == sentence[j - 1]:
            found.append(target[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found
