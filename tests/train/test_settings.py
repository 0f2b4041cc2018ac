"""What a run's further settings do: each changes what it says and nothing else."""

import json

import pytest
import torch
from transformers import LlavaOnevisionForConditionalGeneration

import mmblocks
from mmblocks.errors import ConfigError, DataError, TrainingError
from mmblocks.train import run
from mmblocks.train.state import list_resume_points

WORLD = [{"name": "tinyworld", "task": "single"}]
HELD_OUT = {"every": 2, "data": [{"name": "tinyworld", "task": "single", "split": "heldout", "size": 8}], "samples": 8}


@pytest.fixture
def recipe(recipe):
    """One stage of six steps in which all learns."""
    rates = {"encoder": 1e-3, "projector": 1e-3, "learned_tokens": 1e-3, "backbone": 1e-3}
    return {**recipe, "stages": [{"name": "a", "data": WORLD, "train": rates, "steps": 6, "global_batch_size": 2}]}


def with_stage(recipe, **settings):
    return {**recipe, "stages": [{**recipe["stages"][0], **settings}]}


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_recomputing_blocks_changes_no_weight(recipe, tmp_path, weights, same, undisturbed):
    run({**recipe, "out": str(tmp_path / "again"), "gradient_checkpointing": True})
    assert same(weights(undisturbed(recipe) / "model"), weights(tmp_path / "again/model"))


def test_bfloat16_computes_nearly_the_same_and_keeps_float32_weights(recipe, tmp_path, weights, undisturbed):
    whole = undisturbed({**recipe, "log_every": 1})
    run({**with_stage(recipe, precision="bfloat16"), "out": str(tmp_path / "half"), "log_every": 1})
    full, half = ([row["loss"] for row in rows(out)] for out in (whole, tmp_path / "half"))
    assert half == pytest.approx(full, rel=0.02)  # 8 bits of mantissa
    assert half != full
    assert {tensor.dtype for tensor in weights(tmp_path / "half/model").values()} == {torch.float32}


def test_the_average_is_what_is_saved_and_the_weights_go_on(recipe, tmp_path, weights, same, undisturbed):
    whole = undisturbed({**recipe, "log_every": 1})
    run({**recipe, "out": str(tmp_path / "averaged"), "log_every": 1, "ema": 0.9})
    assert not same(weights(whole / "model"), weights(tmp_path / "averaged/model"))
    plain, averaged = ([row["loss"] for row in rows(out)] for out in (whole, tmp_path / "averaged"))
    assert plain == averaged


def test_an_average_goes_on_where_it_was(recipe, tmp_path, trained, killed_in_step, weights, same):
    recipe = {**recipe, "ema": 0.9}
    run({**recipe, "out": str(tmp_path / "whole")})
    trained(recipe, patch=killed_in_step(4))
    run(recipe)
    assert same(weights(tmp_path / "run/model"), weights(tmp_path / "whole/model"))


def test_the_last_states_are_kept_and_go_with_their_stage(recipe, tmp_path, monkeypatch):
    from mmblocks.train import stage_run

    kept = []
    real = stage_run.save_stage
    monkeypatch.setattr(
        stage_run, "save_stage", lambda *given: (kept.append(list_resume_points(tmp_path / "run")), real(*given))[1]
    )
    run({**recipe, "save_every": 1, "keep": 3})
    assert [place.step for place in kept[0]] == [3, 4, 5]
    assert [(place.stage, place.step) for place in list_resume_points(tmp_path / "run")] == [(1, 0)]


def test_the_weights_that_measured_best_are_kept(recipe, tmp_path, weights, same):
    run({**recipe, "evaluate": HELD_OUT, "keep_best": True})
    measured = {row["step"]: row["eval/loss"] for row in rows(tmp_path / "run") if "eval/loss" in row}
    assert sorted(measured) == [2, 4, 6]
    best = json.loads((tmp_path / "run/best/0.json").read_text())
    assert best["eval/loss"] == min(measured.values())
    if best["step"] == 6:
        assert same(weights(tmp_path / "run/best/0-a"), weights(tmp_path / "run/model"))


def test_measuring_changes_nothing_in_training(recipe, tmp_path, weights, same, undisturbed):
    run({**recipe, "out": str(tmp_path / "measured"), "evaluate": HELD_OUT, "visual_ablation_at": 2})
    assert same(weights(undisturbed(recipe) / "model"), weights(tmp_path / "measured/model"))
    assert any("visual_ablation/true" in row for row in rows(tmp_path / "measured"))


def test_a_curriculum_can_begin_in_the_middle(recipe, tmp_path, weights, same):
    first = recipe["stages"][0]
    recipe["stages"] = [{**first, "name": name, "steps": 2} for name in ("a", "b", "c")]
    run(recipe)
    start = str(tmp_path / "run/stages/0-a")
    run({**recipe, "out": str(tmp_path / "rest"), "weights": start, "first_stage": "b"})
    assert same(weights(tmp_path / "rest/model"), weights(tmp_path / "run/model"))
    run({**recipe, "out": str(tmp_path / "one"), "weights": start, "first_stage": "b", "last_stage": "b"})
    assert same(weights(tmp_path / "one/model"), weights(tmp_path / "run/stages/1-b"))


def test_a_stage_has_visual_tokenizers_of_its_own_and_the_model_keeps_its(recipe, tmp_path, undisturbed):
    few = {"image": "pad", "video": {"name": "frames", "max_frames": 1}}
    whole = undisturbed({**recipe, "log_every": 1})
    run({**with_stage(recipe, tokenizer=few), "out": str(tmp_path / "few"), "log_every": 1})
    views = [sum(row["views_per_s"] / row["tokens_per_s"] for row in rows(out)) for out in (whole, tmp_path / "few")]
    assert views[1] < views[0]
    assert mmblocks.load(tmp_path / "few/model").spec == mmblocks.load(whole / "model").spec


def test_a_saved_model_takes_the_recipes_tokenizers_and_refuses_other_parts(recipe, tmp_path):
    first = with_stage(recipe, steps=1)
    run(first)
    start = {"weights": str(tmp_path / "run/model"), "out": str(tmp_path / "next")}
    clips = {**first["model"]["tokenizer"], "video": {"name": "frames", "max_frames": 2}}
    run({**first, **start, "model": {**first["model"], "tokenizer": clips, "pooling": "none"}})
    spec = mmblocks.load(tmp_path / "next/model").spec
    assert spec.tokenizer["video"]["max_frames"] == 2
    assert spec.pooling["name"] == "none"
    with pytest.raises(ConfigError, match=r"model\.projector: depth differs.*mmblocks swap"):
        run({**first, **start, "model": {**first["model"], "projector": {"name": "mlp", "depth": 3}}})


def test_a_record_that_cannot_be_read_stops_the_run_or_is_left_out_and_listed(recipe, tmp_path, caplog):
    from PIL import Image

    turns = [{"from": "human", "value": "<image>\nwhat is this ?"}, {"from": "gpt", "value": "red"}]
    records = [{"id": str(i), "image": f"{i}.png", "conversations": turns} for i in range(6)]
    (tmp_path / "data.json").write_text(json.dumps(records))
    for i in range(5):
        Image.new("RGB", (20, 20), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
    data = [{"name": "llava_json", "path": str(tmp_path / "data.json")}]
    recipe = with_stage(recipe, data=data, steps=None, epochs=1.0)
    with pytest.raises(DataError, match=r"5\.png"):
        run(recipe)
    run({**recipe, "out": str(tmp_path / "skipped"), "broken": "skip"})
    (line,) = map(json.loads, (tmp_path / "skipped/broken.jsonl").read_text().splitlines())
    assert "5.png" in line["reason"]
    assert "does not exist" in line["reason"]
    assert "1 of 6 records left out" in caplog.text


def test_an_overlong_sample_stops_the_run_or_is_left_out_or_cut_and_listed(recipe, tmp_path, caplog):
    said = ["red", "red " * 40, "blue"]
    records = [[{"from": "human", "value": "what ?"}, {"from": "gpt", "value": text}] for text in said]
    (tmp_path / "data.json").write_text(json.dumps([{"conversations": turns} for turns in records]))
    data = [{"name": "llava_json", "path": str(tmp_path / "data.json")}]
    recipe = with_stage(recipe, data=data, steps=None, epochs=2.0, max_tokens=30)
    packed = with_stage(recipe, global_batch_size=None, step_tokens=60, pack_tokens=30)
    with pytest.raises(DataError, match=r"1 x longer than the limit of tokens; with max_tokens=\d+ none would be"):
        run(recipe)
    with pytest.raises(DataError, match=r"Of the 3 records of '0 llava_json .*' 1 is too long; with max_tokens=\d+"):
        run({**packed, "out": str(tmp_path / "packed")})
    for number, one in enumerate((recipe, packed)):
        run({**with_stage(one, overlong="skip"), "out": str(tmp_path / f"skipped {number}")})
        (line,) = {line["origin"] for line in lines_of(tmp_path / f"skipped {number}/broken.jsonl")}
        assert line.endswith("data.json:record 1")
        assert "1 of 3 records left out" in caplog.text
        caplog.clear()
        run({**with_stage(one, overlong="cut_answer"), "out": str(tmp_path / f"cut {number}")})
        cut = lines_of(tmp_path / f"cut {number}/cut.jsonl")
        assert [line["origin"][-8:] for line in cut] == ["record 1"] * 2  # once in each epoch
        assert f"1 of 3 records lost {cut[0]['tokens']} tokens at the end of their last answer" in caplog.text
        caplog.clear()


def lines_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_last_model_is_exported(recipe, tmp_path, tiny_spec):
    encoder = {"name": "siglip", "image_px": 24, "patch_px": 8, "dim": 16, "depth": 2, "heads": 2, "mlp_dim": 32}
    recipe = {**with_stage(recipe, steps=1), "model": {**tiny_spec, "encoder": encoder}, "export": "transformers"}
    run(recipe)
    theirs = LlavaOnevisionForConditionalGeneration.from_pretrained(tmp_path / "run/transformers")
    assert theirs.config.vision_config.hidden_size == 16


def test_a_loss_that_is_not_finite_stops_the_run(recipe):
    rates = dict.fromkeys(recipe["stages"][0]["train"], 1e30)
    with pytest.raises(TrainingError, match="lower learning rate"):
        run({**with_stage(recipe, train=rates, warmup=0.0), "log_every": 1})


def test_data_that_has_changed_is_not_gone_on_with(recipe, tmp_path, trained, killed_in_step):
    records = [{"messages": [{"role": "user", "content": "red ?"}, {"role": "assistant", "content": "yes"}]}] * 20
    (tmp_path / "data.json").write_text(json.dumps(records))
    recipe = with_stage(
        recipe, data=[{"name": "messages", "path": str(tmp_path / "data.json")}], train={"backbone": 1e-3}
    )
    trained(recipe, patch=killed_in_step(4))
    (tmp_path / "data.json").write_text(json.dumps(records[:15]))
    with pytest.raises(DataError, match="held 20 records then and holds 15 now"):
        run(recipe)


def test_a_folder_of_another_run_is_refused_with_what_differs(recipe):
    run(with_stage(recipe, steps=1))
    with pytest.raises(ConfigError, match=r"other settings \(stages\.0\.max_grad_norm, seed\)"):
        run({**with_stage(recipe, steps=1, max_grad_norm=2.0), "seed": 5})
