"""transformers' `llava_next_video` in both directions: frames pooled before the projector, images as in `llava_next`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mmblocks
from mmblocks.errors import ConfigError
from mmblocks.model.convert.probe import compute_our_logits, compute_transformers_logits, load_transformers, make_probes
from mmblocks.model.convert.transformers.export import export_hf
from mmblocks.model.convert.transformers.families import import_hf


def clip(frames: int) -> np.ndarray:
    """Frames of the tower's own size, which no processor resizes."""
    return np.random.default_rng(frames).integers(0, 256, (frames, 112, 112, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=["average", "max"])
def rig(request: pytest.FixtureRequest, make_rig: Any) -> Any:
    return make_rig("llava_next_video", spatial_pool_mode=request.param)


def test_a_clip_gives_the_logits_and_greedy_tokens_of_transformers(rig: Any) -> None:
    for frames in (1, 3, 8):
        rig.require_same(clip(frames), "What happens?")


def test_pictures_and_text_give_the_same(rig: Any) -> None:
    rig.require_same((300, 200), "What is this?")
    rig.require_same("First ", (300, 200), " and then ", (90, 250), "?")
    rig.require_same("Say something.")


def test_a_picture_beside_a_clip_gives_the_same(rig: Any) -> None:
    rig.require_same((300, 120), "then ", clip(3), "?")


@pytest.mark.parametrize("stride", [1, 4])
def test_the_stride_is_read(make_rig: Any, stride: int) -> None:
    rig = make_rig("llava_next_video", spatial_pool_stride=stride)
    theirs = load_transformers(rig.folder)  # given our ids: their processor counts for a stride of 2 only
    for probe in make_probes(rig.ours):
        torch.testing.assert_close(
            compute_our_logits(rig.ours, probe), compute_transformers_logits(theirs, rig.ours, probe), rtol=0, atol=1e-5
        )


def test_pooling_features_is_not_pooling_tokens(make_rig: Any) -> None:
    """GELU stands between them, so a composition that pooled after the projector would give other logits."""
    ours = make_rig("llava_next_video").ours
    plain = ours.spec.to_dict()
    video = {**plain["tokenizer"]["video"], "pool_at": "tokens"}
    other = mmblocks.build({**plain, "tokenizer": {**plain["tokenizer"], "video": video}})
    other.load_state_dict(ours.state_dict())
    probe = next(probe for probe in make_probes(ours) if any(shape.kind == "video" for shape in probe.shapes))
    assert (compute_our_logits(ours, probe) - compute_our_logits(other, probe)).abs().max() > 1e-3


def test_an_export_and_its_processor_compute_the_same_in_transformers(
    rig: Any, exported_rig: Any, tmp_path: Path
) -> None:
    written = exported_rig(rig, tmp_path / "out")
    written.require_same(clip(4), "What happens?")
    written.require_same((300, 200), "What is this?")
    written.require_same("Say something.")
    back = import_hf(written.folder)
    before, after = rig.ours.state_dict(), back.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pooling": {"name": "bilinear"}}, "only 'average' and 'max' can be expressed"),
        ({"pooling": {"name": "average", "stride": 4}}, "processor always counts a quarter of them"),
        ({"video": {"name": "frames", "newline": "none"}}, "only 'frames' with newline='none' and pool_at='features'"),
    ],
)
def test_clips_that_llava_next_video_cannot_express_are_refused(
    make_rig: Any, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    plain = make_rig("llava_next_video").ours.spec.to_dict()
    video = change.pop("video", plain["tokenizer"]["video"])
    model = mmblocks.build({**plain, **change, "tokenizer": {**plain["tokenizer"], "video": video}})
    with pytest.raises(ConfigError, match=re.escape(reason)):
        export_hf(model, tmp_path / "out", "llava_next_video")


def test_a_learned_pooling_is_refused(make_rig: Any) -> None:
    with pytest.raises(ConfigError, match=r"spatial_pool_mode is 'conv'; only 'average' and 'max' are read"):
        make_rig("llava_next_video", spatial_pool_mode="conv")
