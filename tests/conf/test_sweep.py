"""What a sweep is asked for, and what is refused before anything starts."""

import json

import pytest

from mmblocks import conf
from mmblocks.errors import ConfigError
from mmblocks.sweep.launch import TINY_VISUALS, SweepArguments, prepare_sweep
from mmblocks.sweep.trials import Axis, Sweep


def test_words_vary_hold_for_all_choose_the_launcher_or_name_visuals():
    words = ["model/projector=mlp,linear", "budget=0.5", "hydra/launcher=joblib", "image=96x72", "seed=range(0,3)"]
    said = SweepArguments.from_words("mini/one", words)
    assert said.axes == (Axis("model/projector", ("mlp", "linear")), Axis("seed", ("0", "1", "2")))
    assert (said.shared, said.launcher, said.visuals) == (("budget=0.5",), ("hydra/launcher=joblib",), ("image=96x72",))


def test_a_list_is_one_value():
    said = SweepArguments.from_words("mini/one", ["model.encoder.widths=[8,8],[16,16]"])
    assert said.axes[0].values == ("[8,8]", "[16,16]")


@pytest.mark.usefixtures("recipes")
def test_every_cell_is_composed_into_a_folder_of_its_own():
    folder = prepare_sweep("mini/one", ["model/projector=mlp,linear", "seed=0,1", "budget=0.25"])
    assert folder.as_posix() == "runs/mini/sweep"
    names = [cell.name for cell in Sweep.load(folder).trials]
    assert names == [
        "projector-mlp_seed-0",
        "projector-mlp_seed-1",
        "projector-linear_seed-0",
        "projector-linear_seed-1",
    ]
    made = json.loads((folder / names[3] / "trial.json").read_text())
    expected = conf.compose("mini/one", ["model/projector=linear", "seed=1", "budget=0.25"])
    assert made["recipe"] == {**expected, "out": str(folder / names[3])}
    assert made["cost"]["visual_tokens"] > 0
    assert made["cost"]["flops"] > made["cost"]["parameters"] > 0


@pytest.mark.usefixtures("recipes")
def test_drawn_data_is_scored_by_exact_answers_and_counted_at_its_own_sizes(tmp_path):
    sweep = Sweep.load(prepare_sweep("mini/one", ["seed=0,1"], out=tmp_path / "a"))
    assert (sweep.score, sweep.visuals) == ({"name": "tiny", "limit": 200}, TINY_VISUALS)
    asked = prepare_sweep("mini/one", ["seed=0,1", "image=1000x700"], out=tmp_path / "b", score="tiny limit=7")
    assert Sweep.load(asked).score == {"name": "tiny", "limit": 7}
    assert Sweep.load(asked).visuals == ("image=1000x700",)


@pytest.mark.usefixtures("recipes")
def test_all_faults_of_all_cells_are_listed_and_nothing_is_written(tmp_path):
    with pytest.raises(ConfigError) as caught:
        prepare_sweep("mini/one", ["model/projector=mlp,linera", "stages.0.warmup=0.1,7"], out=tmp_path / "s")
    said = str(caught.value)
    assert "projector-mlp_warmup-7: stages.0.warmup: warmup=7.0 is not a share of the steps." in said
    assert (
        "projector-linera_warmup-0.1: recipe 'mini/one': no projector is called 'linera'. Did you mean 'linear'?"
        in said
    )
    assert "projector-mlp_warmup-0.1" not in said
    assert not (tmp_path / "s").exists()


@pytest.mark.usefixtures("recipes")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seed=1"], "nothing varies"),
        (["seed=interval(0,1)"], r"does not say which values; list them: seed=a,b,c"),
        (["seed=0,1", "out=here"], r"name the sweep's with --out"),
        (["seed=0,1", "hydra/launcher=jobblib"], r"no launcher is called 'jobblib'. Did you mean 'joblib'\?"),
        (["seed=0,1", "hydra.launcher.speed=9"], "hydra.launcher.speed"),
        (["seed=0,1", "hydra.sweep.dir=x"], "of Hydra's settings a sweep takes"),
        (["seed=["], "cannot be read"),
    ],
)
def test_words_that_make_no_sweep_are_refused(words, said):
    with pytest.raises(ConfigError, match=said):
        prepare_sweep("mini/one", words)


@pytest.mark.usefixtures("recipes")
def test_a_folder_keeps_the_cells_it_has_and_takes_more(tmp_path):
    prepare_sweep("mini/one", ["seed=0,1"], out=tmp_path)
    prepare_sweep("mini/one", ["seed=1,2", "threads=2"], out=tmp_path)
    assert [cell.name for cell in Sweep.load(tmp_path).trials] == ["seed-1", "seed-2"]
    with pytest.raises(ConfigError, match=r"seed-1 holds a trial with other settings \(they differ in budget\)"):
        prepare_sweep("mini/one", ["seed=1,2", "budget=0.1"], out=tmp_path)
    with pytest.raises(ConfigError, match=r"seed-1 holds a trial with other settings \(they differ in stages\)"):
        prepare_sweep("mini/one", ["seed=1,2", "stages.0.train.projector=9e-9"], out=tmp_path)


@pytest.mark.usefixtures("recipes")
def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "seed-0").mkdir()
    with pytest.raises(ConfigError, match="is there already, and is no trial of a sweep"):
        prepare_sweep("mini/one", ["seed=0,1"], out=tmp_path)
