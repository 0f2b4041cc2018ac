"""Two runs told apart: everything in which they differ, nothing in which they agree."""

import json

import pytest

from mmblocks.errors import ConfigError
from mmblocks.sweep.diff import find_differences

STAGES = [
    {"name": "align", "data": [{"name": "tinyworld", "task": "caption"}], "train": {"projector": 1e-3}, "steps": 9},
    {"name": "all", "data": [{"name": "tinyworld", "task": "single"}], "train": {"backbone": 1e-5}, "steps": 9},
]


@pytest.fixture
def run_of(tmp_path, tiny_spec):
    """Makes the folder of a run with some changes to its model, recipe and last loss."""

    def make(name, model=None, stages=STAGES, loss=2.0, **settings):
        folder = tmp_path / name
        folder.mkdir()
        recipe = {"model": {**tiny_spec, **(model or {})}, "out": name, "seed": 0, "stages": stages, **settings}
        (folder / "run.json").write_text(json.dumps(recipe))
        row = {"stage": "all", "step": 9, "loss": loss, "tokens_per_s": len(name), "seconds/data": len(name)}
        (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n" + '{"stage": "all", "st')
        return folder

    return make


def test_equal_runs_differ_in_nothing_wherever_they_lie_and_however_fast_they_were(run_of):
    assert find_differences(run_of("one"), run_of("the_other")) == {}


def test_another_projector_shows_in_components_and_shapes_and_nowhere_else(run_of):
    found = find_differences(run_of("a"), run_of("b", {"projector": "linear"}))
    assert set(found) == {"components", "parameters"}
    assert found["components"]["projector"] == ("mlp", "linear")
    assert found["components"]["projector.depth"] == (2, None)
    assert found["parameters"]["projector"] == (16 * 32 + 32 + 32 * 32 + 32, 16 * 32 + 32)
    assert "encoder" not in found["parameters"]


def test_layers_that_are_alike_are_told_in_one_line(run_of, tiny_spec):
    deeper = {"backbone": {**tiny_spec["backbone"], "depth": 3}}
    shapes = find_differences(run_of("a"), run_of("b", deeper))["parameters"]
    (gates,) = [pair for key, pair in shapes.items() if key.endswith("layers.*.mlp.gate_proj.weight")]
    assert gates == ("2 of 48x32", "3 of 48x32")


def test_fewer_tiles_show_in_the_tokens_of_a_large_picture(run_of, tiny_spec):
    fewer = {"tokenizer": {**tiny_spec["tokenizer"], "image": {**tiny_spec["tokenizer"]["image"], "max_tiles": 1}}}
    found = find_differences(run_of("a"), run_of("b", fewer), ["image=20x20", "image=1000x700"])
    assert found["components"] == {"tokenizer.image.max_tiles": (4, 1)}
    (word, (left, right)), *others = found["visual tokens"].items()
    assert (word, others) == ("image=1000x700", [])
    assert int(left.split()[0]) > int(right.split()[0])


def test_data_stages_settings_and_metrics_have_sections_of_their_own(run_of):
    other = [{**STAGES[0], "steps": 5}, {**STAGES[1], "data": [{"name": "tinyworld", "task": "multi"}], "clip": 0.5}]
    found = find_differences(run_of("a"), run_of("b", stages=other, seed=1, loss=1.5))
    assert found == {
        "data": {"all.data.0.task": ("single", "multi")},
        "stages": {"align.steps": (9, 5), "all.clip": (None, 0.5)},
        "settings": {"seed": (0, 1)},
        "final metrics": {"all.loss": (2.0, 1.5)},
    }


def test_a_stage_that_only_one_of_them_has_is_told(run_of):
    stages = find_differences(run_of("a"), run_of("b", stages=STAGES[:1]))["stages"]
    assert stages["order"] == (["align", "all"], ["align"])
    assert stages["all.train.backbone"] == (1e-5, None)


def test_a_model_can_be_compared_with_a_run(run_of, tiny_spec, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(
        json.dumps({"mmblocks": "0.1.0", "model": {**tiny_spec, "projector": "linear"}})
    )
    found = find_differences(run_of("a"), tmp_path / "model")
    assert found["components"]["projector"] == ("mlp", "linear")
    assert found["settings"]["seed"] == (0, None)


def test_a_folder_of_neither_is_refused(run_of, tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere is not there; name the folder of a run"):
        find_differences(run_of("a"), tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"is without run\.json and config\.json"):
        find_differences(tmp_path, tmp_path)
    (tmp_path / "a/run.json").write_text("{")
    with pytest.raises(ConfigError, match=r"run\.json is not a run's recipe"):
        find_differences(tmp_path / "a", tmp_path / "a")
