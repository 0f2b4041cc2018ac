"""transformers' `llava` in both directions: CLIP or SigLIP, patches or CLS and patches, one layer or several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mmblocks
from mmblocks.errors import ConfigError
from mmblocks.model.convert.transformers.export import export_hf
from mmblocks.model.convert.transformers.families import import_hf

SHAPES = [(112, 112), (300, 200), (90, 250), (40, 30), (900, 100)]  # (width, height)
KINDS: dict[str, dict[str, Any]] = {
    "clip, patches, cropped": {},
    "clip, patches, padded (LLaVA-1.5)": {"framing": "padded"},
    "clip, CLS and patches": {"vision_feature_select_strategy": "full"},
    "clip, layers 1 and 3 beside each other": {"vision_feature_layer": [-3, 3]},
    "siglip, squashed": {"vision": "siglip"},
    "siglip, padded": {"vision": "siglip", "framing": "padded"},
    "siglip, three layers": {"vision": "siglip", "vision_feature_layer": [1, -2, -1]},
}


@pytest.fixture(scope="module", params=KINDS)
def rig(request: pytest.FixtureRequest, make_rig: Any) -> Any:
    return make_rig("llava", **KINDS[request.param])


def test_a_picture_gives_the_logits_and_greedy_tokens_of_transformers(rig: Any) -> None:
    for shape in SHAPES:
        rig.require_same(shape, "What is this?")


def test_two_pictures_and_text_alone_give_the_same(rig: Any) -> None:
    rig.require_same("First ", (300, 200), " and then ", (90, 250), ": which is wider?")
    rig.require_same("Say something.")


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


def test_a_row_that_llava_has_not_learned_is_refused(make_rig: Any, tmp_path: Path) -> None:
    plain = make_rig("llava").ours.spec.to_dict()
    video = {**plain["tokenizer"]["video"], "newline": "frame"}
    several = {"name": "pad", "newline": False}
    model = mmblocks.build({**plain, "tokenizer": {**plain["tokenizer"], "video": video, "multi_image": several}})
    with pytest.raises(ConfigError) as refused:
        export_hf(model, tmp_path / "out", "llava")
    assert "learned_tokens: llava has no 'newline'" in str(refused.value)
    assert "tokenizer.multi_image: it frames images otherwise than tokenizer.image" in str(refused.value)


def test_a_spec_of_llava_1_5_is_the_papers(make_rig: Any) -> None:
    plain = make_rig("llava", framing="padded").ours.spec.to_dict()
    assert (plain["encoder"]["name"], plain["encoder"]["layer"], plain["encoder"]["select"]) == ("clip", -2, "patch")
    assert plain["projector"] == {"name": "mlp", "depth": 2}
    assert plain["tokenizer"]["image"]["name"] == plain["tokenizer"]["multi_image"]["name"] == "pad"
