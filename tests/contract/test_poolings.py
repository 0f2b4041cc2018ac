"""Every pooling passes the conformance checks of mmblocks.testing, one by one, and the family's own sizes."""

import pytest

from mmblocks.components import poolings
from mmblocks.errors import ConfigError
from mmblocks.shapes import Size
from mmblocks.testing import CHECKS
from mmblocks.testing.conformance import Subject


@pytest.mark.parametrize("check", CHECKS["pooling"], ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", list(poolings))
def test_a_pooling_conforms(name, check):
    check(Subject.from_part(poolings, name, {}))


def test_a_grid_of_the_family_is_taken():
    for name in poolings:
        assert min(poolings.build(name).out_grid(grid).area for grid in (Size(27, 27), Size(24, 24))) >= 1


def test_the_sizes_of_the_family_are_met():
    sizes = {name: poolings.build(name).out_grid(Size(27, 27)).area for name in poolings}
    of_the_original = {"bilinear": 196, "average": 169, "max": 169, "none": 729}
    fixed = {"adaptive_average": 144, "adaptive_average_8": 64, "adaptive_average_1": 1}
    others = {"average_3": 81, "average_4": 36, "bilinear_antialiased": 196}
    assert {**of_the_original, **fixed, **others}.items() <= sizes.items()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"name": "adaptive_average", "rows": 0}, "rows=0; write rows >= 1"),
        ({"name": "adaptive_average", "columns": -1}, "columns=-1; write columns >= 1"),
        ({"name": "bilinear_antialiased", "stride": 0}, "'bilinear_antialiased': stride=0"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(spec, words):
    with pytest.raises(ConfigError, match=words):
        poolings.build(spec)


def test_a_fixed_grid_is_not_made_of_fewer_cells():
    with pytest.raises(ConfigError, match="a grid of 9x24 has; write at most rows=9 and columns=24"):
        poolings.build("adaptive_average").out_grid(Size(9, 24))
