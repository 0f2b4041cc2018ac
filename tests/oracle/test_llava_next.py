"""transformers' `llava_next` in both directions: tiles, unpadding as transformers rounds, a newline after each line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import mmblocks
from mmblocks.errors import ConfigError
from mmblocks.model.convert.transformers.export import export_hf
from mmblocks.model.convert.transformers.families import import_hf

SHAPES = [  # (width, height)
    (112, 112),
    (113, 111),
    (336, 224),
    (500, 333),
    (224, 336),
    (900, 100),
    (60, 1000),
    (1, 1),
    (205, 656),  # transformers keeps two columns more here than LLaVA-NeXT
]


@pytest.fixture(scope="module", params=["clip", "siglip"])
def rig(request: pytest.FixtureRequest, make_rig: Any) -> Any:
    return make_rig("llava_next", vision=request.param)


def test_a_picture_of_any_shape_gives_the_logits_and_greedy_tokens_of_transformers(rig: Any) -> None:
    for shape in SHAPES:
        rig.require_same(shape, "What is this?")


def test_two_pictures_are_both_tiled_and_text_alone_gives_the_same(rig: Any) -> None:
    rig.require_same("First ", (300, 200), " and then ", (90, 250), ": which is wider?")
    rig.require_same("Say something.")


def test_pinpoints_are_read_height_first(make_rig: Any) -> None:
    rig = make_rig("llava_next", image_grid_pinpoints=[[112, 336], [112, 224], [448, 112]])
    assert [str(canvas) for canvas in rig.ours.router.image.canvases] == ["112x336", "112x224", "448x112"]
    rig.require_same((500, 120), "What is this?")


def test_several_layers_stand_beside_each_other(make_rig: Any, exported_rig: Any, tmp_path: Path) -> None:
    rig = make_rig("llava_next", vision_feature_layer=[1, -2])
    rig.require_same((300, 200), "What is this?")
    exported_rig(rig, tmp_path / "out").require_same((300, 200), "What is this?")


def test_an_export_and_its_processor_compute_the_same_in_transformers(
    rig: Any, exported_rig: Any, tmp_path: Path
) -> None:
    written = exported_rig(rig, tmp_path / "out")
    written.require_same((300, 200), "What is this?")
    written.require_same("First ", (112, 112), " then ", (60, 90), "?")
    written.require_same("Say something.")
    back = import_hf(written.folder)
    before, after = rig.ours.state_dict(), back.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"multi_image": "pad_newline"}, "tokenizer.multi_image: only 'anyres' with a base view"),
        ({"image": {"name": "anyres", "max_tiles": 4}}, "tokenizer.image: only 'anyres' with a base view"),
        ({"image": {"name": "anyres", "pinpoints": "(1x1),...,(2x2)"}}, "its pinpoints are not those"),
    ],
)
def test_pictures_that_llava_next_cannot_express_are_refused(
    make_rig: Any, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    plain = make_rig("llava_next").ours.spec.to_dict()
    model = mmblocks.build({**plain, "tokenizer": {**plain["tokenizer"], **change}})
    with pytest.raises(ConfigError, match=re.escape(reason)):
        export_hf(model, tmp_path / "out", "llava_next")
