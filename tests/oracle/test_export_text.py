"""What an export says of text: who loads it, how a batch is padded, what ends an answer, by which base positions turn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, GenerationConfig, LlamaConfig

import mmblocks
from mmblocks.model.convert import read_raw_config
from mmblocks.model.convert.export_text import to_older_rope
from mmblocks.model.convert.original.llava import export_original
from mmblocks.model.convert.transformers.export import export_hf
from mmblocks.model.convert.transformers.families import import_hf
from mmblocks.model.generate import StopSequences
from mmblocks.model.onevision import OneVision

SHORT, LONG = "Which?", "Is it red or is it blue, and how many shapes are there in the image that is shown?"


@pytest.fixture(scope="module")
def original(ours: OneVision, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_original(ours, tmp_path_factory.mktemp("original") / "model")


def written(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def test_a_batch_through_an_exported_processor_is_answered_as_one_by_one(exported: Path) -> None:
    processor, theirs = AutoProcessor.from_pretrained(exported), AutoModelForImageTextToText.from_pretrained(exported)
    talks = [[{"role": "user", "content": [{"type": "text", "text": text}]}] for text in (SHORT, LONG)]
    texts = [processor.apply_chat_template(talk, add_generation_prompt=True) for talk in talks]

    def answers(texts: list[str]) -> list[str]:
        inputs = processor(text=texts, return_tensors="pt", padding=True)
        out = theirs.eval().generate(**inputs, do_sample=False, max_new_tokens=12)
        return processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    together = answers(texts)
    assert together == [*answers(texts[:1]), *answers(texts[1:])]
    assert all(together)


@pytest.mark.parametrize("layout", ["exported", "original"])
def test_every_exported_tokenizer_pads_in_front(layout: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(layout)
    assert AutoTokenizer.from_pretrained(folder).padding_side == "left"
    assert read_raw_config(folder).get("tokenizer_padding_side", "left") == "left"


@pytest.mark.parametrize("layout", ["exported", "original"])
def test_an_exported_tokenizer_is_said_in_words_of_transformers_4(layout: str, request: pytest.FixtureRequest) -> None:
    """4.57 knows no TokenizersBackend, and takes `extra_special_tokens` for a table of names."""
    folder = request.getfixturevalue(layout)
    config = written(folder, "tokenizer_config")
    assert config["tokenizer_class"] in ("Qwen2Tokenizer", "PreTrainedTokenizerFast")
    assert not isinstance(config.get("extra_special_tokens"), list)
    assert "<|im_end|>" in config["additional_special_tokens"]


@pytest.mark.parametrize("layout", ["exported", "original"])
def test_an_exported_tokenizer_is_the_same_tokenizer(
    ours: OneVision, layout: str, request: pytest.FixtureRequest
) -> None:
    own, back = ours.backbone.text_tokenizer, AutoTokenizer.from_pretrained(request.getfixturevalue(layout))
    text = f"<|im_start|>user\n{LONG}  \u00e9<|im_end|>\n"
    assert back(text)["input_ids"] == own(text)["input_ids"]
    assert back.all_special_tokens == own.all_special_tokens
    assert back.decode(own(text)["input_ids"], skip_special_tokens=True) == f"user\n{LONG}  \u00e9\n"


def test_names_of_special_tokens_are_kept(make_tokenizer: Callable[..., Any], ours: OneVision, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path / "text")
    config = written(tmp_path / "text", "tokenizer_config") | {
        "model_specific_special_tokens": {"image_token": "<image>"}
    }
    (tmp_path / "text" / "tokenizer_config.json").write_text(json.dumps(config))
    backbone = {**ours.spec.to_dict()["backbone"], "text_tokenizer": str(tmp_path / "text")}
    folder = export_hf(mmblocks.build({**ours.spec.to_dict(), "backbone": backbone}, seed=1), tmp_path / "out")
    assert written(folder, "tokenizer_config")["extra_special_tokens"] == {"image_token": "<image>"}
    assert AutoTokenizer.from_pretrained(folder).image_token == "<image>"


def test_a_tokenizer_without_padding_gets_some(
    make_rig: Any, beginning_tokenizers: dict[str, Callable[..., Any]], tmp_path: Path
) -> None:
    tokenizer = beginning_tokenizers["llama"](["<image>"])
    assert tokenizer.pad_token is None
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    image = tokenizer.convert_tokens_to_ids("<image>")
    text = LlamaConfig(vocab_size=len(tokenizer), **sizes)
    rig = make_rig("llava", words=tokenizer, text_config=text, image_token_index=image)
    folder = export_hf(rig.ours, tmp_path / "out", "llava")
    padded = AutoTokenizer.from_pretrained(folder)([SHORT, LONG], padding=True)
    assert len({len(ids) for ids in padded["input_ids"]}) == 1
    assert padded["attention_mask"][0][0] == 0
    assert GenerationConfig.from_pretrained(folder).pad_token_id == padded["input_ids"][0][0] == 2


@pytest.mark.parametrize("layout", ["exported", "original"])
def test_the_base_of_the_rotary_embedding_stands_where_transformers_4_reads_it(
    ours: OneVision, layout: str, request: pytest.FixtureRequest
) -> None:
    config = read_raw_config(request.getfixturevalue(layout))
    text = config.get("text_config", config)
    assert text["rope_theta"] == ours.backbone.config.rope_parameters["rope_theta"] == 1e6
    assert "rope_scaling" not in text


@pytest.mark.parametrize(
    ("rope", "older"),
    [
        ({"rope_type": "default", "rope_theta": 1e6}, {"rope_theta": 1e6}),
        (
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5},
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        ),
        (
            {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
            {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
        ),
        (
            {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            {"rope_theta": 1e6, "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_local_base_freq": 1e4},
        ),
        ({}, {}),
    ],
)
def test_rotary_settings_have_the_older_names(rope: dict[str, Any], older: dict[str, Any]) -> None:
    assert to_older_rope(rope) == older


def test_a_scaling_of_positions_comes_back_as_it_was(ours: OneVision, tmp_path: Path) -> None:
    """Said twice, by the new name and the old ones, it is read once."""
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    backbone = {**ours.spec.to_dict()["backbone"], "rope_theta": None, "further": {"rope_parameters": rope}}
    model = mmblocks.build({**ours.spec.to_dict(), "backbone": backbone}, seed=1)
    folder = export_hf(model, tmp_path / "out")
    assert import_hf(folder).backbone.config.rope_parameters == rope
    assert AutoModelForImageTextToText.from_pretrained(folder).config.text_config.rope_parameters == rope


@pytest.mark.parametrize(("own", "ends"), [(7, [258, 7]), ([7, 258, 9], [258, 7, 9]), (None, [258])])
@pytest.mark.parametrize("write", [export_hf, export_original])
def test_the_ends_of_an_export_are_the_templates_and_the_checkpoints(
    checkpoint: Path, tmp_path: Path, write: Callable[..., Path], own: Any, ends: list[int]
) -> None:
    model = import_hf(checkpoint)
    model.backbone.lm.generation_config.eos_token_id = own
    assert StopSequences.from_model(model).tokens[0] == 258
    folder = write(model, tmp_path / "out")
    assert GenerationConfig.from_pretrained(folder).eos_token_id == ends


def test_what_holds_of_repetition_is_exported_too(checkpoint: Path, tmp_path: Path) -> None:
    """Our own generation follows the checkpoint's penalty, so a program that loads the export has to know it."""
    model = import_hf(checkpoint)
    model.backbone.lm.generation_config.repetition_penalty = 1.1
    assert GenerationConfig.from_pretrained(export_hf(model, tmp_path / "out")).repetition_penalty == 1.1
