"""Encoders made of encoders: what they are, what they refuse, and that every fault of a member is named with its key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mmblocks
from mmblocks import conf
from mmblocks.components import encoders
from mmblocks.errors import CheckpointError, ConfigError
from mmblocks.model.budget import estimate_budget
from mmblocks.model.build import count_parameters
from mmblocks.model.checks.composition import find_faults
from mmblocks.model.trainable import train_only
from mmblocks.shapes import Size, VisualShape
from mmblocks.train.checks.run import check_run

VIT = {"patch_px": 14, "dim": 16, "depth": 3, "heads": 2, "mlp_dim": 24}
SIGLIP = {"name": "siglip", "image_px": 30, **VIT}
CLIP = {"name": "clip", "image_px": 30, **VIT}
CONV = {"name": "tiny_conv", "view_px": 24, "dim": 16, "widths": [8, 8], "heads": 2}
FUSED = {"name": "fused", "members": [SIGLIP, CONV]}
S2 = {"name": "s2", "member": CONV}
INTERLEAVED = {"name": "interleaved", "members": [SIGLIP, CONV]}
MIXTURES = pytest.mark.parametrize("mixture", ["fused", "interleaved"])
PRESETS = {  # view, grid, dim, millions of parameters
    "dinov2_siglip_384": (384, Size(27, 27), 1024 + 1152, 689),
    "dinov2_clip_336": (336, Size(24, 24), 1024 + 1024, 582),
    "clip_vit_l_336_s2": (1008, Size(24, 24), 3 * 1024, 291),
    "siglip_so400m_384_s2": (768, Size(27, 27), 2 * 1152, 398),
    "clip_dinov2_imof_336": (336, Size(1, 2 * 24 * 24), 1024 + 1024, 595),
}


def on_meta(spec: Any) -> Any:
    with torch.device("meta"):
        return encoders.build(spec)


def built(spec: Any) -> Any:
    torch.manual_seed(0)
    return encoders.build(spec).eval()


def views(encoder: Any, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, *encoder.view_px, generator=torch.Generator().manual_seed(1))


# Facts --------------------------------------------------------------------------------------------------------------


def test_all_presets_made_of_encoders_stand_in_the_table_above() -> None:
    assert {name for name in encoders if encoders.find_info(name).preset_of in ("fused", "s2", "interleaved")} == set(
        PRESETS
    )


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_sizes_of_the_published_models(name: str) -> None:
    view_px, grid, dim, millions = PRESETS[name]
    encoder = on_meta(name)
    assert (encoder.view_px, encoder.grid, encoder.dim) == (Size(view_px, view_px), grid, dim)
    assert round(count_parameters(encoder) / 1e6) == millions


def test_fused_is_as_wide_as_its_members_together_and_looks_through_the_largest_view() -> None:
    fused = on_meta({"name": "fused", "members": [CONV, {**SIGLIP, "image_px": 44, "dim": 32}]})
    assert (fused.dim, fused.view_px, fused.grid) == (16 + 32, Size(44, 44), Size(2, 2))


@pytest.mark.parametrize(("align", "side"), [("first", 2), ("finest", 3), ("coarsest", 1)])
def test_cells_are_brought_to_the_grid_that_is_asked_for(align: str, side: int) -> None:
    sizes = [{**SIGLIP, "image_px": 14 * n} for n in (2, 3, 1)]
    fused = built({"name": "fused", "members": sizes, "align": align})
    assert fused.grid == Size(side, side)
    assert fused(views(fused)).shape == (2, side, side, 48)
    row = built({"name": "interleaved", "members": sizes, "align": align})
    assert row.grid == Size(1, 3 * side * side)


def test_colours_are_the_members_own_where_they_agree_and_in_their_middle_where_not() -> None:
    alike, unlike = on_meta(FUSED), on_meta({"name": "fused", "members": [SIGLIP, CLIP], "squash": True})
    assert (alike.pixel_mean, alike.pixel_std) == ((0.5,) * 3, (0.5,) * 3)
    assert unlike.pixel_mean == pytest.approx((0.490727, 0.478914, 0.454105), abs=1e-6)
    assert unlike.pixel_std == (1.0, 1.0, 1.0)


def test_s2_sees_more_pixels_with_the_parameters_of_its_member() -> None:
    alone, s2 = on_meta(CONV), on_meta({**S2, "scales": [1, 2, 3]})
    assert (s2.view_px, s2.grid, s2.dim) == (Size(72, 72), alone.grid, 3 * alone.dim)
    assert count_parameters(s2) == count_parameters(alone)


def test_s2_sees_a_picture_of_one_colour_alike_at_all_scales() -> None:
    s2 = built({**S2, "scales": [1, 2]})
    whole, tiled = s2(torch.full((1, 3, 48, 48), 0.3)).chunk(2, dim=-1)
    # each cell of the larger scale averages four cells of a tile, so only the mean over all cells is the same
    torch.testing.assert_close(tiled.mean((1, 2)), whole.mean((1, 2)), rtol=0, atol=1e-5)


def test_tokens_of_members_take_turns_and_each_keeps_to_its_own_channels() -> None:
    row = built(INTERLEAVED)
    siglip, conv = row(views(row)).unflatten(2, (4, 2)).unbind(dim=3)
    assert (row.grid, row.spatial) == (Size(1, 8), False)
    assert siglip[..., :16].all()
    assert conv[..., 16:].all()
    assert not siglip[..., 16:].any()
    assert not conv[..., :16].any()


def test_a_composite_may_be_a_member_itself() -> None:
    nested = built({"name": "fused", "members": [{"name": "s2", "member": {**CONV, "view_px": 12}}, CONV]})
    assert (nested.dim, nested.view_px) == (48, Size(24, 24))
    assert nested(views(nested)).shape == (2, 1, 1, 48)


# What is refused ----------------------------------------------------------------------------------------------------


@MIXTURES
@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([SIGLIP], "1 members; give two or more"),
        ([SIGLIP, CLIP], r"members.0 \('siglip'\) squashes it, members.1 \('clip'\) takes its middle.*squash=true"),
        ([SIGLIP, {**CLIP, "select": "cls_patch"}], r"members.1 \('clip'\) has no image order \(its grid is 1x5\)"),
        ([SIGLIP, {**CLIP, "select": "cls_patch"}], r"no image order.*disagree"),
    ],
)
def test_members_that_do_not_go_together_are_refused_with_every_reason(
    mixture: str, members: list[Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=f"^encoder '{mixture}': .*{reason}"):
        on_meta({"name": mixture, "members": members})


def test_one_word_settles_what_happens_to_a_picture_that_is_not_square() -> None:
    assert on_meta({"name": "fused", "members": [SIGLIP, CLIP], "squash": True}).squash
    assert not on_meta({"name": "fused", "members": [SIGLIP, CLIP], "squash": False}).squash


def test_views_of_different_aspect_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    build = encoders.build

    def wide(spec: Any, **settings: Any) -> Any:
        encoder = build(spec, **settings)
        if isinstance(spec, dict) and spec["name"] == "tiny_conv":
            encoder.view_px = Size(24, 48)
        return encoder

    monkeypatch.setattr(encoders, "build", wide)
    with pytest.raises(ConfigError, match=r"different aspect.*\('siglip'\) 30x30.*\('tiny_conv'\) 24x48"):
        on_meta(FUSED)


@pytest.mark.parametrize("scales", [[], [2], [1, 1], [1, 3, 2], [0, 1]])
def test_scales_start_at_one_and_grow(scales: list[int]) -> None:
    with pytest.raises(ConfigError, match="they start at 1"):
        on_meta({**S2, "scales": scales})


def test_s2_needs_a_member_with_a_grid() -> None:
    with pytest.raises(ConfigError, match=r"member \('clip'\) has no image order"):
        on_meta({"name": "s2", "member": {**CLIP, "select": "cls_patch"}})


def test_building_names_the_faults_of_all_members_at_once() -> None:
    with pytest.raises(ConfigError, match=r"(?s)members\.0: .*layer=9.*members\.1: .*heads=5"):
        on_meta({"name": "fused", "members": [{**SIGLIP, "layer": 9}, {**CONV, "heads": 5}]})
    with pytest.raises(
        ConfigError, match=r"(?s)members\.0\.laier: .*no setting 'laier'.*members\.1: no encoder is called"
    ):
        on_meta({"name": "fused", "members": [{**SIGLIP, "laier": 9}, "clipp"]})


PLANTED = [
    (["siglip_base_224", "clipp"], "model.encoder.members.1", "Did you mean 'clip'?"),
    ([SIGLIP, {**CONV, "dmi": 3}], "model.encoder.members.1.dmi", "Did you mean 'dim'?"),
    ([{**SIGLIP, "dim": "wide"}, CONV], "model.encoder.members.0.dim", "Write a value of type int"),
    ([{"dim": 3}, CONV], "model.encoder.members.0", "a mapping with a 'name'"),
    ([SIGLIP, {"name": "timm_vit"}], "model.encoder.members.1.model_name", "Write a str"),
    ([{**SIGLIP, "layer": 4}, CONV], "model.encoder.members.0.layer", "choose 1 to 3"),
    ([{**SIGLIP, "dim": 1032, "heads": 2}, CONV], "model.encoder.members.0.heads", "Write heads=5 or more"),
    ([SIGLIP, {"name": "s2", "member": {**CONV, "dmi": 3}}], "model.encoder.members.1.member.dmi", "Did you mean"),
    ([SIGLIP, CLIP], "model.encoder", "write squash=true or squash=false"),
    ("siglip", "model.encoder.members", "Write a value of type tuple[str | Mapping[str, Any], ...]"),
    ([SIGLIP, 7], "model.encoder.members", "Write a value of type tuple"),
]


@pytest.mark.parametrize(("members", "key", "words"), PLANTED, ids=lambda v: v if isinstance(v, str) else "")
def test_a_fault_of_a_member_is_reported_once_under_its_own_key(
    tiny_spec: Any, members: Any, key: str, words: str
) -> None:
    (fault,) = find_faults({**tiny_spec, "encoder": {"name": "fused", "members": members}})
    assert fault.key == key
    assert words in str(fault)


def test_faults_of_all_members_are_found_together(tiny_spec: Any) -> None:
    wrong = [{**SIGLIP, "layer": 9}, {**CONV, "dmi": 3, "heads": "two"}, "clipp"]
    found = find_faults({**tiny_spec, "encoder": {"name": "fused", "members": wrong, "algin": "first"}})
    inner = ("members.0.layer", "members.1.dmi", "members.1.heads", "members.2", "algin")
    assert {fault.key for fault in found} == {f"model.encoder.{key}" for key in inner}


# In a model ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [FUSED, S2, INTERLEAVED], ids=lambda spec: spec["name"])
def test_a_composite_is_saved_and_loaded_as_any_encoder(spec: Any, tiny_spec: Any, tmp_path: Path) -> None:
    model = mmblocks.build(suited(tiny_spec, spec), seed=0)
    mmblocks.save(model, tmp_path / "m")
    back = mmblocks.load(tmp_path / "m")
    x = views(model.encoder)
    assert torch.equal(back.encoder(x), model.encoder(x))
    assert back.spec.to_dict() == model.spec.to_dict()


def test_a_stored_composite_has_all_settings_of_its_members_and_no_folder_of_this_machine(
    tiny_spec: Any, tmp_path: Path
) -> None:
    members = [{**SIGLIP, "checkpoint": str(tmp_path)}, "tiny_conv_48"]
    mmblocks.save(mmblocks.build({**tiny_spec, "encoder": {"name": "fused", "members": members}}), tmp_path / "m")
    siglip, conv = json.loads((tmp_path / "m/config.json").read_text())["model"]["encoder"]["members"]
    assert siglip == {**SIGLIP, "layer": -2, "checkpoint": None}
    assert (conv["name"], conv["strides"]) == ("tiny_conv_48", [4, 2, 2])


def test_random_members_are_drawn_from_the_seed(tiny_spec: Any) -> None:
    twins = {**tiny_spec, "encoder": {"name": "fused", "members": [CONV, CONV]}}
    a, b = (mmblocks.build(twins, seed=5).encoder.state_dict() for _ in range(2))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["members.0.positions"], a["members.1.positions"])


def test_freezing_the_encoder_freezes_every_member(tiny_spec: Any) -> None:
    model = mmblocks.build({**tiny_spec, "encoder": FUSED})
    train_only(model, ["projector"])
    assert not any(p.requires_grad for p in model.encoder.parameters())


def test_a_plan_counts_each_parameter_once_and_every_run_of_a_member(tiny_spec: Any) -> None:
    picture = [VisualShape("image", Size(24, 24))]

    def cost(encoder: Any) -> tuple[int, int, int]:
        whole = estimate_budget(suited(tiny_spec, encoder), picture)
        return whole.parameters["encoder"], (whole.flops["encoder"] or 0) // whole.views, whole.visual_tokens

    conv, siglip = cost(CONV), cost({**SIGLIP, "image_px": 24, "patch_px": 12})
    fused = cost({"name": "fused", "members": [CONV, {**SIGLIP, "image_px": 24, "patch_px": 12}]})
    assert fused == (conv[0] + siglip[0], conv[1] + siglip[1], conv[2])
    assert cost(S2)[:2] == (conv[0], (1 + 4) * conv[1])
    assert cost(INTERLEAVED)[2] == 2 * 4


def suited(base: Any, encoder: Any) -> Any:
    """The composition around an encoder, with visual tokenizers that need no image order where there is none."""
    if encoder["name"] != "interleaved":
        return {**base, "encoder": encoder}
    row = {"image": "pad", "multi_image": "pad", "video": {"name": "frames", "max_frames": 4, "newline": "none"}}
    return {**base, "encoder": encoder, "pooling": "none", "tokenizer": row}


# Weights ------------------------------------------------------------------------------------------------------------


def test_every_member_that_has_no_weights_to_read_is_named() -> None:
    with pytest.raises(ConfigError, match=r"(?s)members\.0: .*checkpoint is None.*members\.1: .*no published weights"):
        built(FUSED).load_pretrained()
    with pytest.raises(ConfigError, match=r"encoder 's2': member: .*no published weights"):
        built(S2).load_pretrained()


def test_an_absent_checkpoint_of_a_member_is_named(tmp_path: Path) -> None:
    absent = {**SIGLIP, "checkpoint": str(tmp_path / "absent")}
    with pytest.raises(CheckpointError, match=r"(?s)members\.0: .*absent' cannot be read.*members\.1"):
        built({"name": "fused", "members": [absent, CONV]}).load_pretrained()


def test_a_run_that_wants_pretrained_weights_asks_every_member_for_its_checkpoint(tiny_spec: Any) -> None:
    data = [{"name": "tinyworld", "task": "single"}]
    stage = {"name": "align", "data": data, "train": {"projector": 1e-3}, "steps": 4, "batch_size": 2}
    members = [{**SIGLIP, "checkpoint": "google/siglip-so400m-patch14-384"}, SIGLIP, CONV]
    model = {**tiny_spec, "encoder": {"name": "fused", "members": members}}
    found = check_run({"model": model, "stages": [stage], "out": "runs/tiny", "weights": "pretrained"})
    about_encoder = [fault.key for fault in found if fault.key.startswith("model.encoder")]
    assert about_encoder == ["model.encoder.members.1.checkpoint", "model.encoder.members.2"]


# In a recipe --------------------------------------------------------------------------------------------------------


def test_members_are_a_list_in_yaml_and_can_be_changed_one_by_one() -> None:
    listed = "model.encoder.members=[siglip_base_224,{name: tiny_conv,view_px: 24,strides: [2,2,2]}]"
    config = conf.compose("tiny/onevision", ["model/encoder=fused", listed])
    assert config["model"]["encoder"]["members"] == [
        "siglip_base_224",
        {"name": "tiny_conv", "view_px": 24, "strides": [2, 2, 2]},
    ]
    preset = conf.compose("tiny/onevision", ["model/encoder=dinov2_siglip_384", "model.encoder.members.0.layer=-3"])
    dinov2, siglip = preset["model"]["encoder"]["members"]
    assert (dinov2["layer"], siglip) == (-3, "siglip_so400m_384")


def test_a_misspelt_setting_of_a_member_is_refused_when_a_recipe_is_composed() -> None:
    with pytest.raises(
        ConfigError, match=r"members\.1\.laier: encoder 'clip' has no setting 'laier'.*Did you mean 'layer'"
    ):
        conf.compose("tiny/onevision", ["model/encoder=fused", "model.encoder.members=[siglip,{name: clip,laier: 1}]"])
