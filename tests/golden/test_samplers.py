"""Orders of samples by length against those of LLaVA-NeXT."""

import json
from pathlib import Path

import pytest
import torch

from mmblocks.conversation import Conversation
from mmblocks.data.planning.grouping import (
    count_words,
    estimate_length,
    group_by_length,
    group_by_modality,
    split_evenly,
)

GOLDEN = json.loads((Path(__file__).parent / "data.json").read_text())


def cases(name):
    return [pytest.param(case, id=f"{name}-{i}") for i, case in enumerate(GOLDEN["sampler"]) if case["fn"] == name]


def seeded(case, which):
    return torch.Generator().manual_seed(case[f"{which}_seed"])


@pytest.mark.parametrize("case", cases("get_length_grouped_indices"))
def test_orders_by_length_are_the_original_ones(case):
    order = group_by_length(case["lengths"], case["batch_size"], case["world_size"], seeded(case, "generator"))
    assert order == case["order"]


@pytest.mark.parametrize("case", cases("get_modality_length_grouped_indices"))
def test_orders_by_modality_and_length_are_the_original_ones(case):
    order = group_by_modality(
        case["lengths"],
        case["batch_size"],
        case["world_size"],
        inside=seeded(case, "global"),
        across=seeded(case, "generator"),
    )
    assert order == case["order"]


@pytest.mark.parametrize("case", cases("split_to_even_chunks"))
def test_shares_of_ranks_are_the_original_ones(case):
    assert split_evenly(case["indices"], case["lengths"], case["num_chunks"]) == case["chunks"]


def record(kind, number):
    """A record of two turns and `number` words, the marker of its picture or clip among them."""
    shown = [] if kind == "text" else [{"type": kind, kind: "file"}, {"type": "text", "text": "\n"}]
    asked = (number - len(shown[:1])) // 2
    said = [{"type": "text", "text": " ".join(["word"] * asked)}]
    answer = " ".join(["word"] * (number - len(shown[:1]) - asked))
    return Conversation.from_messages(
        [{"role": "user", "content": shown + said}, {"role": "assistant", "content": answer}]
    )


@pytest.mark.parametrize("case", GOLDEN["lengths"], ids=lambda case: f"early_mix_text-{case['early_mix_text']}")
def test_lengths_are_the_original_ones(case):
    """With early_mix_text the original calls every sample multimodal: the same counts, all positive."""
    records = [record(kind, number) for kind, number in zip(case["kinds"], case["words"], strict=True)]
    assert [estimate_length(r) for r in records] == case["lengths"]
    signed = [count_words(r) for r in records]
    assert [abs(n) for n in signed] == [abs(n) for n in case["modality_lengths"]]
    if not case["early_mix_text"]:
        assert signed == case["modality_lengths"]
