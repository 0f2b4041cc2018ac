"""Metrics for anyone's data, what they make of odd answers, and how long hostile ones take."""

import time

import pytest

from mmblocks.errors import DataError
from mmblocks.eval.metrics import (
    activitynet,
    anls,
    captions,
    interleave,
    llava_bench,
    longwriter,
    mmbench,
    mme,
    mmmu,
    mmmu_open,
    mmvet,
    multiple_choice,
    mvbench,
    normalise,
    perceptiontest,
    pope,
    scienceqa,
    seed,
    vqa,
)
from mmblocks.eval.metrics.general import METRICS
from mmblocks.eval.metrics.sequences import common_subsequence_length, edit_distance

OPTIONS = ["a red bus", "a green tree", "a small dog", "none of them"]


@pytest.mark.parametrize(
    ("metric", "answer", "references", "score"),
    [
        ("exact", "The  Red bus.", ["the red bus"], 1.0),
        ("exact", "red", ["the red bus", "bus"], 0.0),
        ("contains", "It is a Red, bus!", ["red bus"], 1.0),
        ("contains", "It is reddish", ["red"], 0.0),
        ("choice", "The answer is (B).", ["B"], 1.0),
        ("choice", "C. a dog", ["B. a cat"], 0.0),
        ("anls", "invoise", ["invoice", "bill"], 6 / 7),
        ("vqa", "two", ["2"], 1.0),
        ("vqa", "two", ["2", "2"] + ["3"] * 8, 0.6),
        ("rouge_l", "a b c", ["c b", "a b"], 0.8),
    ],
)
def test_a_metric_gives_its_best_over_the_references(metric, answer, references, score):
    assert METRICS[metric](answer, references) == pytest.approx(score)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("answer", ["", "  \n"])
def test_an_empty_answer_is_no_answer(metric, answer):
    assert METRICS[metric](answer, ["A"]) is None


@pytest.mark.parametrize("metric", METRICS)
def test_no_reference_is_told(metric):
    with pytest.raises(DataError, match="No reference"):
        METRICS[metric]("yes", [])


def test_a_choice_without_a_letter_is_told():
    assert METRICS["choice"]("I do not know", ["B"]) is None
    with pytest.raises(DataError, match=r"'dog' is no letter from A to H.*metric=exact"):
        METRICS["choice"]("B", ["B", "dog"])


def test_an_image_of_mme_without_two_questions_is_told():
    with pytest.raises(DataError, match=r"image 'a.png' has 1 questions; it needs 2"):
        mme.summarise([mme.ImageQuestion("count", "a.png", True)])


def test_values_that_fit_no_rule_are_told():
    with pytest.raises(DataError, match="'a cat' is none of the candidates"):
        mvbench.score_lmms("A", OPTIONS, "a cat")
    with pytest.raises(DataError, match="wanted length of 0 words"):
        longwriter.score_length(0, 5)
    with pytest.raises(DataError, match=r"known data set; found \['mine'\]"):
        interleave.summarise_lmms([interleave.InterleaveAnswer("mine", interleave.OPEN, "a", "b")])


def test_a_judge_that_answers_nonsense_is_no_answer():
    for reply in ("", "nan 5", "inf 5", "eight nine"):
        assert llava_bench.read_scores(reply) is None
    for reply in ("", "{", "{'pred': 5, 'score': 1}", "{'pred': 'yes', 'score': 1e999}", "{" + "(" * 1000 + "}", "{1}"):
        assert activitynet.read_verdict(reply) is None
    for reply in ("", " ", "great", "7", "-0.1"):
        assert mmvet.read_score(reply) is None
    for reply in ("", "[]", "5", "{}", "[" * 20_000, '{"Relevance": 5}'):
        assert longwriter.read_rating(reply) is None


def test_a_rating_is_read_with_and_without_a_fence():
    rating = dict.fromkeys(longwriter.DIMENSIONS, 4.0)
    text = "{" + ", ".join(f'"{name}": 4' for name in rating) + "}"
    assert longwriter.read_rating(text) == rating
    assert longwriter.read_rating(f"Sure.\n```json\n{text}\n```\nDone") == rating


def test_distances_are_those_of_the_plain_recurrence():
    for first, second, distance, common in [
        ("kitten", "sitting", 3, 4),
        ("", "ab", 2, 0),
        ("", "", 0, 0),
        ("a", "b", 1, 0),
    ]:
        assert edit_distance(first, second) == edit_distance(second, first) == distance
        assert common_subsequence_length(first, second) == common_subsequence_length(second, first) == common
    assert edit_distance("ab" * 500, "ba" * 500) == 2
    assert common_subsequence_length("ab" * 500, "ba" * 500) == 999


SCORERS = {
    "vqav2": lambda answer: vqa.score_vqav2(answer, ["a", "b"]),
    "m4c": normalise.normalise_m4c,
    "anls": lambda answer: anls.score_lmms(answer, ["total of the bill"]),
    "mmmu": lambda answer: mmmu.read_official(answer, OPTIONS),
    "mmmu lmms": lambda answer: mmmu.read_lmms(answer, OPTIONS),
    "egoschema": lambda answer: mmmu.read_egoschema(answer, OPTIONS),
    "mmmu open": mmmu_open.read_answers,
    "extract": multiple_choice.extract_letter,
    "mmbench": lambda answer: mmbench.read_letter(answer, OPTIONS),
    "mmbench vlmevalkit": lambda answer: mmbench.read_vlmevalkit(answer, OPTIONS),
    "pope": pope.read_official,
    "mme": mme.read_answer,
    "scienceqa": scienceqa.read_llava,
    "interleave open": lambda answer: interleave.score_open(answer, "a red bus moved"),
    "interleave choice": lambda answer: interleave.score_choice(answer, "A"),
    "mvbench": lambda answer: mvbench.score_lmms(answer, OPTIONS, OPTIONS[0]),
    "perceptiontest": perceptiontest.read_index,
    "seed": lambda answer: seed.score_letter(answer, "A"),
    "llava bench": llava_bench.read_scores_lmms,
    "activitynet": activitynet.read_verdict,
    "longwriter": longwriter.count_words,
    "cider": lambda answer: captions.score_cider([answer, "b"], [["a man"], ["b c"]]),
} | {name: lambda answer, metric=metric: metric(answer, ["B"]) for name, metric in METRICS.items()}

LENGTH = 60_000
"""Characters, as of 10,000 words."""
HOSTILE = {
    "words": "the answer is A ",
    "blanks": " ",
    "newlines": "\n",
    "digits": "1",
    "commas": "1,",
    "periods": "1.",
    "braces": "{(",
    "markup": "<b>A</b>",
    "hyphens": "-a",
    "quotes": "n't's",
    "surrogates": "\ud800",
    "emoji": "👩‍👩‍👧",
    "Hebrew": "שלום ",
    "a letter that grows": "İ",
    "nulls": "\0",
    "fences": "```json\n",
}
SECONDS = 1.0
"""Of one scorer. A quadratic pattern takes minutes; the slowest took 0.3 s on one core."""


@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE)
def test_hostile_answers_are_scored_in_linear_time(piece):
    answer = "A. " + piece * (LENGTH // len(piece)) + ",\nb"
    for name, score in SCORERS.items():
        start = time.process_time()
        score(answer)
        assert time.process_time() - start < SECONDS, name
    for short in (piece, f"answer is {piece}", piece * 50):
        for score in SCORERS.values():
            score(short)
