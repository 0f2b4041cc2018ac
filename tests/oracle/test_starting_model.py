"""Recipes that start from a published model have its components, whatever they are."""

import json
from pathlib import Path
from typing import Any

import pytest

import mmblocks
from mmblocks.cli import main
from mmblocks.conf import compose
from mmblocks.model.budget import estimate_budget, parse_visual_shape
from mmblocks.model.checks.composition import dry_build
from mmblocks.model.loading import locate_model, read_located_spec
from mmblocks.train import run
from mmblocks.train.checks.run import check_run
from mmblocks.train.starting_model import adopt_components, adopt_offline
from tests.hub import LocalHub

VICUNA = {
    "_name_or_path": "lmsys/vicuna-7b-v1.5",
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "rms_norm_eps": 1e-05,
    "vocab_size": 32064,
}
CLIP = {
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
    "vocab_size": 32000,
}
LLAVA = {
    "ignore_index": -100,
    "image_token_index": 32000,
    "projector_hidden_act": "gelu",
    "text_config": VICUNA,
    "vision_config": CLIP,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "tie_word_embeddings": False,
}
QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 152000,
}
SIGLIP = {
    "hidden_size": 1152,
    "image_size": 384,
    "intermediate_size": 4304,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 26,
    "patch_size": 14,
    "vision_use_head": False,
}
RELEASES: dict[str, dict[str, Any]] = {
    "llava_1_5": {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", **LLAVA},
    "llava_next": {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "model_type": "llava_next",
        **LLAVA,
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        "use_image_newline_parameter": True,
    },
    "onevision": {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "model_type": "llava_onevision",
        "image_grid_pinpoints": [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)],
        "image_token_index": 151646,
        "projector_hidden_act": "gelu",
        "text_config": QWEN,
        "tie_word_embeddings": True,
        "use_image_newline_parameter": True,
        "video_token_index": 151647,
        "vision_aspect_ratio": "anyres_max_9",
        "vision_config": SIGLIP,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    },
}
"""config.json of llava-1.5-7b-hf, llava-v1.6-vicuna-7b-hf and llava-onevision-qwen2-0.5b-ov-hf, as transformers' conversion
scripts write them (convert_llava*_weights_to_hf.py).
"""
SHAPES = ["image=1000x700", "image=336x672", "image=4000x300", "image=384x384", "image=1920x1080"]
NO_TOKENIZER = (
    "model.backbone.text_tokenizer: the backbone has no text tokenizer. "
    "Name a hub id or a folder, or 'mmblocks:tinyworld_text'."
)
"""The folders of this test hold config.json alone."""
QUICK = ["device=cpu", "workers=0", "stages.0.steps=1", "stages.0.global_batch_size=1", "stages.0.precision=float32"]
TINYWORLD = "stages.0.data=[{name: tinyworld, task: single}]"


@pytest.mark.parametrize("family", RELEASES)
@pytest.mark.parametrize("recipe", ["finetune", "finetune_lora"])
def test_a_recipe_has_the_composition_of_the_release_that_it_starts_from(
    family: str, recipe: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(RELEASES[family]))
    own = compose(f"{family}/{recipe}")
    adopted = adopt_offline(compose(f"{family}/{recipe}", [f"weights={tmp_path}", TINYWORLD]))
    assert [str(fault) for fault in check_run(adopted) if fault.severity == "error"] == [NO_TOKENIZER]
    sizes = [dry_build(model) for model in (own["model"], adopted["model"])]
    one, other = ({part: s.count_parameters(part) for part in ("encoder", "projector")} for s in sizes)
    assert one == other
    rows = [s.backbone.vocab_size for s in sizes]  # a published table is padded, for its visual tokens
    assert 0 < rows[1] - rows[0] <= 64
    width = sizes[0].backbone.dim * (1 if RELEASES[family]["tie_word_embeddings"] else 2)
    assert sizes[1].count_parameters("backbone") - sizes[0].count_parameters("backbone") == width * (rows[1] - rows[0])
    budgets = [[estimate_budget(s, [parse_visual_shape(shape)]).visual_tokens for shape in SHAPES] for s in sizes]
    assert budgets[0] == budgets[1]
    if family != "onevision":
        assert [s.backbone.max_tokens for s in sizes] == [4096, 4096]


def test_a_run_takes_every_component_from_the_hub(
    hub: LocalHub, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add("org/base", checkpoint)
    words = ["weights=org/base", TINYWORLD, f"out={tmp_path / 'run'}", *QUICK, "stages.0.pack_views=8"]
    raw = compose("onevision/finetune", words)
    assert [(fault.key, fault.severity) for fault in check_run(raw)] == [("weights", "fetchable")]
    assert main(["check", "onevision/finetune", *words]) == 0
    assert "hf download org/base" in capsys.readouterr().out
    trained = mmblocks.load(run(raw))
    theirs = mmblocks.load(checkpoint)
    assert {**trained.spec.to_dict(), "backbone": 0} == {**theirs.spec.to_dict(), "backbone": 0}
    assert trained.backbone.dim == theirs.backbone.dim
    written = json.loads((tmp_path / "run/run.json").read_text())
    assert written["model"]["backbone"]["text_tokenizer"] == "org/base"  # not a folder of this machine's cache
    assert run(raw)  # the same run again is the same run
    assert main(["check", "onevision/finetune", *words]) == 0
    assert "siglip -> mlp -> causal_lm" in capsys.readouterr().out


def test_plan_says_whose_figures_it_prints(hub: LocalHub, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.add("org/base", checkpoint)
    words = ["onevision/finetune", "weights=org/base", "image=112x112"]
    assert main(["plan", *words]) == 0
    before = capsys.readouterr()
    assert "note: org/base is not on this machine (hf download org/base); until then" in before.err
    assert "893" in before.out
    locate_model("org/base")
    assert main(["plan", *words]) == 0
    after = capsys.readouterr()
    assert not after.err
    assert "893" not in after.out


def test_inspecting_data_fetches_settings_and_no_weights(
    hub: LocalHub, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add("org/base", checkpoint)
    words = ["onevision/finetune", "weights=org/base", TINYWORLD, "--record", "0", "--out", str(tmp_path)]
    assert main(["inspect", *words]) == 0
    assert "record   tinyworld" in capsys.readouterr().out
    assert not [request for request in hub.requests if request.endswith(".safetensors")]
    faults = check_run(compose("onevision/finetune", ["weights=org/base", TINYWORLD]))
    assert [(fault.key, fault.severity) for fault in faults] == [("weights", "fetchable")]


def test_what_the_command_line_chooses_is_kept(checkpoint: Path) -> None:
    words = [f"weights={checkpoint}", "model/tokenizer/image=pad_newline", "model.images.alpha=drop"]
    adopted = adopt_components(compose("onevision/finetune", words))["model"]
    stored = read_located_spec(locate_model(checkpoint)).to_dict()
    assert adopted["tokenizer"]["image"]["name"] == "pad_newline"
    assert adopted["images"]["alpha"] == "drop"
    assert adopted["encoder"] == stored["encoder"]
    assert adopted["tokenizer"]["video"] == stored["tokenizer"]["video"]


def test_llava_1_5_is_tuned_on_padded_images_whatever_its_processor_does(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(RELEASES["llava_1_5"]))
    stored = read_located_spec(locate_model(tmp_path)).to_dict()
    adopted = adopt_components(compose("llava_1_5/finetune", [f"weights={tmp_path}"]))["model"]
    names = [model["tokenizer"][s]["name"] for model in (stored, adopted) for s in ("image", "multi_image")]
    assert names == ["square", "square", "pad", "pad"]
    assert adopted["tokenizer"]["video"] == stored["tokenizer"]["video"]


def test_a_component_that_is_none_is_named(checkpoint: Path) -> None:
    raw = {**compose("onevision/finetune", [f"weights={checkpoint}", TINYWORLD]), "from_weights": ["encodr", "encoder"]}
    (fault,) = [fault for fault in check_run(raw) if fault.key == "from_weights.encodr"]
    assert "encoder" in str(fault)


def test_a_chosen_part_that_the_model_has_not_is_refused(checkpoint: Path) -> None:
    raw = compose("onevision/finetune", [f"weights={checkpoint}", "model/projector=gated", TINYWORLD])
    assert [fault.key for fault in check_run(raw)] == ["model.projector"]


def test_a_recipe_without_a_system_says_its_own_components(checkpoint: Path) -> None:
    raw = compose("tiny/onevision", [f"weights={checkpoint}"])
    assert not raw["from_weights"]
    assert {"model.encoder", "model.backbone"} <= {fault.key for fault in check_run(raw)}
