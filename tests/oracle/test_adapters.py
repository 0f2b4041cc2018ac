"""Adapter folders of PEFT and of LLaVA, read over their base: the model that peft itself makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig

import mmblocks
from mmblocks.assets import find_media
from mmblocks.cli import main
from mmblocks.errors import CheckpointError, ConfigError
from mmblocks.model.convert.probe import compute_our_logits, compute_transformers_logits, load_transformers, make_probes
from mmblocks.model.onevision import OneVision
from tests.hub import LocalHub

TARGETS = r".*language_model.*\.(q_proj|v_proj|down_proj)"
LLAVA_CONFIG: dict[str, Any] = {
    "model_type": "llava_qwen",
    "architectures": ["LlavaQwenForCausalLM"],
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_tower": "clip",
    "mm_vision_select_layer": -2,
    "mm_hidden_size": 16,
    "image_aspect_ratio": "pad",
}


def write_adapter(checkpoint: Path, folder: Path, **settings: Any) -> PeftModel:
    """A trained adapter of transformers' model, saved by peft."""
    torch.manual_seed(3)
    config = LoraConfig(target_modules=TARGETS, r=4, lora_alpha=12, **settings)
    adapted = get_peft_model(load_transformers(checkpoint), config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    adapted.save_pretrained(folder)
    return adapted.eval()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"alpha_pattern": {"v_proj": 40}, "rank_pattern": {r"layers\.1\.self_attn\.q_proj": 2}},
        {"modules_to_save": ["multi_modal_projector"]},
    ],
    ids=["plain", "rslora", "patterns", "projector"],
)
def test_an_adapter_of_peft_computes_what_peft_computes(
    checkpoint: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    adapted = write_adapter(checkpoint, tmp_path, **settings)
    ours, plain = mmblocks.load(tmp_path), mmblocks.load(checkpoint)
    merged = adapted.merge_and_unload()
    for probe in make_probes(ours):
        theirs = compute_transformers_logits(merged, ours, probe)
        torch.testing.assert_close(compute_our_logits(ours, probe), theirs, rtol=0, atol=1e-5)
        assert not torch.allclose(compute_our_logits(plain, probe), theirs, atol=1e-3)


def test_an_adapter_on_the_hub_brings_its_base(
    checkpoint: Path, tmp_path: Path, hub: LocalHub, capsys: pytest.CaptureFixture[str]
) -> None:
    base = hub.add("org/base", checkpoint)
    write_adapter(checkpoint, tmp_path / "adapter")
    config = tmp_path / "adapter/adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "org/base"}))
    adapter = hub.add("org/adapter", tmp_path / "adapter")
    model = mmblocks.load("org/adapter")
    assert model.origin == f"org/adapter@{adapter}"
    words = ["--image", str(find_media("image.png")), "--ask", "What is this?", "--max-new-tokens", "4"]
    assert main(["chat", "--model", "org/adapter", *words]) == 0
    assert main(["chat", "--model", "org/adapter", "--base", f"org/base@{base}", *words]) == 0
    assert main(["convert", "org/adapter", str(tmp_path / "merged")]) == 0
    assert main(["chat", "--model", str(tmp_path / "merged"), *words]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == printed[1] == printed[-1]
    assert same_weights(mmblocks.load(tmp_path / "merged"), model)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# LLaVA's own ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def llava(make_rig: Any, tmp_path: Path) -> tuple[Path, Path, OneVision]:
    """A language model, the settings of a LLaVA over it, and the LLaVA of both."""
    whole = mmblocks.load(make_rig("llava").folder)
    base = tmp_path / "vicuna"
    whole.backbone.save_to(base)
    text = json.loads((base / "config.json").read_text())
    folder = tmp_path / "llava-lora"
    blocks = len(whole.encoder.vision_model.encoder.layers)  # the last block is never run
    CLIPVisionConfig.from_dict(
        {**whole.encoder.vision_model.config.to_dict(), "num_hidden_layers": blocks + 1}
    ).save_pretrained(folder / "clip")
    (folder / "config.json").write_text(json.dumps({**text, **LLAVA_CONFIG, "_name_or_path": str(base)}))
    return base, folder, whole


def projector_tensors(model: OneVision) -> dict[str, Tensor]:
    body, head = model.projector.body[0], model.projector.head
    return {
        f"model.mm_projector.{number}.{kind}": getattr(layer, kind).detach().clone()
        for number, layer in ((0, body), (2, head))
        for kind in ("weight", "bias")
    }


def test_the_first_stage_of_llava_is_read_over_its_language_model(llava: tuple[Path, Path, OneVision]) -> None:
    _, folder, whole = llava
    tower = {f"vision_model.{k}": v for k, v in whole.encoder.vision_model.state_dict().items()}
    save_file({k: v.contiguous() for k, v in tower.items()}, folder / "clip/model.safetensors")
    trained = {name: tensor + 1 for name, tensor in projector_tensors(whole).items()}
    torch.save(trained, folder / "mm_projector.bin")
    model = mmblocks.load(folder)
    assert torch.equal(model.projector.head.weight, whole.projector.head.weight + 1)
    assert same_weights(model.backbone, whole.backbone)
    assert same_weights(model.encoder, whole.encoder)


def test_a_lora_run_of_llava_is_merged_into_its_language_model(llava: tuple[Path, Path, OneVision]) -> None:
    base, folder, whole = llava
    generator = torch.Generator().manual_seed(0)
    dim, layer = whole.backbone.dim, "base_model.model.model.layers.1.self_attn.q_proj"
    down, up = torch.randn(8, dim, generator=generator), torch.randn(dim, 8, generator=generator)
    torch.save({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}, folder / "adapter_model.bin")
    config = {
        "peft_type": "LORA",
        "r": 8,
        "lora_alpha": 16,
        "base_model_name_or_path": str(base),
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    others = {f"base_model.model.{name}": tensor + 1 for name, tensor in projector_tensors(whole).items()}
    tower = "base_model.model.model.vision_tower.vision_tower.vision_model."
    others |= {f"{tower}{name}": tensor for name, tensor in whole.encoder.vision_model.state_dict().items()}
    torch.save(others, folder / "non_lora_trainables.bin")
    model = mmblocks.load(folder)
    expected = whole.backbone.lm.model.layers[1].self_attn.q_proj.weight + 2.0 * up @ down
    torch.testing.assert_close(model.backbone.lm.model.layers[1].self_attn.q_proj.weight, expected)
    assert torch.equal(model.projector.head.bias, whole.projector.head.bias + 1)
    untouched = {k: v for k, v in whole.backbone.state_dict().items() if "layers.1.self_attn.q_proj" not in k}
    assert all(torch.equal(model.backbone.state_dict()[name], tensor) for name, tensor in untouched.items())


# Refused -------------------------------------------------------------------------------------------------------------


def change_config(folder: Path, **entries: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_an_adapter_without_its_base_says_how_to_name_one(checkpoint: Path, tmp_path: Path) -> None:
    write_adapter(checkpoint, tmp_path)
    change_config(tmp_path, base_model_name_or_path="/nowhere/base")
    with pytest.raises(CheckpointError, match=r"is an adapter of /nowhere/base.*--base MODEL"):
        mmblocks.load(tmp_path)
    assert mmblocks.load(tmp_path, base=checkpoint)
    change_config(tmp_path, base_model_name_or_path=None)
    with pytest.raises(CheckpointError, match=r"names no base model; name it: --base MODEL"):
        mmblocks.load(tmp_path)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"peft_type": "LOHA"}, "peft_type='LOHA'"),
        ({"fan_in_fan_out": True}, "fan_in"),
    ],
)
def test_other_adapters_than_lora_are_refused(
    checkpoint: Path, tmp_path: Path, entries: dict[str, Any], reason: str
) -> None:
    write_adapter(checkpoint, tmp_path)
    change_config(tmp_path, **entries)
    with pytest.raises(CheckpointError, match=f"{reason}.*merge this adapter with peft"):
        mmblocks.load(tmp_path)


def test_an_adapter_that_is_cut_or_of_another_model_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    write_adapter(checkpoint, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor for name, tensor in tensors.items() if "lora_B" not in name}, file)
    with pytest.raises(CheckpointError, match="has no lora_B; the file is not whole"):
        mmblocks.load(tmp_path)
    save_file({name: torch.cat([t, t]) if "lora_B" in name else t for name, t in tensors.items()}, file)
    with pytest.raises(CheckpointError, match="where the model has"):
        mmblocks.load(tmp_path)


def test_a_whole_model_takes_no_base(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="is a whole model, which is read over no base"):
        mmblocks.load(checkpoint, base=checkpoint)
