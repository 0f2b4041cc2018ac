"""Ids and masks of the original preprocess functions.

labels.json holds what github.com/LLaVA-VL/LLaVA-NeXT at df17966 (llava/train/train.py) makes with the toy tokenizers
of `assets`.
"""

import json
from functools import cache
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from mmblocks.batch import IGNORE
from mmblocks.components import Span, templates
from mmblocks.conversation import Conversation, Message, Text, Visual
from mmblocks.data.records.llava_json import conversation_of
from mmblocks.data.sample.encode import encode_for_training, encode_prompt
from mmblocks.errors import DataError
from mmblocks.shapes import RoutedPlan, VisualPlan

HERE = Path(__file__).parent
IMAGE = -200
ONE_TOKEN = RoutedPlan("image", VisualPlan((), 1))
LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
SPECIAL = {
    "toy_qwen": {"eos_token": "<|im_end|>"},
    "toy_bos": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "toy_llama_legacy": LLAMA,
    "toy_llama_nonlegacy": LLAMA,
}
GOLDEN = json.loads((HERE / "labels.json").read_text())
MASKS = [
    pytest.param(case, id=f"{case['function']}-{case['version']}-{case['tokenizer']}-{case['conversation']}")
    for case in GOLDEN["masks"]
]


@cache
def tokenizer(name):
    return PreTrainedTokenizerFast(tokenizer_file=str(HERE / "assets" / f"{name}_tokenizer.json"), **SPECIAL[name])


def trained(case, media_root):
    (media_root / "IMG").touch()
    turns = [{"from": role, "value": text} for role, text in case["conv"]]
    record = {"conversations": turns, "image": ["IMG"] * sum(text.count("<image>") for _, text in case["conv"])}
    conversation = conversation_of(record, {"image": media_root, "video": media_root}, origin="golden")
    encoded = encode_for_training(
        conversation,
        [ONE_TOKEN] * len(conversation.visuals),
        template=templates.build(case["version"]),
        text_tokenizer=tokenizer(case["tokenizer"]),
        placeholder_id=IMAGE,
        targets="original",
    )
    return encoded.input_ids.tolist(), encoded.targets.tolist()


def expected(case):
    """The original's labels name the row itself, our targets the row to come: one step to the left."""
    ids, labels = list(case["input_ids"]), list(case["labels"])
    if case["function"] == "preprocess_plain" and case["conversation"] == "multi_image":
        # The original keeps one <image> of the two that the record has; ours keeps both.
        ids.insert(ids.index(IMAGE), IMAGE)
        labels.insert(0, IGNORE)
    if case["function"] in ("preprocess_v1", "preprocess_llama_2") and writes_a_space_twice(
        case["tokenizer"], case["conv"][0][1]
    ):
        at = ids.index(IMAGE) + 1
        del ids[at], labels[at]
    return ids, [*labels[1:], IGNORE]


def writes_a_space_twice(tokenizer_name, text):
    """Whether the original's slow tokenizer adds a space to the one that follows <image>; the fast one never does."""
    return tokenizer_name == "toy_llama_nonlegacy" and "<image> " in text


def is_miscounted(case):
    """Whether the original finds other lengths than it expects, warns, and masks the whole sample."""
    return bool(case.get("warning"))


@pytest.mark.parametrize("case", [c for c in MASKS if "labels" in c.values[0] and not is_miscounted(c.values[0])])
def test_original_targets_are_the_originals(case, tmp_path):
    assert trained(case, tmp_path) == expected(case)


@pytest.mark.parametrize("case", [c for c in MASKS if is_miscounted(c.values[0])])
def test_a_sample_that_the_original_miscounts_keeps_its_labels(case, tmp_path):
    ids, targets = trained(case, tmp_path)
    answers = [text for speaker, text in case["conv"] if speaker == "gpt"]
    assert ids == case["input_ids"]
    assert set(case["labels"]) == {IGNORE}
    learned = tokenizer(case["tokenizer"]).decode([t for t in targets if t != IGNORE])
    assert learned == "".join(f"{answer}<|im_end|>" for answer in answers)


@pytest.mark.parametrize("case", [c for c in MASKS if "error" in c.values[0]])
def test_plain_refuses_what_the_original_asserts_against(case, tmp_path):
    with pytest.raises(DataError, match="golden: the template 'plain'"):
        trained(case, tmp_path)


@pytest.mark.parametrize("case", GOLDEN["tokenizer_image_token"], ids=lambda c: f"{c['tokenizer']}-{c['text']!r}")
def test_text_around_images_has_the_originals_ids(case):
    chunks = case["text"].split("<image>")
    parts = [part for chunk in chunks for part in (Visual("image", None), Text(chunk))][1:]
    conversation = Conversation((Message("user", tuple(parts)),))
    encoded = encode_prompt(
        conversation,
        [ONE_TOKEN] * (len(chunks) - 1),
        template=Bare(),
        text_tokenizer=tokenizer(case["tokenizer"]),
        placeholder_id=IMAGE,
    )
    ids = case["ids"]
    if writes_a_space_twice(case["tokenizer"], case["text"]):
        ids = [*ids[: ids.index(IMAGE) + 1], *ids[ids.index(IMAGE) + 2 :]]
    assert encoded.input_ids.tolist() == ids


class Bare:
    """A template that adds nothing."""

    stop = ()

    def spans(self, messages):
        return [Span(p.text if isinstance(p, Text) else p) for message in messages for p in message.parts]

    def open_answer(self):
        return []
