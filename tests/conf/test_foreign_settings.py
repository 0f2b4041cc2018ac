"""Settings typed by habit, from other trainers or our own earlier versions, get an error that names ours."""

import copy

import pytest

from mmblocks import conf
from mmblocks.components import REGISTRIES
from mmblocks.errors import ConfigError
from mmblocks.foreign_settings import explain_foreign_setting
from mmblocks.settings import list_settings
from mmblocks.train.stages import Stage, TrainRun, find_run_faults, read_run

RECIPE = "tiny/onevision"
# Typed; where it is written (a stage or the run); our name.
HABITS = [
    ("lr", "stage", "a part in a stage's `train`"),
    ("learning_rate", "stage", "'lr' here"),
    ("rate", "stage", "'lr' here"),
    ("per_device_train_batch_size", "stage", "'global_batch_size'"),
    ("batch_size", "stage", "'global_batch_size'"),
    ("gradient_accumulation_steps", "stage", "'global_batch_size'"),
    ("model_max_length", "stage", "'max_tokens'"),
    ("num_train_epochs", "stage", "'epochs'"),
    ("max_steps", "stage", "'steps'"),
    ("warmup_ratio", "stage", "'warmup'"),
    ("lr_scheduler_type", "stage", "'schedule'"),
    ("clip", "stage", "'max_grad_norm'"),
    ("bf16", "stage", "'precision'"),
    ("gradient_checkpointing", "stage", "belongs to the run"),
    ("freeze_backbone", "stage", "'train'"),
    ("recompute", "run", "'gradient_checkpointing'"),
    ("max_grad_norm", "run", "belongs to a stage"),
    ("learning_rate", "run", "a part in a stage's `train`"),
    ("global_batch_size", "run", "belongs to a stage"),
    ("sight", "run", "'encoder_pretraining'"),
    ("start_at", "run", "'first_stage'"),
    ("stop_after", "run", "'last_stage'"),
    ("look_at", "run", "'visual_ablation_at'"),
    ("output_dir", "run", "'out'"),
    ("save_steps", "run", "'save_every'"),
    ("deepspeed", "run", "torchrun"),
    ("optim", "run", "AdamW"),
]


def key_of(typed, place):
    return f"stages.0.{typed}" if place == "stage" else typed


@pytest.fixture(scope="module")
def composed():
    return conf.compose(RECIPE)


@pytest.mark.parametrize(("typed", "place", "ours"), HABITS)
def test_plain_values_name_ours(composed, typed, place, ours):
    raw = copy.deepcopy(composed)
    (raw["stages"][0] if place == "stage" else raw)[typed] = 1
    (fault,) = find_run_faults(raw)
    assert fault.key == key_of(typed, place)
    assert ours in fault.cure
    with pytest.raises(ConfigError, match="is not a setting") as caught:
        read_run(raw)
    assert caught.value.faults == (fault,)


@pytest.mark.parametrize(("typed", "place", "ours"), HABITS[::4])
def test_overrides_name_ours(typed, place, ours):
    for sign in ("", "+"):
        with pytest.raises(ConfigError) as caught:
            conf.compose(RECIPE, [f"{sign}{key_of(typed, place)}=1"])
        assert f"{key_of(typed, place)} is not a setting" in str(caught.value)
        assert ours in str(caught.value)


@pytest.mark.parametrize(("typed", "ours"), [("recompute", "'gradient_checkpointing'"), ("stop_after", "'last_stage'")])
def test_recipes_name_ours(tmp_path, typed, ours):
    (tmp_path / "mine.yaml").write_text(f"defaults: [/{RECIPE}@_global_]\n{typed}: 1\n")
    with pytest.raises(ConfigError, match=f"{typed} is not a setting. Write {ours}"):
        conf.compose(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("stages.0.train.marks=1e-3", "Write 'learned_tokens'"),
        ("+stages.0.train.projector.learning_rate=1", "Write 'lr'"),
        ("+stages.0.train.lora.lora_r=8", "Write 'rank'"),
        ("stages.0.data.0.take=first:3", "Write 'subset'"),
        ("model.tokenizer.clip=frames", "Write 'video'"),
        ("encoder_pretraining.rate=1", "Write 'lr'"),
    ],
)
def test_places_of_their_own_name_ours(override, says):
    with pytest.raises(ConfigError, match=says):
        conf.compose(RECIPE, [override])


def test_a_component_names_ours():
    (fault,) = REGISTRIES["encoder"].find_faults({"name": "siglip", "gradient_checkpointing": True})
    assert "It belongs to the run" in fault.cure


def test_what_is_a_setting_of_a_run_is_never_called_foreign_there():
    for schema in (TrainRun, Stage):
        known = list_settings(schema)
        assert all(explain_foreign_setting(name, known).startswith(("", f"Write {name!r}")) for name in known)


def test_a_name_that_nobody_uses_is_not_explained():
    assert explain_foreign_setting("wheels", ["steps"]) == ""
