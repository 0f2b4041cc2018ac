"""A recipe is checked whole: its model, its stages, its data and what they need of each other."""

import copy

import pytest

from mmblocks.train.checks.run import check_run

MISSING = object()


@pytest.fixture
def recipe(tiny_spec):
    data = [{"name": "tinyworld", "task": "single", "weight": 2.0}]
    align = {"name": "align", "data": data, "train": {"projector": 1e-3}, "steps": 4, "global_batch_size": 2}
    tune = {
        **align,
        "name": "tune",
        "train": {"encoder": 1e-4, "projector": 1e-3, "learned_tokens": 1e-3, "backbone": 1e-4},
    }
    stages = [copy.deepcopy(stage) for stage in (align, tune)]
    return {"model": copy.deepcopy(tiny_spec), "stages": stages, "out": "runs/tiny"}


def planted(recipe, path, value):
    *parents, last = path.split(".")
    node = recipe
    for word in parents:
        node = node[int(word)] if isinstance(node, list) else node[word]
    if value is MISSING:
        del node[last]
    else:
        node[int(last) if isinstance(node, list) else last] = value
    return recipe


PLANTED = [
    ("seeed", 1, "seeed", "Did you mean 'seed'?"),
    ("seed", "one", "seed", "is not int"),
    ("out", MISSING, "out", "is missing"),
    ("budget", 0, "budget", "Write a number above 0"),
    ("threads", -1, "threads", "Write 0 or more"),
    ("workers", -2, "workers", "Write 0 or more"),
    ("save_every", 0, "save_every", "Write 1 or more"),
    ("log_every", 0, "log_every", "Write 1 or more"),
    ("device", "gpu", "device", "Write auto, cpu, cuda"),
    ("weights", "runs/tiny/nothing", "weights", "the folder of a model"),
    ("weights", "runs/nothing", "weights", "no folder runs/nothing here; the run downloads it"),
    ("weights", "pretrained", "model.encoder", "weights=random"),
    ("weights", "pretrained", "model.backbone.checkpoint", "Name a hub id or a folder"),
    ("last_stage", "alin", "last_stage", "Did you mean 'align'?"),
    ("stages", [], "stages", "at least one stage"),
    ("stages.0", "align", "stages.0", "is not a stage"),
    ("stages.0.stesp", 4, "stages.0.stesp", "Did you mean 'steps'?"),
    ("stages.0.steps", 0, "stages.0.steps", "at least 1"),
    ("stages.0.steps", 1.5, "stages.0.steps", "is not int"),
    ("stages.0.global_batch_size", 0, "stages.0.global_batch_size", "at least 1"),
    ("stages.0.warmup", 2.0, "stages.0.warmup", "from 0 to 1"),
    ("stages.0.weight_decay", -0.1, "stages.0.weight_decay", "Write 0 or more"),
    ("stages.0.max_grad_norm", 0.0, "stages.0.max_grad_norm", "a norm above 0"),
    ("stages.0.name", "a/b", "stages.0.name", "Use letters"),
    ("stages.0.name", "tune", "stages.1.name", "Give each its own name"),
    ("stages.0.template", "vicuna", "stages.0.template", "Did you mean 'vicuna_v1'?"),
    ("stages.0.template", "llama_3", "stages.0.template", "does not have '<|begin_of_text|>'"),
    ("stages.0.template", "tokenizer", "stages.0.template", "has no chat template"),
    ("stages.0.visuals", "first", "stages.0.visuals", "one of as_written, front, mixed"),
    ("stages.0.targets", "all", "stages.0.targets", "one of answers, original"),
    ("stages.0.train", {}, "stages.0.train", "name at least one of encoder"),
    ("stages.0.train", {"projetcor": 1e-3}, "stages.0.train.projetcor", "Did you mean 'projector'?"),
    ("stages.0.train.projector", 0, "stages.0.train.projector", "leave the part out to freeze it"),
    ("stages.0.data", [], "stages.0.data", "at least one source"),
    ("stages.0.data.0", "tinyworld", "stages.0.data.0", "Write name: one of"),
    ("stages.0.data.0.name", "tinywolrd", "stages.0.data.0", "Did you mean 'tinyworld'?"),
    ("stages.0.data.0.taks", "text", "stages.0.data.0.taks", "Did you mean 'task'?"),
    ("stages.0.data.0.task", "images", "stages.0.data.0.task", "one of text, caption, single, by_shape"),
    ("stages.0.data.0.turns", 0, "stages.0.data.0", "must be at least 1"),
    ("stages.0.data.0.weight", 0, "stages.0.data.0.weight", "Write a number above 0"),
    ("stages.0.data.0.subset", "last:3", "stages.0.data.0.subset", "Write all, first:N"),
    ("stages.0.data.0.prompt", 3, "stages.0.data.0.prompt", "is not a text"),
    (
        "stages.0.data.0",
        {"name": "llava_json", "path": "gone/{a,b}.json"},
        "stages.0.data.0.path",
        "gone/b.json does not",
    ),
    ("stages.0.data.0", {"name": "webdataset", "path": ["a.tar"]}, "stages.0.data.0.path", "a.tar does not exist"),
    ("stages.0.data.0", {"name": "parquet"}, "stages.0.data.0", "write either path or hub"),
    ("evaluate", {"data": [{"name": "tinywolrd"}]}, "evaluate.data.0", "Did you mean 'tinyworld'?"),
    ("evaluate", {"every": 0, "tiny": 5}, "evaluate.every", "Write 1 or more"),
    ("evaluate", {"every": 5}, "evaluate", "nothing to measure"),
    ("keep_best", True, "keep_best", "evaluate: {data"),
    ("keep", 0, "keep", "Write 1 or more"),
    ("ema", 1.0, "ema", "below 1"),
    ("track", ["tensorbord"], "track", "Did you mean 'tensorboard'?"),
    ("visual_ablation_at", -1, "visual_ablation_at", "Write 0 or more"),
    ("timeout_s", 0.0, "timeout_s", "above 0"),
    ("broken", "repeat", "broken", "one of raise, skip"),
    ("stages.0.overlong", "cut", "stages.0.overlong", "one of raise, skip, cut_answer"),
    ("first_stage", "alin", "first_stage", "Did you mean 'align'?"),
    ("export", "transformers", "export", "Leave export out"),
    ("cache_features", "cache", "cache_features", "it trains the encoder"),
    ("stages.0.steps", MISSING, "stages.0", "write either steps or epochs"),
    ("stages.0.epochs", 1.0, "stages.0", "write either steps or epochs"),
    ("stages.0.step_tokens", 100, "stages.0", "either global_batch_size"),
    ("stages.0.global_batch_size", MISSING, "stages.0", "either global_batch_size"),
    ("stages.0.pack_tokens", 0, "stages.0.pack_tokens", "at least 1"),
    ("stages.0.schedule", "cosin", "stages.0.schedule", "one of cosine, linear, constant"),
    ("stages.0.precision", "fp8", "stages.0.precision", "one of auto, float32, bfloat16"),
    ("stages.0.objective", "dop", "stages.0.objective", "Did you mean 'dpo'?"),
    ("stages.0.objective", "dpo", "stages.0.data.0", "pairs of answers"),
    ("stages.0.train", {"lora": {"rank": 4}}, "stages.0.train.lora.lr", "missing"),
    ("stages.0.train", {"lora": {"lr": 1e-3, "rank": 0}}, "stages.0.train.lora.rank", "Write 1 or more"),
    ("stages.0.train", {"lora": {"lr": 1e-3, "bits": 3}}, "stages.0.train.lora.bits", "one of 4, 8"),
    ("stages.0.train", {"lora": 1e-3, "backbone": 1e-3}, "stages.0.train", "keep one"),
    ("stages.0.train", {"projector": {"lr": 1e-3, "decay": 0.1}}, "stages.0.train.projector.decay", "weight_decay"),
    ("stages.0.tokenizer", {"picture": "frames"}, "stages.0.tokenizer.picture", "Write one of image"),
    ("stages.0.tokenizer", {"image": "anyres_mx"}, "stages.0.tokenizer.image", "Did you mean"),
    ("stages.0.tokenizer", {"video": "anyres_max"}, "stages.0.tokenizer.video", "does not serve"),
    ("model.backbone.text_tokenizer", MISSING, "model.backbone.text_tokenizer", "mmblocks:tinyworld_text"),
    ("model.projector", "mpl", "model.projector", "Did you mean 'mlp'?"),
    ("model", "onevision", "model", "is not"),
]


@pytest.mark.parametrize(("path", "value", "key", "words"), PLANTED, ids=lambda v: v if isinstance(v, str) else "")
def test_a_planted_fault_is_named_with_its_key_and_a_cure(recipe, path, value, key, words):
    found = check_run(planted(recipe, path, value))

    assert any(fault.key == key and words in str(fault) for fault in found), "\n".join(map(str, found))


def test_answers_are_not_cut_where_more_than_answers_is_learned(recipe):
    recipe["stages"][0] |= {"targets": "original", "overlong": "cut_answer", "template": "qwen_1_5"}
    (fault,) = [fault for fault in check_run(recipe) if fault.key == "stages.0.overlong"]
    assert "Write targets: answers, or overlong: skip" in str(fault)


def test_a_good_recipe_has_no_fault(recipe):
    assert check_run(recipe) == []


def test_a_mixture_file_is_looked_into_before_a_run(recipe, tmp_path):
    (tmp_path / "m.yaml").write_text("datasets: [{json_path: gone.json}]")
    recipe["stages"][1]["data"] = [{"name": "llava_mixture", "path": str(tmp_path / "m.yaml")}]
    (fault,) = check_run(recipe)
    assert fault.key == "stages.1.data.0"
    assert "datasets.0" in fault.message
    assert "gone.json does not exist" in fault.message


def test_the_hub_is_not_asked_before_a_run(recipe):
    recipe["stages"][0]["data"] = [{"name": "parquet", "hub": "nobody/nothing"}]
    assert check_run(recipe) == []


def test_a_stage_that_trains_only_parts_without_weights_is_refused(recipe):
    recipe["model"]["backbone"]["dim"] = 16
    recipe["model"]["projector"] = "identity"

    (fault,) = check_run(recipe)

    assert str(fault) == (
        "stages.0.train: projector of this model has no weights to learn. Name one of encoder, learned_tokens, backbone."
    )


def test_faults_of_run_model_stages_and_data_are_found_together(recipe):
    recipe["model"]["projector"] = "identity"
    recipe["seed"] = "x"
    recipe["stages"][0]["train"] = {"tower": 1.0}
    recipe["stages"][1]["data"][0]["task"] = "images"

    assert {fault.key for fault in check_run(recipe)} == {
        "model.projector",
        "seed",
        "stages.0.train.tower",
        "stages.1.data.0.task",
    }
