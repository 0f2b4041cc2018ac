"""transformers' `blip-2` and `instructblip` inwards: vision model, Q-Former and projection around OPT and Llama."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoProcessor,
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

import mmblocks
from mmblocks import cli
from mmblocks.batch import IGNORE
from mmblocks.components import encoders
from mmblocks.conversation import Conversation, Message, Text
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import CheckpointError, ConfigError
from mmblocks.model.convert.parts import import_vision_parts
from mmblocks.model.convert.probe import compute_our_logits, compute_transformers_logits, load_transformers, make_probes
from mmblocks.model.convert.transformers.families import import_hf, import_hf_with_report
from tests.hub import LocalHub

VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
QFORMER = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "encoder_hidden_size": 16,
    "vocab_size": 50,
    "max_position_embeddings": 40,
}
OPT = {"model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 512}
LLAMA = {"model_type": "llama", "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 512}
T5 = {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 320}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 320}
KINDS = {
    "blip-2, OPT": (Blip2Config, Blip2ForConditionalGeneration, {**OPT, **SIZES}),
    "blip-2, Llama": (Blip2Config, Blip2ForConditionalGeneration, {**LLAMA, **SIZES}),
    "instructblip, Llama": (InstructBlipConfig, InstructBlipForConditionalGeneration, {**LLAMA, **SIZES}),
}
# fp32: BLIP-2's own LayerNorm before the Q-Former has an epsilon of 1e-5, transformers' port of it 1e-6
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-4}


def made(config_class: Any, model_class: Any, text: dict[str, Any], folder: Path, image_token_index: int = 300) -> Path:
    """A random checkpoint. Every tensor is disturbed: transformers starts queries at zero and the tower near it."""
    torch.manual_seed(0)
    config = config_class(
        vision_config=VISION,
        qformer_config=QFORMER,
        text_config=text,
        num_query_tokens=4,
        image_token_index=image_token_index,
    )
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(*KINDS[request.param], tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="module")
def around_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(Blip2Config, Blip2ForConditionalGeneration, T5, tmp_path_factory.mktemp("t5"))


def test_pictures_and_text_give_the_logits_of_transformers(folder: Path) -> None:
    ours, theirs = import_hf(folder), load_transformers(folder)
    for probe in make_probes(ours, videos=False):
        torch.testing.assert_close(
            compute_our_logits(ours, probe), compute_transformers_logits(theirs, ours, probe), **CLOSE
        )


def test_a_repository_gives_the_same_model_as_its_folder(folder: Path, hub: LocalHub) -> None:
    hub.add("org/blip", folder)
    theirs, ours = load_transformers(folder), mmblocks.load("org/blip")
    for probe in make_probes(ours, videos=False):
        torch.testing.assert_close(
            compute_our_logits(ours, probe), compute_transformers_logits(theirs, ours, probe), **CLOSE
        )


def test_only_the_words_last_feed_forward_is_left_over(folder: Path) -> None:
    _, found = import_hf_with_report(folder)
    stored = load_file(folder / "model.safetensors")
    assert len(found.tensors) + len(found.unused) == len(stored)
    assert all(
        name.startswith(("qformer.encoder.layer.3.intermediate.", "qformer.encoder.layer.3.output."))
        for name in found.unused
    )


def test_an_imported_model_is_saved_and_loaded_as_one_of_ours(folder: Path, tmp_path: Path) -> None:
    ours = import_hf(folder)
    loaded = mmblocks.load(mmblocks.save(ours, tmp_path / "ours"))
    probe = make_probes(ours, videos=False)[0]
    assert torch.equal(compute_our_logits(ours, probe), compute_our_logits(loaded, probe))


def test_the_vision_model_alone_reads_a_whole_checkpoint(around_t5: Path) -> None:
    parts = import_vision_parts(around_t5)
    alone = encoders.build({**parts.settings["encoder"], "checkpoint": str(around_t5)})
    alone.load_pretrained()
    assert all(torch.equal(tensor, alone.state_dict()[name]) for name, tensor in parts.encoder.state_dict().items())


def test_around_an_encoder_decoder_only_the_parts_before_it_are_read(around_t5: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'t5', an encoder-decoder, which cannot be a backbone here"):
        import_hf(around_t5)
    parts = import_vision_parts(around_t5)
    theirs = Blip2ForConditionalGeneration.from_pretrained(around_t5).eval()
    pixels = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        ours = parts.projector(parts.encoder(pixels))[:, 0]
        want = theirs.get_image_features(pixels, return_dict=True).pooler_output
    torch.testing.assert_close(ours, want, **CLOSE)


# Prompts ------------------------------------------------------------------------------------------------------------

PROMPTS = ["What is this?", "Question: what is it? Answer:", "", "a photo of", " two\nlines ", "0.5 USER: it"]
LETTERS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz?.:'"]


def with_processor(kind: str, tokenizer: Any, folder: Path, **generation: Any) -> Path:
    """A random checkpoint whose processor has this text tokenizer and prepares images by PIL."""
    config_class, model_class, text = KINDS[kind]
    images = BlipImageProcessorPil(size={"height": 56, "width": 56})
    if config_class is Blip2Config:
        processor: Any = Blip2Processor(images, tokenizer, num_query_tokens=4)
    else:
        words = BertTokenizer(vocab={letter: i for i, letter in enumerate(LETTERS)})
        processor = InstructBlipProcessor(images, tokenizer, words, num_query_tokens=4)
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    made(config_class, model_class, {**text, "vocab_size": 700}, folder, image_token_index=image)
    processor.save_pretrained(folder)
    if generation:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.fixture(scope="module", params=[(kind, text) for kind in KINDS for text in ("opt", "llama")], ids=str)
def prompted(
    request: pytest.FixtureRequest, beginning_tokenizers: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    kind, text = request.param
    return with_processor(kind, beginning_tokenizers[text](), tmp_path_factory.mktemp("prompted"))


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))


def asked(text: str, *pictures: Any, first: bool = True) -> Conversation:
    shown, said = [{"type": "image", "image": p} for p in pictures], [{"type": "text", "text": text}]
    return Conversation.from_messages([{"role": "user", "content": shown + said if first else said + shown}])


def test_prompts_are_those_of_transformers_processors(prompted: Path) -> None:
    """Query rows, then the BOS, then bare words, whatever the order in which words and image were written."""
    ours, theirs = import_hf(prompted), AutoProcessor.from_pretrained(prompted)
    image = theirs.tokenizer.convert_tokens_to_ids("<image>")
    for text, first in product(PROMPTS, (True, False)):
        wanted = theirs(images=picture(), text=text)
        sample = Processor.from_model(ours).make_prompt_sample(asked(text, picture(), first=first))
        ids = sample.encoded.input_ids.clone()
        ids[sample.encoded.visual_positions] = image
        assert ids.tolist() == wanted["input_ids"][0]
        if sample.instructions is not None:
            assert [row.tolist() for row in sample.instructions] == wanted["qformer_input_ids"]
    for text in PROMPTS:
        assert (
            Processor.from_model(ours).make_prompt_sample(asked(text)).encoded.input_ids.tolist()
            == theirs(text=text)["input_ids"][0]
        )


def test_a_picture_and_a_question_give_the_logits_of_transformers(prompted: Path, pil_processor: Any) -> None:
    ours, theirs, processor = import_hf(prompted), load_transformers(prompted), pil_processor(prompted)
    batch = collate([Processor.from_model(ours).make_prompt_sample(asked("What is this?", picture()))])
    with torch.no_grad():
        want = theirs(**processor(images=picture(), text="What is this?", return_tensors="pt")).logits[0]
        torch.testing.assert_close(ours.compute_logits(batch), want, **CLOSE)


@pytest.mark.parametrize(("end", "text"), [(202, "\n"), ([2, 202], "</s>"), (2, "</s>")])
def test_answers_end_where_the_checkpoints_own_do(
    beginning_tokenizers: dict[str, Any], tmp_path: Path, end: Any, text: str
) -> None:
    tokenizer = beginning_tokenizers["opt"]()
    assert tokenizer.encode("\n", add_special_tokens=False) == [202]
    ours = import_hf(with_processor("blip-2, OPT", tokenizer, tmp_path, eos_token_id=end))
    assert ours.template.stop == (text,)
    assert ours.backbone.lm.generation_config.eos_token_id == end


def test_only_the_answer_and_its_end_are_learned(prompted: Path) -> None:
    ours = import_hf(prompted)
    talk = [*asked("What is it?", picture()).messages, Message("assistant", (Text("A cat."),))]
    encoded = Processor.from_model(ours).make_training_sample(Conversation(tuple(talk))).encoded
    learned = encoded.targets[encoded.targets != IGNORE]
    assert ours.backbone.text_tokenizer.decode(learned) in (" A cat.</s>", "A cat.</s>")


def test_convert_tells_what_it_found_and_keeps_parts_when_asked(
    around_t5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["convert", str(around_t5), str(tmp_path / "out")]) == 2
    assert "--to parts" in capsys.readouterr().err
    assert cli.main(["convert", str(around_t5), str(tmp_path / "out"), "--to", "parts"]) == 0
    said = capsys.readouterr().out
    assert "found    transformers' blip-2" in said
    assert "part     encoder: blip2_vit" in said
    assert "part     projector: qformer" in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "SHA256SUMS",
        "config.json",
        "encoder",
        "projector",
    ]


def test_convert_checks_the_result_on_probes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["convert", str(folder), str(tmp_path / "ours")]) == 0
    assert capsys.readouterr().out.count("largest difference of logits") == 3


def test_what_we_do_not_compute_and_widths_that_disagree_are_listed(around_t5: Path, tmp_path: Path) -> None:
    config = json.loads((around_t5 / "config.json").read_text())
    other = {part: config[part] | {"hidden_act": "relu"} for part in ("qformer_config", "vision_config")}
    (tmp_path / "config.json").write_text(json.dumps(config | other))
    with pytest.raises(ConfigError) as refused:
        import_vision_parts(tmp_path)
    assert "qformer_config.hidden_act is 'relu'" in str(refused.value)
    assert "vision_config.hidden_act is 'relu'" in str(refused.value)
    tensors = load_file(around_t5 / "model.safetensors")
    tensors["language_projection.weight"] = torch.zeros(32, 10)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"shape: language_projection.weight is \(32, 10\) in the file"):
        import_vision_parts(tmp_path)
