"""transformers' `blip-2` and `instructblip` inwards: vision model, Q-Former and projection around OPT and Llama."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
)

import mmblocks
from mmblocks import cli
from mmblocks.components import encoders
from mmblocks.errors import CheckpointError, ConfigError
from mmblocks.model.convert.hf import import_hf, import_hf_with_report
from mmblocks.model.convert.parts import import_vision_parts
from mmblocks.model.convert.probe import load_transformers, our_logits, probes, transformers_logits

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


def made(config_class: Any, model_class: Any, text: dict[str, Any], folder: Path) -> Path:
    """A random checkpoint. Every tensor is disturbed: transformers starts queries at zero and the tower near it."""
    torch.manual_seed(0)
    config = config_class(
        vision_config=VISION, qformer_config=QFORMER, text_config=text, num_query_tokens=4, image_token_index=300
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
    for probe in probes(ours, clips=False):
        torch.testing.assert_close(our_logits(ours, probe), transformers_logits(theirs, ours, probe), **CLOSE)


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
    probe = probes(ours, clips=False)[0]
    assert torch.equal(our_logits(ours, probe), our_logits(loaded, probe))


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
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "encoder", "projector"]


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
