"""Whole systems: named choices that compose, count the published tokens, and let any part be swapped."""

import json

import pytest

import mmblocks
from mmblocks import conf
from mmblocks.cli import main
from mmblocks.errors import ConfigError, UnknownComponentError
from mmblocks.model import systems
from mmblocks.model.budget import estimate_budget, parse_visual_shape
from mmblocks.model.checks.composition import find_faults
from mmblocks.model.spec import ModelSpec

TOKENS = {  # of the words after it, as the papers and their code count them
    "llava_v1": (256, "image=640x480"),
    "llava_1_5": (576, "image=640x480"),
    "llava_next": (2880 + 48, "image=672x672"),  # base and 2x2 tiles of 576, a newline for each of 48 lines
    "llava_next_video": (16 * 144, "video=1280x720@60s"),
    "llava_next_interleave": (2 * 730, "image=640x480", "image=640x480"),
    "llava_onevision": (32 * 196 + 1, "video=1280x720@60s"),
    "blip2": (32, "image=640x480"),
    "instructblip": (32, "image=640x480"),
}


@pytest.mark.parametrize("name", list(systems.list_system_names()))
def test_every_size_of_every_system_can_be_composed(name):
    assert find_faults(systems.compose(name)) == []


@pytest.mark.parametrize("name", systems.SYSTEMS)
def test_a_system_counts_the_published_tokens(name):
    tokens, *words = TOKENS[name]
    budget = estimate_budget(systems.compose(name), [parse_visual_shape(word) for word in words])
    assert sum(visual.tokens for visual in budget.visuals) == tokens


def test_a_system_without_a_size_is_its_usual_one():
    assert systems.compose("llava_next") == systems.compose("llava_next/vicuna_7b")


def test_parts_are_swapped_in_code():
    spec = mmblocks.compose("llava_next/vicuna_7b", projector="gated", tokenizer={"video": "frames"})
    assert (spec.projector, spec.encoder) == ("gated", "clip_vit_l_336")
    assert spec.tokenizer == {"image": "anyres_next", "multi_image": "pad", "video": "frames"}


def test_components_named_beside_a_spec_replace_its_own(tiny_spec):
    spec = ModelSpec.from_dict(tiny_spec)
    model = mmblocks.build(spec, projector="linear", tokenizer={"video": "frames_8_plain"})
    assert (model.spec.projector, model.spec.tokenizer["video"]) == ("linear", "frames_8_plain")
    assert (model.spec.encoder, model.spec.tokenizer["image"]) == (spec.encoder, spec.tokenizer["image"])
    with pytest.raises(ConfigError, match="Did you mean 'projector'"):
        mmblocks.build(spec, projetcor="linear")


@pytest.mark.parametrize("name", systems.SYSTEMS)
def test_the_projector_of_any_system_is_swapped_on_the_command_line(name, capsys):
    other = "perceiver" if "blip" in name else "gated"  # 32 frames of 257 cells each are too long for Vicuna
    assert main(["plan", name, f"model/projector={other}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    chosen = conf.compose_for_planning(name, [f"model/projector={other}"])["model"]
    assert chosen["projector"]["name"] == other
    assert chosen["encoder"]["name"] == systems.compose(name).encoder


def test_check_lists_every_reason_against_a_swapped_system(capsys):
    assert main(["check", "llava_next/vicuna_7b", "model/projector=qformer"]) == 1
    said = capsys.readouterr().out
    assert "model.tokenizer.image" in said
    assert "model.tokenizer.video" in said
    assert main(["check", "llava_next/vicuna_7b"]) == 0
    assert "ok: llava_next/vicuna_7b: clip_vit_l_336 -> mlp -> vicuna_7b" in capsys.readouterr().out


def test_a_recipe_starts_from_a_system(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "# Mine\ndefaults:\n  - /train_run\n  - /system: llava_1_5/vicuna_7b\n  - override /model/projector: gated\n"
        "  - _self_\nout: runs/mine\nstages:\n  - name: align\n    data: [{name: tinyworld, task: caption}]\n"
        "    train: {projector: 0.001}\n    steps: 3\n    global_batch_size: 2\n"
    )
    model = conf.compose(str(recipe))["model"]
    assert {kind: model[kind]["name"] for kind in ("encoder", "projector", "backbone", "template")} == {
        "encoder": "clip_vit_l_336",
        "projector": "gated",
        "backbone": "vicuna_7b",
        "template": "vicuna_v1",
    }


def test_a_system_cannot_be_trained_without_data():
    with pytest.raises(ConfigError, match="is a system: it has no data and no stages"):
        conf.compose("llava_1_5/vicuna_7b")


@pytest.mark.parametrize(
    ("name", "said"),
    [("llava_nxt", "Did you mean 'llava_next'"), ("llava_next/vicuna_8b", "has no size 'vicuna_8b'.*vicuna_7b")],
)
def test_a_name_that_is_none_is_answered_with_the_closest(name, said):
    with pytest.raises(UnknownComponentError, match=said):
        systems.compose(name)


def test_list_and_show_know_systems(capsys):
    assert main(["list", "system"]) == 0
    assert "llava_onevision" in capsys.readouterr().out
    assert main(["show", "system", "llava_next"]) == 0
    said = capsys.readouterr().out
    assert "llava_next/mistral_7b" in said
    assert "tokenizer.image        anyres_next" in said
