"""LLaVA's own checkpoints, built here with the names that LLaVA writes: read, run beside transformers, written back."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextVideoConfig,
    LlavaOnevisionConfig,
    MistralConfig,
    Qwen2Config,
    SiglipVisionConfig,
    SiglipVisionModel,
)

import mmblocks
from mmblocks import cli
from mmblocks.errors import CheckpointError, ConfigError
from mmblocks.model.build import build_from_spec
from mmblocks.model.convert import detect_layout, layout_of
from mmblocks.model.convert.original.export import make_original_config
from mmblocks.model.convert.original.llava import export_original, import_original, import_original_with_report
from mmblocks.model.convert.probe import compute_our_logits, compute_transformers_logits, make_probes
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import ModelSpec
from mmblocks.shapes import Size, VisualShape
from tests.hub import LocalHub

Tensors = dict[str, Tensor]
WEIGHTS = "model.safetensors"
EXACT: dict[str, Any] = {"rtol": 0, "atol": 5e-6}
"""Of logits up to 4, in float64, but for what transformers computes in float32 all the same: norms and rotary tables."""
SIDE_PX, PATCH_PX, VISION_DIM, TEXT_DIM = 56, 14, 16, 32
PINPOINTS = [[112, 56], [56, 112], [112, 112], [168, 56], [56, 168]]  # (width, height), as LLaVA writes them
TOWER: dict[str, Any] = {
    "hidden_size": VISION_DIM,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "image_size": SIDE_PX,
    "patch_size": PATCH_PX,
}
TEXT: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": TEXT_DIM,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MULTIMODAL: dict[str, Any] = {
    "mm_hidden_size": VISION_DIM,
    "mm_projector_type": "mlp2x_gelu",
    "mm_resampler_type": None,
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "image_token_index": 258,
}
CLIPS = {"mm_spatial_pool_mode": "average", "mm_spatial_pool_stride": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "llava": {
        "architectures": ["LlavaLlamaForCausalLM"],
        "mm_vision_tower": "clip",
        "image_aspect_ratio": "pad",
        "mm_patch_merge_type": "flat",
    },
    "llava_next": {
        "architectures": ["LlavaMistralForCausalLM"],
        "mm_vision_tower": "clip",
        "image_aspect_ratio": "anyres",
        "image_grid_pinpoints": PINPOINTS,
        "mm_patch_merge_type": "spatial_unpad",
        "sliding_window": None,
        "rope_theta": 1e6,
    },
    "llava_next_video": {
        "architectures": ["LlavaLlamaForCausalLM"],
        "mm_vision_tower": "clip",
        "image_aspect_ratio": "anyres",
        "image_grid_pinpoints": PINPOINTS,
        "mm_patch_merge_type": "spatial_unpad",
        "mm_resampler_type": "spatial_pool",
        "mm_newline_position": "no_token",
        "rope_scaling": {"type": "linear", "factor": 2.0},
        **CLIPS,
    },
    "llava_onevision": {
        "architectures": ["LlavaQwenForCausalLM"],
        "mm_vision_tower": "siglip",
        "image_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": [[56 * w, 56 * h] for w in range(1, 7) for h in range(1, 7)],
        "mm_patch_merge_type": "spatial_unpad",
        "mm_newline_position": "one_token",
        "mm_spatial_pool_mode": "bilinear",
        "mm_spatial_pool_stride": 2,
        "rope_theta": 1e6,
        "use_sliding_window": False,
    },
}
FAMILIES = [*CONFIGS]


# The same weights in transformers -----------------------------------------------------------------------------------


def text_of(config: dict[str, Any]) -> Any:
    kinds: dict[str, Any] = {"LlavaLlama": LlamaConfig, "LlavaMistral": MistralConfig, "LlavaQwen": Qwen2Config}
    kind = kinds[config["architectures"][0].removesuffix("ForCausalLM")]
    scaling = config.get("rope_scaling")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.get("rope_theta", 10000.0)}
    if scaling:
        rope |= {"rope_type": scaling["type"], "factor": scaling["factor"]}
    window: dict[str, Any] = {"sliding_window": None} if kind is MistralConfig else {}
    return kind(**TEXT, **window, rope_parameters=rope)


def their_config(family: str) -> Any:
    config = CONFIGS[family]
    height_first = [[h, w] for w, h in config.get("image_grid_pinpoints", [])]
    clip = CLIPVisionConfig(**TOWER, num_hidden_layers=3)
    shared: dict[str, Any] = {"text_config": text_of(config), "image_token_index": MULTIMODAL["image_token_index"]}
    if family == "llava":
        return LlavaConfig(vision_config=clip, vision_feature_layer=-2, image_seq_length=16, **shared)
    if family == "llava_next":
        return LlavaNextConfig(vision_config=clip, image_grid_pinpoints=height_first, **shared)
    if family == "llava_next_video":
        return LlavaNextVideoConfig(
            vision_config=clip, image_grid_pinpoints=height_first, video_token_index=259, **shared
        )
    siglip = SiglipVisionConfig(**TOWER, num_hidden_layers=2, vision_use_head=False)
    return LlavaOnevisionConfig(
        vision_config=siglip,
        image_grid_pinpoints=height_first,
        video_token_index=259,
        vision_feature_layer=-1,
        **shared,
    )


def disturbed(model: nn.Module, seed: int = 11) -> Any:
    """Random in every tensor, so that no fresh LayerNorm or zero bias can hide a tensor that was not loaded."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.15 * torch.randn(p.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def their_models() -> dict[str, Any]:
    torch.manual_seed(0)
    return {family: disturbed(AutoModelForImageTextToText.from_config(their_config(family))) for family in FAMILIES}


# The original layout ------------------------------------------------------------------------------------------------


def original_name(name: str) -> str:
    """A name in transformers' memory, in LLaVA's words."""
    for theirs, original in (
        (r"model\.vision_tower\.(vision_model\.)?", "model.vision_tower.vision_tower.vision_model."),
        (r"model\.multi_modal_projector\.linear_1\.", "model.mm_projector.0."),
        (r"model\.multi_modal_projector\.linear_2\.", "model.mm_projector.2."),
        (r"model\.image_newline", "model.image_newline"),
        (r"model\.language_model\.", "model."),
        (r"lm_head\.", "lm_head."),
    ):
        if found := re.match(theirs, name):
            return original + name[found.end() :]
    raise AssertionError(name)


def original_tensors(theirs: Any) -> Tensors:
    return {original_name(name): tensor.clone() for name, tensor in theirs.state_dict().items()}


def written(folder: Path, config: dict[str, Any], tensors: Tensors, tokenizer: Any) -> Path:
    """A checkpoint as LLaVA saves one, the config of its tower beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", **TEXT, **MULTIMODAL, **config}))
    tokenizer.save_pretrained(folder)
    tower: Any = CLIPVisionConfig(**TOWER, num_hidden_layers=3)
    if config["mm_vision_tower"] == "siglip":
        tower = SiglipVisionConfig(**TOWER, num_hidden_layers=3, vision_use_head=False)
    tower.save_pretrained(folder / config["mm_vision_tower"])
    return folder


@pytest.fixture(scope="module")
def originals(their_models: dict[str, Any], make_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One checkpoint of every family: `originals["llava_next"]`."""
    root = tmp_path_factory.mktemp("originals")
    return {
        family: written(root / family, CONFIGS[family], original_tensors(theirs), make_tokenizer())
        for family, theirs in their_models.items()
    }


@pytest.fixture
def copied(originals: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a family's checkpoint with another config: `copied("llava", image_aspect_ratio="square")`."""

    def copy(family: str, **changes: Any) -> Path:
        folder = Path(shutil.copytree(originals[family], tmp_path / "copy", dirs_exist_ok=True))
        config = {**json.loads((folder / "config.json").read_text()), **changes}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return copy


def retensored(folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)
    return folder


def same_state(a: OneVision, b: OneVision) -> bool:
    return same_tensors(a.state_dict(), b.state_dict())


def same_tensors(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def require_same_logits(ours: OneVision, theirs: Any) -> None:
    """In float64: in float32 sums of another order differ more on some processors."""
    ours, theirs = copy.deepcopy(ours).double(), copy.deepcopy(theirs).double()
    clips = theirs.config.model_type in ("llava_next_video", "llava_onevision")
    for probe in make_probes(ours, videos=clips):
        torch.testing.assert_close(
            compute_our_logits(ours, probe), compute_transformers_logits(theirs, ours, probe), **EXACT
        )


# In -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_an_original_checkpoint_computes_what_transformers_computes(
    originals: dict[str, Path], their_models: dict[str, Any], family: str
) -> None:
    require_same_logits(import_original(originals[family]), their_models[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_original_repository_computes_what_transformers_computes(
    originals: dict[str, Path], their_models: dict[str, Any], family: str, hub: LocalHub
) -> None:
    hub.add(f"lmms-lab/{family}", originals[family])
    require_same_logits(mmblocks.load(f"lmms-lab/{family}"), their_models[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_used_or_named_as_not_needed(originals: dict[str, Path], family: str) -> None:
    model, found = import_original_with_report(originals[family])
    stored = load_file(originals[family] / WEIGHTS)
    assert len(found.tensors) + len(found.unused) == len(stored)
    assert found.tensors.keys() == model.state_dict().keys()
    last = {
        "the encoder's final LayerNorm" in reason or "after the layer" in reason for reason in found.unused.values()
    }
    assert last == {True}


def test_a_tower_that_the_checkpoint_only_names_is_read_from_its_folder(
    originals: dict[str, Path], copied: Callable[..., Path], their_models: dict[str, Any]
) -> None:
    folder = copied("llava")
    retensored(folder, lambda t: {name: tensor for name, tensor in t.items() if "vision_tower" not in name})
    tower = CLIPVisionModel(CLIPVisionConfig(**TOWER, num_hidden_layers=3))
    inner = their_models["llava"].model.vision_tower.state_dict()
    tower.load_state_dict(
        {key: inner[key if key in inner else key.removeprefix("vision_model.")] for key in tower.state_dict()}
    )
    tower.save_pretrained(folder / "clip")
    assert same_state(import_original(folder), import_original(originals["llava"]))


def test_a_tower_that_is_nowhere_is_refused_by_name(copied: Callable[..., Path]) -> None:
    folder = copied("llava", mm_vision_tower="nobody/clip-nowhere")
    with pytest.raises(ConfigError, match="mm_vision_tower is 'nobody/clip-nowhere', neither a local folder"):
        import_original(folder)


def test_a_tower_of_another_kind_than_its_name_is_refused(copied: Callable[..., Path]) -> None:
    folder = copied("llava", mm_vision_tower="google/siglip-so400m-patch14-384")
    with pytest.raises(CheckpointError, match="the tower in the file is clip, and mm_vision_tower names a siglip"):
        import_original(folder)


def test_pickled_weights_are_read_like_safetensors(originals: dict[str, Path], copied: Callable[..., Path]) -> None:
    folder = copied("llava")
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    shards = {"pytorch_model-00001-of-00002.bin": names[:20], "pytorch_model-00002-of-00002.bin": names[20:]}
    for file, inside in shards.items():
        torch.save({name: tensors[name] for name in inside}, folder / file)
    weight_map = {name: file for file, inside in shards.items() for name in inside}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert same_state(import_original(folder), import_original(originals["llava"]))


class Trap:
    """A pickle of it writes a file when it is loaded by a reader that runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_that_asks_for_code_is_refused_and_nothing_runs(copied: Callable[..., Path], tmp_path: Path) -> None:
    folder = copied("llava")
    (folder / WEIGHTS).unlink()
    torch.save({"lm_head.weight": Trap(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="asks for code to be run"):
        import_original(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mm_projector_type": "qformer"}, "mm_projector_type is 'qformer'"),
        ({"mm_patch_merge_type": "unires"}, "mm_patch_merge_type is 'unires'"),
        ({"mm_resampler_type": "perceiver"}, "mm_resampler_type is 'perceiver'"),
        ({"mm_resampler_type": "spatial_pool", "mm_spatial_pool_mode": "conv"}, "mm_spatial_pool_mode 'conv'"),
        ({"image_aspect_ratio": "crop_split"}, "image_aspect_ratio is 'crop_split'"),
        ({"image_aspect_ratio": "anyres", "image_grid_pinpoints": None}, "image_grid_pinpoints names no canvas"),
        ({"add_faster_video": True}, "add_faster_video is True"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end is True"),
        ({"mm_vision_select_feature": "slicefour_patch"}, "mm_vision_select_feature is 'slicefour_patch'"),
        ({"mm_newline_position": "everywhere"}, "mm_newline_position is 'everywhere'"),
        ({"architectures": ["LlavaMptForCausalLM"]}, "architectures are ['LlavaMptForCausalLM']"),
    ],
)
def test_a_config_that_we_do_not_compute_is_refused(
    copied: Callable[..., Path], change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        import_original(copied("llava", **change))


def test_all_reasons_against_a_config_are_listed_together(copied: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError) as refused:
        import_original(copied("llava", mm_projector_type="x", image_aspect_ratio="y", architectures=["Z"]))
    assert len(str(refused.value).splitlines()) == 4


def test_missing_extra_and_reshaped_tensors_are_listed_by_their_own_names(copied: Callable[..., Path]) -> None:
    def damage(tensors: Tensors) -> Tensors:
        tensors.pop("model.image_newline")
        tensors["model.vision_resampler.query"] = torch.zeros(3)
        tensors["model.mm_projector.0.bias"] = torch.zeros(7)
        return tensors

    with pytest.raises(CheckpointError) as refused:
        import_original(retensored(copied("llava_next"), damage))
    assert str(refused.value).splitlines()[1:] == [
        "  missing: model.image_newline (32,)",
        "  extra: model.vision_resampler.query (3,)",
        "  shape: model.mm_projector.0.bias is (7,) in the file, (32,) in the model",
    ]


# Out ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_imported_is_written_back_bit_for_bit(originals: dict[str, Path], tmp_path: Path, family: str) -> None:
    model, found = import_original_with_report(originals[family])
    export_original(model, tmp_path / "out")
    stored, again = load_file(originals[family] / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    assert same_tensors({name: tensor for name, tensor in stored.items() if name not in found.unused}, again)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_said_in_the_config_is_said_again(originals: dict[str, Path], tmp_path: Path, family: str) -> None:
    export_original(import_original(originals[family]), tmp_path / "out")
    before = json.loads((originals[family] / "config.json").read_text())
    after = json.loads((tmp_path / "out" / "config.json").read_text())
    free = {"model_type", "transformers_version", "use_sliding_window", "rope_scaling"}
    assert {key: after.get(key) for key in before if key not in free} == {
        key: value for key, value in before.items() if key not in free
    }
    assert after.get("rope_scaling", {}).items() >= before.get("rope_scaling", {}).items()


@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_comes_back_as_the_same_model(originals: dict[str, Path], tmp_path: Path, family: str) -> None:
    model = import_original(originals[family])
    again = import_original(export_original(model, tmp_path / "out"))
    assert detect_layout(tmp_path / "out") == "original"
    assert same_state(again, model)
    plain, before = again.spec.to_dict(), model.spec.to_dict()
    assert {k: plain[k] for k in plain if k != "backbone"} == {k: before[k] for k in before if k != "backbone"}
    assert again.backbone.config.rope_parameters == model.backbone.config.rope_parameters


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_comes_back_bit_for_bit_through_every_layout(
    originals: dict[str, Path], their_models: dict[str, Any], tmp_path: Path, family: str
) -> None:
    """original -> mmblocks -> transformers -> mmblocks -> original."""
    first = import_original(originals[family])
    mmblocks.save(first, tmp_path / "ours")
    layout_of(family).export_model(mmblocks.load(tmp_path / "ours"), tmp_path / "hf")
    require_same_logits(first, AutoModelForImageTextToText.from_pretrained(tmp_path / "hf").eval())
    back, _ = layout_of(family).import_model(tmp_path / "hf", dtype=torch.float32)
    export_original(back, tmp_path / "out")
    _, found = import_original_with_report(originals[family])
    stored, again = load_file(originals[family] / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    assert same_tensors({name: tensor for name, tensor in stored.items() if name not in found.unused}, again)
    require_same_logits(import_original(tmp_path / "out"), their_models[family])


def test_tied_embeddings_are_written_once(copied: Callable[..., Path], tmp_path: Path) -> None:
    folder = copied("llava_onevision", tie_word_embeddings=True)
    retensored(folder, lambda t: {name: tensor for name, tensor in t.items() if name != "lm_head.weight"})
    model = import_original(folder)
    export_original(model, tmp_path / "out")
    assert "lm_head.weight" not in load_file(tmp_path / "out" / WEIGHTS)
    assert same_state(import_original(tmp_path / "out"), model)


def test_a_tower_of_ones_own_is_written_beside_the_model_and_transformers_loads_it(
    originals: dict[str, Path], tmp_path: Path
) -> None:
    kinds: dict[str, Any] = {"llava": CLIPVisionModel, "llava_onevision": SiglipVisionModel}
    for family, kind in kinds.items():
        model = import_original(originals[family])
        out = export_original(model, tmp_path / family)
        tower, report = kind.from_pretrained(out / CONFIGS[family]["mm_vision_tower"], output_loading_info=True)
        assert not report["missing_keys"]
        pixels = torch.randn(2, 3, SIDE_PX, SIDE_PX, dtype=torch.float64)
        with torch.no_grad():
            states = tower.double().eval()(pixels, output_hidden_states=True).hidden_states[-2]
            ours = model.encoder.double()(pixels).flatten(1, 2)
        torch.testing.assert_close(ours, states[:, -16:], **EXACT)


def test_a_published_tower_is_called_by_its_name(originals: dict[str, Path]) -> None:
    plain = import_original(originals["llava"]).spec.to_dict()
    with torch.device("meta"):
        model = build_from_spec(ModelSpec.from_dict({**plain, "encoder": "clip_vit_l_336"}))
        resized = build_from_spec(
            ModelSpec.from_dict({**plain, "encoder": {"name": "clip_vit_l_336", "image_px": 448}})
        )
    assert make_original_config(model)["mm_vision_tower"] == "openai/clip-vit-large-patch14-336"
    assert make_original_config(resized)["mm_vision_tower"] == "clip"


def test_an_export_in_bfloat16_says_so_and_a_large_one_is_sharded(originals: dict[str, Path], tmp_path: Path) -> None:
    model = import_original(originals["llava"])
    export_original(model, tmp_path / "out", dtype=torch.bfloat16, max_shard_size="20KB")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    shards = list((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 1
    assert {tensor.dtype for shard in shards for tensor in load_file(shard).values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"encoder": {"name": "tiny_conv", "view_px": 24, "widths": [8, 8]}}, "encoder: TinyConv"),
        ({"projector": "gated"}, "projector: Gated"),
        ({"tokenizer": {"multi_image": "pad_newline"}}, "tokenizer.multi_image: several images"),
        ({"tokenizer": {"video": {"name": "frames", "newline": "grid"}}}, "newline='grid' needs a pooling"),
        (
            {"pooling": "average", "tokenizer": {"video": {"name": "frames", "newline": "grid"}}},
            "newline='grid', but the tokenizer of images has no newline",
        ),
        ({"backbone": {"family": "qwen3"}}, "backbone: a 'qwen3' model"),
    ],
)
def test_what_the_layout_cannot_express_has_its_reason(
    originals: dict[str, Path], tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    plain = import_original(originals["llava"]).spec.to_dict()
    nested = {key: {**plain[key], **change.pop(key)} for key in ("tokenizer", "backbone") if key in change}
    model = mmblocks.build({**plain, **change, **nested}, seed=0)
    with pytest.raises(ConfigError, match=re.escape(reason)):
        export_original(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# Ways to show images ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aspect", "merge", "tokens"),
    [
        ("square", "flat", 16),
        ("pad", "flat", 16),
        ("pad", "spatial", 16),
        ("pad", "spatial_unpad", 17),
        ("anyres", "flat", 16 + 32),
        ("anyres", "spatial", 16 + 32),
        ("anyres", "spatial_unpad", 16 + 4 * 9),
        ("anyres", "spatial_unpad_nobase", 4 * 9),
        ("anyres", "spatial_maxpool2x2", 16 + 8),
        ("anyres_max_1", "spatial_unpad", 16 + 2 * 6),
        ("highres", "flat", 16 + 4 * 16),
    ],
)
def test_each_way_to_show_a_picture_is_read_and_written_back(
    copied: Callable[..., Path], tmp_path: Path, aspect: str, merge: str, tokens: int
) -> None:
    pinpoints: Any = "112" if aspect == "highres" else PINPOINTS
    folder = copied("llava_next", image_aspect_ratio=aspect, mm_patch_merge_type=merge, image_grid_pinpoints=pinpoints)
    if "unpad" not in merge:
        retensored(folder, lambda t: {name: tensor for name, tensor in t.items() if name != "model.image_newline"})
    model = import_original(folder)
    plan = model.router.image.plan(VisualShape("image", Size(56, 112)))
    assert plan.num_tokens == tokens
    again = import_original(export_original(model, tmp_path / "out"))
    assert again.router.image == model.router.image
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["image_aspect_ratio"] == aspect
    assert said["mm_patch_merge_type"] == ("flat" if (aspect, merge) == ("pad", "spatial") else merge)


@pytest.mark.parametrize(
    ("position", "tokens"), [("grid", 3 * 6), ("frame", 3 * 5), ("one_token", 13), ("no_token", 12)]
)
@pytest.mark.parametrize("mode", ["average", "max", "bilinear"])
def test_each_way_to_show_a_clip_is_read_and_written_back(
    copied: Callable[..., Path], tmp_path: Path, position: str, tokens: int, mode: str
) -> None:
    folder = copied("llava_next_video", mm_resampler_type=None, mm_newline_position=position, mm_spatial_pool_mode=mode)
    model = import_original(folder)
    plan = model.router.video.plan(VisualShape("video", Size(56, 56), num_frames=3))
    assert plan.num_tokens == tokens
    again = import_original(export_original(model, tmp_path / "out"))
    assert again.router.video == model.router.video


# Projectors ---------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """LLaVA's SimpleResBlock: names and order of its layers, and its residual of what was normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.pre_norm = nn.LayerNorm(TEXT_DIM)
        self.proj = nn.Sequential(nn.Linear(TEXT_DIM, TEXT_DIM), nn.GELU(), nn.Linear(TEXT_DIM, TEXT_DIM))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre_norm(x)
        return x + self.proj(x)


class Pooler(nn.Module):
    """LLaVA's PoolerProjector on a square of patches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_pool = nn.Conv2d(VISION_DIM, TEXT_DIM, 2, 2)
        self.proj = nn.Sequential(nn.GELU(), nn.Linear(TEXT_DIM, TEXT_DIM))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.conv_pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def stacked(depth: int, *more: nn.Module) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(VISION_DIM, TEXT_DIM)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(TEXT_DIM, TEXT_DIM)]
    return nn.Sequential(*layers, *more)


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        ("linear", nn.Linear(VISION_DIM, TEXT_DIM)),
        ("mlp1x_gelu", stacked(1)),
        ("mlp2x_gelu", stacked(2)),
        ("mlp6x_gelu", stacked(6)),
        ("mlp2x_res2x_gelu", stacked(2, Residual(), Residual())),
        ("pooler", Pooler()),
    ],
)
def test_each_type_of_projector_is_read_run_and_written_back(
    copied: Callable[..., Path], tmp_path: Path, kind: str, theirs: nn.Module
) -> None:
    mine = {f"model.mm_projector.{name}": tensor.clone() for name, tensor in disturbed(theirs).state_dict().items()}

    def replaced(tensors: Tensors) -> Tensors:
        return {**{name: t for name, t in tensors.items() if "mm_projector" not in name}, **mine}

    model = import_original(retensored(copied("llava", mm_projector_type=kind), replaced))
    features = torch.randn(2, 4, 4, VISION_DIM)
    with torch.no_grad():
        torch.testing.assert_close(model.projector(features), theirs(features), rtol=0, atol=1e-6)  # fp32
    again = load_file(export_original(model, tmp_path / "out") / WEIGHTS)
    assert same_tensors(mine, {name: tensor for name, tensor in again.items() if "mm_projector" in name})
    assert json.loads((tmp_path / "out" / "config.json").read_text())["mm_projector_type"] == kind


# The command --------------------------------------------------------------------------------------------------------


def test_convert_reads_and_writes_the_original_layout(
    originals: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["convert", str(originals["llava_next"]), str(tmp_path / "ours")]) == 0
    assert cli.main(["convert", str(tmp_path / "ours"), str(tmp_path / "out"), "--to", "original"]) == 0
    assert "LLaVA's own layout" in capsys.readouterr().out
    assert same_state(import_original(tmp_path / "out"), import_original(originals["llava_next"]))
