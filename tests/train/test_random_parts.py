"""A part that starts random and learns at a rate for tuning is warned of; published curricula are not."""

from typing import Any

import pytest

from mmblocks.cli import main
from mmblocks.conf import compose, list_recipes
from mmblocks.train.checks.run import check_run, require_run


def warned(recipe: str, *overrides: str) -> dict[str, str]:
    faults = check_run(compose(recipe, overrides))
    return {fault.key: str(fault) for fault in faults if fault.severity == "warning"}


@pytest.mark.parametrize("name", list_recipes())
def test_no_shipped_recipe_is_warned_of(name: str) -> None:
    assert not warned(name)


def test_a_random_projector_at_a_rate_for_tuning_is_named_with_its_rate_and_the_cure() -> None:
    found = warned("onevision/finetune", "weights=pretrained")
    assert found.keys() == {"stages.0.train.projector", "stages.0.train.learned_tokens"}
    text = found["stages.0.train.projector"]
    assert "projector starts random and learns at 1e-05" in text
    assert "weights=org/name" in text


def test_leaving_out_the_stage_that_begins_the_projector_is_warned_of() -> None:
    assert not warned("llava_1_5/7b", "last_stage=align")
    assert warned("llava_1_5/7b", "first_stage=instruct").keys() == {"stages.1.train.projector"}


def test_a_model_to_start_from_has_no_random_part() -> None:
    assert not warned("llava_1_5/7b", "first_stage=instruct", "weights=runs/llava_1_5/7b/stages/0-align")


def test_without_pretrained_weights_encoder_and_backbone_are_random_too() -> None:
    found = warned("onevision/finetune", "weights=random")
    parts = {key.rpartition(".")[2] for key in found}
    assert parts == {"encoder", "projector", "learned_tokens", "backbone"}
    assert "weights=pretrained" in found["stages.0.train.backbone"]


def test_adapters_on_a_random_backbone_are_warned_of_at_any_rate() -> None:
    assert "lora adapts a backbone that starts random" in str(warned("llava_1_5/lora", "weights=random"))
    assert not warned("llava_1_5/lora")


@pytest.mark.parametrize(("rate", "count"), [(5e-5, 1), (6e-5, 0), (1e-3, 0)])
def test_the_largest_rate_for_tuning_is_five_in_a_hundred_thousand(rate: float, count: int) -> None:
    tuned = [f"stages.0.train={{projector: {{lr: {rate}}}}}", "weights=pretrained"]
    assert len(warned("llava_1_5/finetune", *tuned)) == count


TINY: dict[str, Any] = {"encoder": "tiny_conv", "projector": "mlp", "backbone": "qwen2_tiny", "template": "chatml"}
SHOWN = {"name": "all", "data": [{"name": "tinyworld", "task": "single"}], "steps": 1, "global_batch_size": 1}


def test_a_warning_stops_no_run(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    raw = {"model": TINY, "out": str(tmp_path), "stages": [{**SHOWN, "train": {"projector": 1e-5}}]}
    require_run(raw)
    assert "projector starts random and learns at 1e-05" in caplog.text


def test_check_shows_warnings_loudly(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["weights=pretrained", "stages.0.data=[{name: tinyworld, task: single}]"]
    assert main(["check", "onevision/finetune", *words]) == 0
    shown = capsys.readouterr().out
    assert "ok: onevision/finetune" in shown
    assert "WARNING:\n  - stages.0.train.projector: projector starts random" in shown
