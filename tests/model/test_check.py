"""Every fault of a composition is named at once, with its config key and a cure; good compositions are left alone."""

import copy
import itertools
import time

import pytest
import torch

from mmblocks.components import REGISTRIES, encoders, poolings, projectors, tokenizers
from mmblocks.errors import ConfigError
from mmblocks.model.build import build, build_from_spec
from mmblocks.model.checks.composition import find_faults, require_dry_build
from mmblocks.model.spec import ModelSpec
from mmblocks.shapes import SCENARIOS, Size

SIGLIP = {"name": "siglip", "image_px": 30, "patch_px": 14, "dim": 16, "depth": 3, "heads": 2, "mlp_dim": 24}
CLIP = {"name": "clip", "image_px": 30, "patch_px": 14, "dim": 16, "depth": 3, "heads": 2, "mlp_dim": 24}
QWEN = {"name": "causal_lm", "family": "qwen2", "vocab_size": 64, "dim": 32, "depth": 2, "heads": 4, "kv_heads": 2}
FRAMES_IN_A_ROW = {"name": "frames", "max_frames": 4, "newline": "none"}
MISSING = object()


def changed(spec, path, value):
    """A copy of nested plain values with one entry set, or taken out."""
    fresh = copy.deepcopy(spec)
    *parents, last = path.split(".")
    node = fresh
    for parent in parents:
        if isinstance(node[parent], str):
            node[parent] = {"name": node[parent]}
        node = node[parent]
    if value is MISSING:
        del node[last]
    else:
        node[last] = value
    return fresh


# One fault in a good composition: where it is planted, the value, the key it is reported under, and words of its cure.
PLANTED = [
    # names and settings
    ("encoder", "siglib", "model.encoder", "Did you mean 'siglip'?"),
    ("projector", "mpl", "model.projector", "Did you mean 'mlp'?"),
    ("pooling", "bilinaer", "model.pooling", "Did you mean 'bilinear'?"),
    ("backbone", "qwen2_7bb", "model.backbone", "Did you mean 'qwen2_7b'?"),
    ("template", "qwen2", "model.template", "Did you mean 'qwen_2'?"),
    ("tokenizer.image", "any_res", "model.tokenizer.image", "Did you mean 'anyres'?"),
    ("tokenizer.video", None, "model.tokenizer.video", "Write a name"),
    ("tokenizer.vidoe", "frames", "model.tokenizer.vidoe", "Did you mean 'video'?"),
    ("tokenizer", "anyres", "model.tokenizer", "Write one for each of image, multi_image, video"),
    ("projektor", "mlp", "model.projektor", "Did you mean 'projector'?"),
    ("encoder", 7, "model.encoder", "Write a name"),
    ("backbone", {"dim": 32}, "model.backbone", "a mapping with a 'name'"),
    ("projector.dpeth", 2, "model.projector.dpeth", "Did you mean 'depth'?"),
    ("projector.depth", "two", "model.projector.depth", "Write a value of type int"),
    ("pooling.stride", 1.5, "model.pooling.stride", "Write a value of type int"),
    ("encoder.widths", [8, "x"], "model.encoder.widths", "Write a value of type tuple"),
    ("tokenizer.video.newline", "line", "model.tokenizer.video.newline", "one of grid, frame, one_token, none"),
    ("tokenizer.image", "highres", "model.tokenizer.image.side_px", "needs the setting 'side_px'"),
    ("encoder", "timm_vit", "model.encoder.model_name", "Write a str"),
    # one component by itself
    ("projector.depth", 0, "model.projector.depth", "depth >= 1"),
    ("pooling.stride", 0, "model.pooling.stride", "stride >= 1"),
    ("encoder", {**SIGLIP, "layer": 4}, "model.encoder.layer", "choose 1 to 3 or -3 to -1"),
    ("encoder", {**CLIP, "layer": 0}, "model.encoder.layer", "choose 1 to 3 or -3 to -1"),
    ("encoder", {**SIGLIP, "heads": 3}, "model.encoder", "not a multiple of heads=3"),
    ("encoder", {**SIGLIP, "patch_px": 31}, "model.encoder", "no whole patch"),
    ("encoder", {"name": "timm_vit", "model_name": "vit_tinny"}, "model.encoder", "Did you mean"),
    ("encoder.view_px", 25, "model.encoder.view_px", "cannot be divided by strides"),
    ("encoder", {**SIGLIP, "dim": 1032, "heads": 2}, "model.encoder.heads", "Write heads=5 or more"),
    (
        "tokenizer.image.pinpoints",
        "(3x3),...,(1x1)",
        "model.tokenizer.image.pinpoints",
        "end at no less than the start",
    ),
    ("tokenizer.image.pinpoints", [[30, 24]], "model.tokenizer.image", "write pinpoints as multiples of the view"),
    ("tokenizer.image.max_tiles", 0, "model.tokenizer.image.max_tiles", "write 1 or more, or null"),
    ("tokenizer.video.max_frames", 0, "model.tokenizer.video.max_frames", "at least 1 frame"),
    ("tokenizer.video.fps", -1.0, "model.tokenizer.video.fps", "write a rate above 0"),
    # the backbone
    ("backbone.placeholder_id", 640, "model.backbone.placeholder_id", "Write an id from 0 to 639"),
    ("backbone.placeholder_id", -1, "model.backbone.placeholder_id", "Write an id from 0 to 639"),
    ("backbone.family", "qwen_2", "model.backbone.family", "Did you mean qwen2"),
    ("backbone.heads", 5, "model.backbone.heads", "Write heads=2 or heads=4"),
    ("backbone.heads", 32, "model.backbone.heads", "dim / heads is even"),
    ("backbone", {**QWEN, "dim": 1032, "heads": 2}, "model.backbone.heads", "Write heads=5 or more"),
    ("backbone.kv_heads", 3, "model.backbone.kv_heads", "Write kv_heads=2 or kv_heads=4"),
    ("backbone.depth", 0, "model.backbone.depth", "Write a number above 0"),
    ("backbone.norm_eps", 0.0, "model.backbone.norm_eps", "Write a number above 0"),
    ("backbone.vocab_size", 100, "model.backbone.vocab_size", "or more"),
    ("backbone.text_tokenizer", "mmblocks:.", "model.backbone.text_tokenizer", "Name another folder"),
    ("backbone", {"name": "causal_lm", "checkpoint": "nobody/nothing"}, "model.backbone.checkpoint", "hf download"),
    ("backbone", {"name": "causal_lm"}, "model.backbone", "needs a family with sizes, or a checkpoint"),
    # neighbours
    ("projector", "identity", "model.projector", "use 'linear' or 'mlp'"),
    ("pooling", {"name": "average", "stride": 3}, "model.pooling", "choose a stride of at most 2"),
    ("encoder", {**CLIP, "select": "cls_patch"}, "model.tokenizer.image", "no image order"),
    ("encoder", {**CLIP, "select": "cls_patch"}, "model.tokenizer.video", "a projector that keeps the grid"),
    ("tokenizer.video", "pad", "model.tokenizer.video", "Choose one of frames"),
    ("tokenizer.multi_image", "frames", "model.tokenizer.multi_image", "does not serve the scenario 'multi_image'"),
    ("tokenizer.image", {"name": "highres", "side_px": 12}, "model.tokenizer.image.side_px", "write 24 or more"),
    ("tokenizer.image.merge", "flat", "model.tokenizer.image", "use merge='unpad'"),
    ("template", "llama_3", "model.template", "answers would never end"),
    # the sequence against its media
    ("backbone.max_tokens", 16, "model.tokenizer.image", "Raise model.backbone.max_tokens above"),
    ("backbone.max_tokens", 10, "model.tokenizer.multi_image", "a pair of images"),
    ("tokenizer.video.max_frames", 2000, "model.tokenizer.video", "a long video (2000 frames) takes 2001 tokens"),
]


@pytest.mark.parametrize(("path", "value", "key", "words"), PLANTED, ids=lambda v: v if isinstance(v, str) else "")
def test_a_planted_fault_is_named_with_its_key_and_a_cure(tiny_spec, path, value, key, words):
    found = find_faults(changed(tiny_spec, path, value))

    assert any(fault.key == key and words in str(fault) for fault in found), "\n".join(map(str, found))


def test_forty_different_faults_are_planted():
    assert len({(path, str(value)) for path, value, _, _ in PLANTED}) >= 40


def test_a_fault_is_reported_once_and_without_what_follows_from_it(tiny_spec):
    alone = [p for p in PLANTED if p[0] not in ("backbone.max_tokens", "encoder", "tokenizer.image")]

    for path, value, key, _ in alone:
        assert [f.key for f in find_faults(changed(tiny_spec, path, value))] == [key], path


def test_faults_of_all_parts_are_found_together(tiny_spec):
    found = find_faults(
        {
            **tiny_spec,
            "encoder": "siglib",
            "projector": {"name": "mlp", "depth": 0, "widht": 3},
            "pooling": {"name": "average", "stride": 0},
            "backbone": {**tiny_spec["backbone"], "placeholder_id": 640, "kv_heads": 3},
            "template": "qwen",
            "tokenizer": {
                "image": {"name": "anyres", "max_tiles": 0, "merge": "pad"},
                "video": "pad",
                "clip": "frames",
            },
            "tower": "siglip",
        }
    )

    assert {fault.key for fault in found} == {
        "model.encoder",
        "model.projector.depth",
        "model.projector.widht",
        "model.pooling.stride",
        "model.backbone.placeholder_id",
        "model.backbone.kv_heads",
        "model.template",
        "model.tokenizer.image.max_tiles",
        "model.tokenizer.image.merge",
        "model.tokenizer.video",
        "model.tokenizer.clip",
        "model.tower",
    }


def test_building_refuses_with_every_reason_in_one_error(tiny_spec):
    with pytest.raises(ConfigError, match=r"(?s)cannot work:.*model\.projector\.depth.*model\.template"):
        build({**tiny_spec, "projector": {"name": "mlp", "depth": 0}, "template": "qwen"})
    with pytest.raises(ConfigError, match="cannot work"):
        require_dry_build({**tiny_spec, "projector": "identity"})


def test_every_misspelt_key_is_refused(tiny_spec):
    keys = [key for key in tiny_spec if key != "tokenizer"]
    keys += [f"{part}.{key}" for part in tiny_spec for key in tiny_spec[part] if isinstance(tiny_spec[part], dict)]
    keys += [f"tokenizer.image.{key}" for key in tiny_spec["tokenizer"]["image"]]
    for key in (k for k in keys if not k.endswith("name")):
        value = tiny_spec
        for word in key.split("."):
            value = value[word]
        misspelt = changed(changed(tiny_spec, key, MISSING), key + "x", value)

        assert f"model.{key}x" in {fault.key for fault in find_faults(misspelt)}


@pytest.mark.parametrize("kind", ["encoder", "projector", "pooling", "backbone"])
def test_components_and_some_presets_pass_in_a_composition_that_suits_them(kind, tiny_spec):
    """Every component, and every fourth preset: each preset is built on the meta device by other tests."""
    presets = [name for name in REGISTRIES[kind] if REGISTRIES[kind].find_info(name).preset_of]
    wide = {**tiny_spec["encoder"], "view_px": 96}  # 8x8 cells, enough for every pooling
    roomy = {**tiny_spec, "encoder": wide, "backbone": {**QWEN, "dim": 16}, "template": "plain"}
    for_a_row = {"pooling": "none", "tokenizer": {"image": "pad", "multi_image": "pad", "video": FRAMES_IN_A_ROW}}
    for name in sorted({*REGISTRIES[kind]} - {*presets}) + presets[::4]:
        component = tiny(REGISTRIES[kind], name)
        with torch.device("meta"):
            encoder = encoders.build(component if kind == "encoder" else wide)
        ordered = encoder.spatial and getattr(REGISTRIES[kind][name].builder, "spatial", True)
        suited = roomy if ordered else {**roomy, **for_a_row}
        assert find_faults({**suited, kind: component}) == [], name


def test_templates_pass_where_the_text_tokenizer_is_not_on_this_machine(tiny_spec):
    for name in REGISTRIES["template"]:
        assert find_faults({**tiny_spec, "backbone": QWEN, "template": name}) == []


def test_a_family_with_a_short_context_cannot_hold_the_largest_picture():
    (image, video) = find_faults({"backbone": "vicuna_7b"})

    assert (image.key, video.key) == ("model.tokenizer.image", "model.tokenizer.video")
    assert "takes max_tokens=4096 in all" in image.message
    assert "(32 frames) takes 6273 tokens" in video.message


def test_a_check_takes_under_two_seconds_and_no_weights():
    started = time.process_time()
    assert find_faults({"encoder": "siglip_so400m_384", "backbone": "qwen2_72b"}) == []
    assert time.process_time() - started < 2


# The whole product --------------------------------------------------------------------------------------------------


def tiny(registry, name):
    return name if registry.find_info(name).preset_of else {"name": name, **registry[name].tiny}


def bases(registry):
    return [tiny(registry, name) for name in registry if not registry.find_info(name).preset_of]


def serving(scenario):
    """The visual tokenizers of a scenario, with settings for small images."""
    beside = {
        "view_px": Size(30, 30),
        "grid": Size(2, 2),
        "spatial": True,
        "squash": True,
        "pooling": poolings.build("none"),
    }
    specs = [tiny(tokenizers, name) for name in tokenizers]
    return [spec for spec in specs if scenario in tokenizers.build(spec, **beside).scenarios]


ENCODERS = [*bases(encoders), {**CLIP, "select": "cls_patch"}]
PARTS = list(itertools.product(ENCODERS, bases(projectors), bases(poolings)))
PICTURES, CLIPS = serving("image"), serving("video")
CLIPS = [*CLIPS, {"name": "frames", "newline": "grid"}, {"name": "frames", "newline": "none"}]


def composition(encoder, projector, pooling, picture, clip):
    return ModelSpec.from_dict(
        {
            "encoder": encoder,
            "projector": projector,
            "pooling": pooling,
            "backbone": QWEN,
            "tokenizer": {"image": picture, "multi_image": picture, "video": clip},
        }
    )


def can_be_wired(spec):
    """Whether a composition can be built, and its tokenizers have nothing against where they stand."""
    with torch.device("meta"):
        try:
            return build_from_spec(spec).router.find_faults() == []
        except ConfigError:
            return False


def require_agreement(step):
    """Every `step`-th combination of parts, with the tokenizers in turn."""
    for number, parts in [*enumerate(PARTS)][::step]:
        spec = composition(*parts, PICTURES[number % len(PICTURES)], CLIPS[number % len(CLIPS)])

        assert (find_faults(spec) == []) == can_be_wired(spec), spec


def test_check_and_wiring_agree_over_a_sample_of_all_parts():
    require_agreement(29)


@pytest.mark.slow
def test_check_and_wiring_agree_over_all_parts():
    require_agreement(1)


@pytest.mark.parametrize("name", list(tokenizers))
def test_check_and_wiring_agree_for_every_tokenizer_in_every_scenario(name, tiny_spec):
    for scenario in SCENARIOS:
        spec = ModelSpec.from_dict(changed(tiny_spec, f"tokenizer.{scenario}", tiny(tokenizers, name)))

        assert (find_faults(spec) == []) == can_be_wired(spec), scenario


def test_a_model_that_the_machine_cannot_hold_is_refused_with_the_size_of_each_part(tiny_spec):
    large = {"name": "qwen2_tiny", "vocab_size": 2**24, "dim": 2**14, "heads": 128, "kv_heads": 128, "depth": 24}
    assert find_faults({**tiny_spec, "backbone": large, "template": "chatml"}) == []  # another machine may hold it
    started = time.process_time()
    with pytest.raises(
        ConfigError, match=r"memory of this machine, [\d,.]+ GB: encoder 0.0 GB, .*backbone 1,[\d,.]+ GB"
    ):
        build({**tiny_spec, "backbone": large, "template": "chatml"})
    assert time.process_time() - started < 5
