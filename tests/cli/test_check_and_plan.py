"""`check` and `plan` on recipes: what they print, and how they end."""

import json

import pytest

from mmblocks.cli import main

RECIPE = "tiny/onevision"


def test_check_says_what_is_good(capsys):
    assert main(["check", RECIPE]) == 0
    assert capsys.readouterr().out.startswith(f"ok: {RECIPE}: tiny_conv")


def test_check_lists_faults_of_model_and_stages_and_ends_with_one(capsys):
    overrides = ["model/projector=identity", "model/backbone=vicuna_7b", "device=gpu", "save_every=0"]

    assert main(["check", RECIPE, *overrides]) == 1

    page = capsys.readouterr().out
    assert "use 'linear' or 'mlp'" in page
    assert "device: no device is called 'gpu'. Write auto, cpu" in page
    assert "save_every: save_every=0 is too small. Write 1 or more." in page
    assert page.splitlines()[0] == f"{RECIPE}: 3 faults"


def test_plan_tells_media_from_overrides(capsys):
    assert (
        main(["plan", RECIPE, "image=100x70", "model/projector=linear", "image=48x48", "video=64x48@2s", "--json"]) == 0
    )

    plain = json.loads(capsys.readouterr().out)
    assert [v["kind"] for v in plain["visuals"]] == ["image", "image", "video"]
    assert plain["visuals"][2]["num_frames"] == 60
    assert plain["sequence_tokens"] == plain["visual_tokens"] + 64
    assert set(plain["training_bytes"]) == {
        "text",
        "align",
        "knowledge",
        "single_image",
        "onevision",
        "onevision_again",
    }


def test_plan_shows_a_page(capsys):
    assert main(["plan", RECIPE, "image=100x70", "--text", "10"]) == 0

    page = capsys.readouterr().out
    assert "100x70" in page
    assert "KV cache (bf16)" in page
    assert "training align: weights, gradients, Adam" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["image=100"], "write image=WIDTHxHEIGHT"),
        (["model/projector=identity", "model/backbone=vicuna_7b"], "use 'linear' or 'mlp'"),
        (["--text=-1"], "0 or more tokens"),
    ],
)
def test_plan_refuses_what_cannot_be(capsys, words, message):
    assert main(["plan", RECIPE, *words]) == 2
    assert message in capsys.readouterr().err
