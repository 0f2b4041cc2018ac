"""Captions as COCO scores them: CIDEr (the published CIDEr-D) and ROUGE-L over words of the Penn Treebank kind.

Own code: pycocoevalcap, which the numbers are those of, is 100 MB and starts Java for its tokenizer. `split_words` gives
what that tokenizer gives for usual captions; abbreviations and slang that it knows one by one may be split otherwise.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mmblocks.eval.metrics.rouge import score_coco

LONGEST_NGRAM = 4
SIGMA = 6.0
"""Width of the penalty on a caption of another length, in words."""

Words = Sequence[str]
Counts = Counter[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class NgramWeights:
    """Of one caption: its number of pairs of words, and a vector of weights for each size of n-gram."""

    pairs: int
    vectors: tuple[dict[tuple[str, ...], float], ...]


SPLIT_WORDS = {
    "cannot": "can not",
    "gonna": "gon na",
    "wanna": "wan na",
    "gotta": "got ta",
    "lemme": "lem me",
    "gimme": "gim me",
}
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
"""Kept as words: COCO's list of punctuation has them in capitals, after the text was put in lower case."""
ENDING = re.compile(r"(n't|'(?:s|m|d|ll|re|ve))(?!\w)")
TOKEN = re.compile(
    r"https?://\S+"
    r"|(?:[^\W\d_]\.){2,}(?!\w)|(?:mr|mrs|ms|dr|st|ave|jr|sr|vs|etc)\.(?!\w)"  # abbreviations keep their period
    r"|n't|'(?:s|m|d|ll|re|ve)(?!\w)"
    r"|o'clock|\d+(?:[.,:]\d+)+|\w+(?:[-/]\w+)*"
    r"|[^\s\w'`\"“”.?!,:;-]"  # and these marks are dropped
)


def split_words(caption: str) -> list[str]:
    """A caption's words in lower case without punctuation: "a dog's" is a, dog, 's."""
    text = caption.lower().replace("’", "'")
    text = ENDING.sub(r" \1", text)
    words = (BRACKETS.get(token, token) for token in TOKEN.findall(text))
    return " ".join(SPLIT_WORDS.get(word, word) for word in words).split()


def score_rouge_l(caption: str, references: Sequence[str]) -> float:
    """ROUGE-L of one caption, as COCO has it."""
    return score_coco(split_words(caption), [split_words(reference) for reference in references])


def score_cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr of each caption, 0 to 10; a published figure is 100 times their mean.

    The references of all captions weigh the words, so a subset has other scores, and one caption alone has 0.
    """
    return score_cider_words(
        [split_words(c) for c in captions], [[split_words(r) for r in refs] for refs in references]
    )


def score_cider_words(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr of captions in words."""
    counts = [[_count_ngrams(reference) for reference in refs] for refs in references]
    documents = Counter(ngram for refs in counts for ngram in set().union(*refs))
    scores = []
    for words, refs in zip(captions, counts, strict=True):
        caption = _weigh_ngrams(_count_ngrams(words), documents, len(captions))
        similarities = [_compare_ngrams(caption, _weigh_ngrams(ref, documents, len(captions))) for ref in refs]
        scores.append(10.0 * sum(similarities) / len(similarities) if similarities else 0.0)
    return scores


def _count_ngrams(words: Words) -> Counts:
    sizes = range(1, LONGEST_NGRAM + 1)
    return Counter(tuple(words[i : i + size]) for size in sizes for i in range(len(words) - size + 1))


def _weigh_ngrams(counts: Counts, documents: Counts, total: int) -> NgramWeights:
    """Counts times inverse document frequency."""
    vectors: tuple[dict[tuple[str, ...], float], ...] = tuple({} for _ in range(LONGEST_NGRAM))
    for ngram, count in counts.items():
        vectors[len(ngram) - 1][ngram] = count * (math.log(total) - math.log(max(1, documents[ngram])))
    return NgramWeights(sum(count for ngram, count in counts.items() if len(ngram) == 2), vectors)


def _compare_ngrams(caption: NgramWeights, reference: NgramWeights) -> float:
    """Mean over the sizes of n-gram of the clipped cosine, less for a difference in length, which is counted in pairs."""
    total = 0.0
    for own, other in zip(caption.vectors, reference.vectors, strict=True):
        product = sum(min(weight, other.get(ngram, 0.0)) * other.get(ngram, 0.0) for ngram, weight in own.items())
        norm = math.sqrt(sum(w * w for w in own.values())) * math.sqrt(sum(w * w for w in other.values()))
        total += product / norm if norm else product
    return total / LONGEST_NGRAM * math.exp(-((caption.pairs - reference.pairs) ** 2) / (2 * SIGMA**2))
