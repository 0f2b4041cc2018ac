"""`check` and `plan` on recipes: what they print, and how they end."""

import json

import pytest
from PIL import Image

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
    assert page.splitlines()[0] == f"{RECIPE}: 3 faults:"


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


# Data ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    """A LLaVA file of ten records, one of which has lost its image."""
    for number in range(9):
        Image.new("RGB", (30 + 10 * number, 40)).save(tmp_path / f"{number}.png")
    turns = [{"from": "human", "value": "<image>\nwhat is it ?"}, {"from": "gpt", "value": "a red square ."}]
    records = [{"id": str(n), "image": f"{n}.png", "conversations": turns} for n in range(10)]
    path = tmp_path / "photos.json"
    path.write_text(json.dumps(records))
    return [f"data={path}", f"images={tmp_path}"]


def test_plan_measures_a_file_as_the_last_stage_reads_it(capsys, photos):
    assert main(["plan", RECIPE, *photos, "ranks=2", "--json"]) == 0

    (found,) = json.loads(capsys.readouterr().out)
    assert (found["stage"], found["records"], found["measured"]) == ("onevision_again", 10, 9)
    assert "9.png" in found["broken"][0]
    assert found["tokens"]["p5"] <= found["tokens"]["p50"] <= found["tokens"]["max"]
    assert found["views"]["mean"] > 1
    assert 0 < found["labels_share"] < 1
    assert found["ranks"] == 2
    assert 0 < found["efficiency"]["as the stage says"] <= 1
    assert min(found["waste"].values()) == 1


def test_plan_shows_a_page_of_data(capsys, photos):
    assert main(["plan", RECIPE, *photos, "stage=single_image"]) == 0

    page = capsys.readouterr().out
    assert page.startswith("single_image: 10 records, 9 measured")
    assert "labels are" in page
    assert "padded, random, 4 samples" in page
    assert "work on 8 ranks" in page


def test_plan_counts_what_a_limit_cuts(capsys, photos):
    main(["plan", RECIPE, *photos, "--json"])
    (whole,) = json.loads(capsys.readouterr().out)
    limit = int(whole["tokens"]["max"]) - 1
    words = ["plan", RECIPE, *photos, f"stages.5.max_tokens={limit}", "stages.5.overlong=cut_answer"]
    assert main([*words, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["tokens"]["max"] == limit
    assert found["cut"]["records"] == found["cut"]["tokens"] > 0  # one token of each of the longest
    assert main(words) == 0
    assert f"{found['cut']['records']} are cut at the end of their last answer" in capsys.readouterr().out


def test_plan_measures_what_the_stages_of_a_recipe_read(capsys):
    assert (
        main(["plan", RECIPE, "data=recipe", "samples=20", "stages.1.global_batch_size=5", "stage=align", "--json"])
        == 0
    )

    (found,) = json.loads(capsys.readouterr().out)
    assert (found["stage"], found["measured"]) == ("align", 20)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ranks=4"], "ranks=4 is about data; write either images and videos, or data=FILE"),
        (["data=recipe", "image=10x10"], "image=10x10 is an image or video; write either"),
        (["data=recipe", "ranks=many"], "ranks='many' is no number"),
        (["data=recipe", "stage=onevison"], "no stage is called 'onevison'. Did you mean 'onevision'?"),
        (["data=train.txt"], "data=train.txt: nothing reads"),
    ],
)
def test_plan_refuses_what_cannot_be_asked_of_data(capsys, words, message):
    assert main(["plan", RECIPE, *words]) == 2
    assert message in capsys.readouterr().err


def test_plan_of_a_system_has_no_data_of_its_own(capsys):
    assert main(["plan", "llava_onevision/qwen2_0_5b", "data=recipe"]) == 2
    assert "a system has no data of its own; write data=FILE" in capsys.readouterr().err


def test_what_a_recipe_trains_is_said_by_stage(capsys):
    assert main(["plan", "llava_1_5/lora", "--trains", "--json"]) == 0
    tables = json.loads(capsys.readouterr().out)
    instruct = {row["part"]: row for row in tables["instruct"]}
    # 32 blocks of 4096 (11008 inside): 7 linear layers each, rank 128 on either side.
    assert instruct["lora"]["learning"] == 32 * 128 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    assert (instruct["lora"]["lr"], instruct["projector"]["lr"], instruct["encoder"]["learning"]) == (2e-4, 2e-5, 0)
    assert main(["plan", "llava_1_5/lora", "--trains"]) == 0
    assert "rank 128, alpha 256, on 224 layers" in capsys.readouterr().out
