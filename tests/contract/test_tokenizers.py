"""Laws that every visual tokenizer obeys: those of mmblocks.testing, asked one by one, presets too."""

import pytest

from mmblocks.components import poolings, tokenizers
from mmblocks.shapes import Size, VisualShape
from mmblocks.testing import CHECKS
from mmblocks.testing.laws import Subject
from mmblocks.testing.tokenizers import TokenizerSetup, check_lowered_plan
from mmblocks.tokenizers.lowering import MOST_CELLS, lower_tokenizer_plan

VIEW_PX = Size(28, 28)
VISUALS = [
    *(VisualShape("image", Size(*size)) for size in [(28, 28), (57, 40), (1, 4000), (4000, 1), (100, 300), (500, 500)]),
    *(VisualShape("video", Size(9, 160), frames) for frames in (1, 3, 40)),
]
SETTINGS = {
    "anyres": [{"merge": "spatial"}, {"merge": "flat"}, {"max_tiles": 1}, {"base": False, "max_tiles": 2}],
    "frames": [{"newline": n} for n in ("grid", "frame", "none")] + [{"pool_at": "features", "force": True}],
    "stamped_frames": [{"newline": True}, {"force": True}],
    "slow_fast": [{"every": 1}, {"every": 3, "force": True, "fast_stride": 3}],
    "tiles_marked": [{"marking": "learned"}],
    "scene_views": [{"pooled": True, "newline": True}],
    "square": [{"newline": True}],
}
LINEAR = [name for name in poolings if Subject.from_part(poolings, name, {}).build().linear]


@pytest.mark.parametrize("law", CHECKS["tokenizer"], ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", list(tokenizers))
def test_a_tokenizer_keeps_the_law(name, law):
    law(Subject.from_part(tokenizers, name, {}))


def placed(name, settings, pooling, grid):
    beside = {"view_px": VIEW_PX, "grid": grid, "spatial": True, "squash": True}
    pool = Subject.from_part(poolings, pooling, {}).build()
    return TokenizerSetup(Subject.from_part(tokenizers, name, settings).build(**beside, pooling=pool), grid)


@pytest.mark.parametrize("grid", [Size(6, 6), Size(7, 5)], ids=str)
@pytest.mark.parametrize("name", list(tokenizers))
def test_whatever_the_linear_pooling_a_plan_lowers_to_what_is_assembled(name, grid):
    tried = 0
    for pooling in LINEAR:
        for settings in [{}, *SETTINGS.get(name, [])]:
            place = placed(name, settings, pooling, grid)
            if place.tokenizer.find_faults():
                continue
            served = {"image", "multi_image", "video"} & place.tokenizer.scenarios
            for shape in (s for s in VISUALS if (s.kind == "video") == ("video" in served)):
                assert lower_tokenizer_plan(place.tokenizer, place.tokenizer.plan(shape)) is not None
                check_lowered_plan(place, shape)
                tried += 1
    assert tried


@pytest.mark.parametrize(
    ("name", "settings", "pooling"),
    [
        ("frames", {}, "max"),
        ("slow_fast", {}, "max"),
        ("scene_views", {"pooled": True}, "max"),
        ("anyres", {"merge": "maxpool2x2"}, "none"),
    ],
)
def test_what_is_not_linear_does_not_lower(name, settings, pooling):
    place = placed(name, settings, pooling, Size(6, 6))
    shape = next(s for s in VISUALS if (s.kind == "video") == ("video" in place.tokenizer.scenarios))
    assert lower_tokenizer_plan(place.tokenizer, place.tokenizer.plan(shape)) is None


def test_a_pooling_of_too_many_cells_does_not_lower():
    small, large = (placed("frames", {}, "adaptive_average_1", Size(side, side)).tokenizer for side in (8, 9))
    assert small.grid.area == MOST_CELLS < large.grid.area
    assert lower_tokenizer_plan(small, small.plan(VISUALS[-1])) is not None
    assert lower_tokenizer_plan(large, large.plan(VISUALS[-1])) is None


def test_an_assembly_of_ones_own_is_not_lowered_as_that_of_the_parent():
    frames = type(placed("frames", {}, "bilinear", Size(6, 6)).tokenizer)

    class Doubled(frames):
        def assemble(self, x, plan, marks):
            return 2 * super().assemble(x, plan, marks)

    doubled = Doubled(VIEW_PX, Size(6, 6), True, True, Subject.from_part(poolings, "bilinear", {}).build())
    assert lower_tokenizer_plan(doubled, doubled.plan(VISUALS[-1])) is None
