"""Which combinations a sweep holds, and what they are called."""

import re

import pytest

from mmblocks.errors import ConfigError
from mmblocks.sweep.trials import Axis, Sweep, SweepTrial, cross_axes, vary_one_at_a_time

PROJECTOR = Axis("model/projector", ("linear", "mlp", "gated"))
POOLING = Axis("model/pooling", ("bilinear", "average"))
SEED = Axis("seed", ("0", "1"))


def test_a_product_holds_every_value_with_every_other():
    cells = cross_axes([PROJECTOR, POOLING, SEED])
    assert len(cells) == 3 * 2 * 2
    assert [c.name for c in cells[:3]] == [
        "projector-linear_pooling-bilinear_seed-0",
        "projector-linear_pooling-bilinear_seed-1",
        "projector-linear_pooling-average_seed-0",
    ]
    assert cells[-1].overrides == ["model/projector=gated", "model/pooling=average", "seed=1"]


def test_a_star_leaves_its_centre_along_one_axis_at_a_time_with_every_seed():
    arms = [tuple(c.choices.values()) for c in vary_one_at_a_time([PROJECTOR, POOLING, SEED])]
    centre = ("linear", "bilinear")
    expected = [centre, ("mlp", "bilinear"), ("gated", "bilinear"), ("linear", "average")]
    assert arms == [(*arm, seed) for arm in expected for seed in ("0", "1")]


def test_keys_are_shortened_as_far_as_they_stay_apart():
    (cell,) = cross_axes(
        [Axis("stages.0.steps", ("5",)), Axis("stages.1.steps", ("9",)), Axis("model/projector", ("mlp",))]
    )
    assert cell.name == "0.steps-5_1.steps-9_projector-mlp"


@pytest.mark.parametrize("values", [("[1,2]", "1.2", "1 2"), ("a" * 400, "b"), ("../../etc", "'x/y'", "~")])
def test_every_name_is_a_folder_of_its_own(values):
    names = [cell.name for cell in cross_axes([Axis("+stages.0.data", values)])]
    assert len(set(names)) == len(values)
    assert all(re.fullmatch(r"[\w][\w.-]{0,119}", name) for name in names)


def test_a_name_does_not_depend_on_the_other_cells():
    longer = {tuple(c.choices.values()): c.name for c in cross_axes([PROJECTOR, SEED])}
    shorter = {tuple(c.choices.values()): c.name for c in cross_axes([Axis(PROJECTOR.key, ("gated",)), SEED])}
    assert shorter.items() <= longer.items()


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ([], r"nothing varies.*mmblocks train"),
        ([SEED, SEED], "seed is varied 2 times"),
        ([Axis("seed", ("0", "1", "0"))], "seed takes the value 0 more than once"),
    ],
)
def test_axes_that_make_no_grid_are_refused(axes, said):
    for cells in (cross_axes, vary_one_at_a_time):
        with pytest.raises(ConfigError, match=said):
            cells(axes)


def test_a_sweep_is_read_as_it_was_written(tmp_path):
    cells = (SweepTrial("seed-0", {"seed": "0"}), SweepTrial("seed-1", {"seed": "1"}))
    sweep = Sweep("mini", ("budget=0.5",), cells, {"name": "tiny", "limit": 20}, ("image=96x72",))
    sweep.save(tmp_path / "new")
    assert Sweep.load(tmp_path / "new") == sweep
    with pytest.raises(ConfigError, match=r"not the folder of a sweep: it has no sweep\.json"):
        Sweep.load(tmp_path)
