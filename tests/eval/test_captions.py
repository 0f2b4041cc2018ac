"""Captions score as pycocoevalcap and rouge-score have them: captions.json holds their words and numbers."""

import json
from pathlib import Path
from statistics import fmean

import pytest

from mmblocks.eval.metrics.captions import score_cider, score_cider_words, score_rouge_l, split_words
from mmblocks.eval.metrics.rouge import score_plain

PUBLISHED = json.loads(Path(__file__).with_name("captions.json").read_text(encoding="utf-8"))
CAPTIONS = PUBLISHED["captions"]
SPLIT_OTHERWISE = {"I'd say y'all", "rock'n'roll o'clock"}


def test_cider_is_that_of_pycocoevalcap():
    scores = score_cider([c["caption"] for c in CAPTIONS], [c["references"] for c in CAPTIONS])
    assert scores == pytest.approx([c["cider"] for c in CAPTIONS], abs=1e-12)
    assert fmean(scores) == pytest.approx(PUBLISHED["cider_mean"], abs=1e-12)


def test_rouge_l_is_that_of_pycocoevalcap():
    scores = [score_rouge_l(c["caption"], c["references"]) for c in CAPTIONS]
    assert scores == pytest.approx([c["rouge_l"] for c in CAPTIONS], abs=1e-12)
    assert fmean(scores) == pytest.approx(PUBLISHED["rouge_l_mean"], abs=1e-12)


def test_words_are_those_of_the_penn_treebank_tokenizer():
    cases = PUBLISHED["tokenizer"] + [{"caption": c["caption"], "words": c["words"]} for c in CAPTIONS]
    different = {case["caption"] for case in cases if split_words(case["caption"]) != case["words"]}
    assert different == SPLIT_OTHERWISE


@pytest.mark.parametrize("case", PUBLISHED["rouge_score"], ids=lambda case: case["answer"])
def test_plain_rouge_l_is_that_of_rouge_score(case):
    assert score_plain(case["answer"], case["reference"]) == pytest.approx(case["f1"], abs=1e-12)


def test_plain_rouge_l_reads_other_scripts():
    assert score_plain("一只狗在公园", "一只猫在公园") == pytest.approx(5 / 6)
    assert score_plain("naïve café", "café naïve") == 0.5


def test_one_caption_alone_has_no_cider():
    assert score_cider_words([["a", "dog"]], [[["a", "dog"]]]) == [0.0]


def test_a_caption_without_references_has_no_cider():
    assert score_cider(["a dog", "a cat"], [[], ["a cat"]])[0] == 0.0
