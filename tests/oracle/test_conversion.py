"""The doors: every layout in, the hub's layout out, LLaVA's own in; nothing lost, nothing guessed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

import mmblocks
from mmblocks import cli
from mmblocks.conversation import Conversation
from mmblocks.data.collate import collate
from mmblocks.data.processor import Processor
from mmblocks.errors import CheckpointError, ConfigError
from mmblocks.model.convert import detect
from mmblocks.model.convert.export_hf import export_hf
from mmblocks.model.convert.llava import import_original
from mmblocks.model.convert.llava_onevision import import_hf, import_hf_with_report
from mmblocks.model.convert.probe import our_logits, probes, transformers_logits
from mmblocks.model.onevision import OneVision

Tensors = dict[str, Tensor]
SAME_KERNELS: dict[str, Any] = {"rtol": 0, "atol": 1e-5}  # fp32: only the attention code differs
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def ours(checkpoint: Path) -> OneVision:
    return import_hf(checkpoint)


@pytest.fixture(scope="module")
def exported(ours: OneVision, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_hf(ours, tmp_path_factory.mktemp("export") / "model")


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def rewritten(folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)
    return folder


def reconfigured(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def same_state(a: OneVision, b: OneVision) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


def require_same_logits(ours: OneVision, theirs: Any) -> None:
    """On a picture, two pictures, a clip and text alone."""
    for probe in probes(ours):
        torch.testing.assert_close(our_logits(ours, probe), transformers_logits(theirs, ours, probe), **SAME_KERNELS)


# In: the layouts of transformers ------------------------------------------------------------------------------------


def hub(name: str) -> str:
    return name.replace("vision_tower.", "vision_tower.vision_model.", 1) if name.startswith("vision_tower.") else name


def in_memory(name: str) -> str:
    name = name.replace("language_model.lm_head", "lm_head").replace("language_model.model", "language_model")
    return name if name.startswith("lm_head") else f"model.{name}"


def v4_52(name: str) -> str:
    return in_memory(hub(name))


@pytest.mark.parametrize(
    ("rename", "layout"),
    [
        (hub, "hub"),
        (v4_52, "transformers 4.52"),
        (in_memory, "transformers 5, in-memory names"),
        (str, "transformers 5, hub prefixes"),
    ],
)
def test_every_layout_of_transformers_gives_the_same_model(
    copied: Path, ours: OneVision, rename: Callable[[str], str], layout: str
) -> None:
    model, found = import_hf_with_report(rewritten(copied, lambda t: {rename(k): v for k, v in t.items()}))
    assert found.layout == layout
    assert same_state(model, ours)


def test_the_names_that_transformers_writes_are_those_of_the_layouts(theirs: Any, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path / "fresh")
    theirs.save_pretrained(tmp_path / "memory", save_original_format=False)
    fresh, memory = (set(load_file(tmp_path / n / WEIGHTS)) for n in ("fresh", "memory"))
    assert {in_memory(name) for name in fresh} == memory


def test_a_config_as_the_hub_holds_it_gives_the_same_model(copied: Path, ours: OneVision, theirs: Any) -> None:
    """Written in 2024: rope_theta beside the sizes, an unused sliding window, torch_dtype, a file per processor."""
    text = json.loads((copied / "config.json").read_text())["text_config"]
    for newer in ("rope_parameters", "layer_types", "dtype"):
        text.pop(newer, None)
    text |= {"rope_theta": 1e6, "sliding_window": 64, "use_sliding_window": False, "torch_dtype": "float16"}
    reconfigured(copied, text_config=text, torch_dtype="float16", use_image_newline_parameter=True)
    image = json.loads((copied / "processor_config.json").read_text())["image_processor"]
    (copied / "processor_config.json").write_text('{"num_image_tokens": 64, "vision_feature_select_strategy": "full"}')
    (copied / "preprocessor_config.json").write_text(json.dumps(image))
    rewritten(copied, lambda t: {hub(k): v for k, v in t.items()})
    model = import_hf(copied)
    assert same_state(model, ours)
    require_same_logits(model, theirs)


def test_pinpoints_are_read_height_first_as_transformers_writes_them(
    make_theirs: Callable[..., Any], tmp_path: Path
) -> None:
    theirs = make_theirs(image_grid_pinpoints=[[112, 336], [112, 224], [448, 112]])
    theirs.save_pretrained(tmp_path)
    model = import_hf(tmp_path)
    assert [str(canvas) for canvas in model.router.image.canvases] == ["112x336", "112x224", "448x112"]
    require_same_logits(model, theirs)


def test_the_import_unpads_as_transformers_rounds(ours: OneVision) -> None:
    assert ours.router.image.rounding == "transformers"


def test_every_tensor_is_used_or_named_as_not_needed(checkpoint: Path) -> None:
    _, found = import_hf_with_report(checkpoint)
    stored = load_file(checkpoint / WEIGHTS)
    assert len(found.tensors) + len(found.unused) == len(stored)
    assert set(found.unused) == {f"vision_tower.post_layernorm.{kind}" for kind in ("weight", "bias")}


def test_shards_are_read_like_one_file(checkpoint: Path, theirs: Any, ours: OneVision, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    shutil.copy(checkpoint / "tokenizer.json", tmp_path)
    shutil.copy(checkpoint / "tokenizer_config.json", tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert same_state(import_hf(tmp_path), ours)


@pytest.mark.parametrize("layer", [-2, -3, 1, 3])
def test_the_feature_layer_is_honoured_and_later_blocks_are_named(
    make_theirs: Callable[..., Any], tmp_path: Path, layer: int
) -> None:
    theirs = make_theirs(vision_feature_layer=layer)
    theirs.save_pretrained(tmp_path)
    model, found = import_hf_with_report(tmp_path)
    blocks = layer if layer > 0 else 3 + 1 + layer
    left = {int(m[1]) for name in found.unused if (m := re.search(r"encoder\.layers\.(\d+)", name))}
    assert left == set(range(blocks, 3))
    require_same_logits(model, theirs)


def test_tied_embeddings_stay_one_tensor(make_theirs: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> None:
    theirs = make_theirs(tied=True)
    theirs.save_pretrained(tmp_path)
    assert not any("lm_head" in name for name in load_file(tmp_path / WEIGHTS))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint / name, tmp_path)
    model = import_hf(tmp_path)
    assert model.backbone.lm.lm_head.weight is model.backbone.lm.model.embed_tokens.weight
    require_same_logits(model, theirs)
    written = export_hf(model, tmp_path / "out")
    assert not any("lm_head" in name for name in load_file(written / WEIGHTS))
    require_same_logits(model, AutoModelForImageTextToText.from_pretrained(written).eval())


def test_a_head_stored_beside_tied_embeddings_must_equal_them(make_theirs: Callable[..., Any], tmp_path: Path) -> None:
    make_theirs(tied=True).save_pretrained(tmp_path)
    table = load_file(tmp_path / WEIGHTS)["language_model.model.embed_tokens.weight"]
    rewritten(tmp_path, lambda t: {**t, "language_model.lm_head.weight": table.clone()})
    require_same_logits(import_hf(tmp_path), make_theirs(tied=True))
    rewritten(tmp_path, lambda t: {**t, "language_model.lm_head.weight": table + 1})
    with pytest.raises(CheckpointError, match="untied: the config ties the language head"):
        import_hf(tmp_path)


def test_the_spec_of_an_import_describes_the_same_language_model(ours: OneVision, theirs: Any) -> None:
    """Sizes, rope and norm: what a build from the spec alone would have."""
    described, true = mmblocks.build(ours.spec).backbone.config.to_dict(), theirs.config.text_config.to_dict()
    assert {k: described[k] for k in true if k not in ("_attn_implementation", "dtype", "architectures")} == {
        k: true[k] for k in true if k not in ("_attn_implementation", "dtype", "architectures")
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_read_in_half_precision_keeps_its_rotary_frequencies(
    checkpoint: Path, ours: OneVision, tmp_path: Path, dtype: torch.dtype
) -> None:
    read = import_hf(checkpoint, dtype=dtype)
    loaded = mmblocks.load(mmblocks.save(read, tmp_path / "half"), dtype=dtype)
    for model in (read, loaded):
        assert {p.dtype for p in model.parameters()} == {dtype}
        frequencies = model.backbone.lm.model.rotary_emb.inv_freq
        assert torch.equal(frequencies, ours.backbone.lm.model.rotary_emb.inv_freq)


def test_an_imported_model_is_saved_and_loaded_as_one_of_ours(ours: OneVision, tmp_path: Path) -> None:
    loaded = mmblocks.load(mmblocks.save(ours, tmp_path / "ours"))
    assert same_state(loaded, ours)
    assert loaded.spec.plain()["tokenizer"] == ours.spec.plain()["tokenizer"]


# Out: the hub's layout ----------------------------------------------------------------------------------------------


def test_transformers_loads_our_export_whole_and_gives_the_same_logits(exported: Path, ours: OneVision) -> None:
    theirs, report = AutoModelForImageTextToText.from_pretrained(exported, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    require_same_logits(ours, theirs.eval())


def test_the_export_bears_the_names_of_the_hub(exported: Path, checkpoint: Path) -> None:
    names = set(load_file(exported / WEIGHTS))
    assert names == {hub(name) for name in load_file(checkpoint / WEIGHTS)}
    assert all(n.startswith("vision_tower.vision_model.") for n in names if "vision" in n)


def test_what_was_exported_comes_back_bit_for_bit(exported: Path, ours: OneVision) -> None:
    model, found = import_hf_with_report(exported)
    assert found.layout == "hub"
    assert same_state(model, ours)
    plain, before = model.spec.plain(), ours.spec.plain()
    assert {k: plain[k] for k in plain if k != "backbone"} == {k: before[k] for k in before if k != "backbone"}


def test_a_large_export_is_sharded_and_comes_back(ours: OneVision, tmp_path: Path) -> None:
    export_hf(ours, tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert same_state(import_hf(tmp_path / "shards"), ours)
    require_same_logits(ours, AutoModelForImageTextToText.from_pretrained(tmp_path / "shards").eval())


def test_an_export_in_bfloat16_says_so_and_holds_rounded_weights(ours: OneVision, tmp_path: Path) -> None:
    export_hf(ours, tmp_path / "half", dtype=torch.bfloat16)
    stored = load_file(tmp_path / "half" / WEIGHTS)
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    newline = ours.marks["newline"].detach()
    assert torch.equal(stored["image_newline"], newline.bfloat16())


def test_the_processor_of_an_export_prepares_what_our_model_sees(exported: Path, ours: OneVision) -> None:
    processor = AutoProcessor.from_pretrained(exported, use_fast=False)
    theirs = AutoModelForImageTextToText.from_pretrained(exported).eval()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 260, 3), dtype=np.uint8))
    messages: Any = [
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]}
    ]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    batch = collate([Processor.of(ours).prompt(Conversation.of(messages))])
    assert inputs["input_ids"].shape[1] == batch.num_tokens
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(batch), theirs(**inputs).logits[0], **SAME_KERNELS)
    stop = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert theirs.generation_config.eos_token_id in (stop, [stop])


TALKS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    [
        {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": 'What\'s "it"?\n'}]},
        {"role": "assistant", "content": "A ramp."},
        {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "video", "video": "b.mp4"}]},
    ],
]


@pytest.mark.parametrize("messages", TALKS)
@pytest.mark.parametrize("name", ["chatml", "qwen_2", "qwen_2_5", "vicuna_v1", "llava_v1"])
def test_exported_chat_templates_write_what_our_spans_say(
    exported: Path, name: str, messages: list[dict[str, Any]]
) -> None:
    from mmblocks.components import templates
    from mmblocks.model.convert.jinja import jinja_of

    template = templates.build(name)
    spans = [*template.spans(Conversation.of(messages).messages), *template.open_answer()]
    text = "".join(s.content if isinstance(s.content, str) else f"<{s.content.kind}>" for s in spans)
    tokenizer: Any = AutoTokenizer.from_pretrained(exported)
    tokenizer.chat_template = jinja_of(template)
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == text


def test_a_model_that_transformers_cannot_express_is_refused_with_every_reason(
    tmp_path: Path, tiny_model: OneVision
) -> None:
    tiny_model.router = replace(tiny_model.router, multi_image=tiny_model.router.image)
    with pytest.raises(ConfigError) as refused:
        export_hf(tiny_model, tmp_path / "out")
    for reason in ("encoder: TinyConv", "tokenizer.multi_image: only 'pad' with newline=true"):
        assert reason in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"projector": {"name": "mlp", "depth": 3}}, "projector: llava_onevision has two linear layers"),
        ({"projector": "linear"}, "projector: llava_onevision has two linear layers"),
        ({"pooling": {"name": "average"}}, "pooling: AveragePooling"),
        ({"pooling": {"name": "bilinear", "stride": 4}}, "pooling: BilinearPooling(stride=4)"),
        ({"template": "plain"}, "template: Plain has no form"),
        ({"tokenizer": {"image": {"name": "anyres", "max_tiles": None}}}, "tokenizer.image: only 'anyres'"),
        ({"tokenizer": {"image": "pad"}}, "tokenizer.image: only 'anyres'"),
        ({"tokenizer": {"video": {"name": "frames", "newline": "grid"}}}, "tokenizer.video: only 'frames'"),
    ],
)
def test_each_thing_that_transformers_cannot_express_has_its_reason(
    ours: OneVision, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    plain = ours.spec.plain()
    tokenizer = {**plain["tokenizer"], **change.pop("tokenizer", {})} if "tokenizer" in change else plain["tokenizer"]
    model = mmblocks.build({**plain, **change, "tokenizer": tokenizer})
    with pytest.raises(ConfigError, match=re.escape(reason)):
        export_hf(model, tmp_path / "out")


def test_a_vocabulary_without_room_for_the_visual_tokens_is_refused(
    ours: OneVision, make_tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    make_tokenizer(["<|im_start|>", "<|im_end|>"]).save_pretrained(tmp_path / "text")
    backbone = {**ours.spec.plain()["backbone"], "vocab_size": 259, "placeholder_id": 0}
    small = mmblocks.build({**ours.spec.plain(), "backbone": {**backbone, "text_tokenizer": str(tmp_path / "text")}})
    with pytest.raises(ConfigError, match="259 token embeddings leave no room for <image> and <video>"):
        export_hf(small, tmp_path / "out")


def test_visual_tokens_that_the_tokenizer_lacks_are_added_where_the_vocabulary_has_room(
    ours: OneVision, make_tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    make_tokenizer(["<|im_start|>", "<|im_end|>"]).save_pretrained(tmp_path / "text")
    backbone = {**ours.spec.plain()["backbone"], "placeholder_id": 0, "text_tokenizer": str(tmp_path / "text")}
    model = mmblocks.build({**ours.spec.plain(), "backbone": backbone}, seed=1).eval()
    theirs = AutoModelForImageTextToText.from_pretrained(export_hf(model, tmp_path / "out")).eval()
    assert (theirs.config.image_token_id, theirs.config.video_token_id) == (259, 260)
    require_same_logits(model, theirs)


# In: LLaVA's own layout ---------------------------------------------------------------------------------------------


def original_name(name: str) -> str:
    """A name of the hub in LLaVA-NeXT's words."""
    for theirs, original in (
        ("vision_tower.vision_model.", "model.vision_tower.vision_tower.vision_model."),
        ("multi_modal_projector.linear_1.", "model.mm_projector.0."),
        ("multi_modal_projector.linear_2.", "model.mm_projector.2."),
        ("image_newline", "model.image_newline"),
        ("language_model.model.", "model."),
        ("language_model.lm_head.", "lm_head."),
    ):
        if name.startswith(theirs):
            return original + name.removeprefix(theirs)
    raise AssertionError(name)


@pytest.fixture(scope="module")
def original(checkpoint: Path, theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint as LLaVA-NeXT would have written it, its tower's config beside it."""
    folder = tmp_path_factory.mktemp("original")
    stored = load_file(checkpoint / WEIGHTS)
    save_file({original_name(hub(name)): tensor for name, tensor in stored.items()}, folder / WEIGHTS)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint / name, folder)
    vision, text = theirs.config.vision_config, theirs.config.text_config
    (folder / "siglip").mkdir()
    (folder / "siglip" / "config.json").write_text(json.dumps({"vision_config": vision.to_dict()}))
    text_keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    text_keys += ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "hidden_act")
    config = {
        "model_type": "llava",
        "architectures": ["LlavaQwenForCausalLM"],
        "rope_theta": 1e6,
        "use_sliding_window": False,
        "mm_vision_tower": "siglip",
        "mm_hidden_size": vision.hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_patch_merge_type": "spatial_unpad",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_newline_position": "one_token",
        "mm_spatial_pool_mode": "bilinear",
        "image_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": [[112 * w, 112 * h] for w in range(1, 7) for h in range(1, 7)],
        "image_token_index": theirs.config.image_token_id,
        **{key: getattr(text, key) for key in text_keys},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_original_layout_gives_the_same_logits(original: Path, theirs: Any) -> None:
    model = import_original(original)
    require_same_logits(model, theirs)
    assert model.spec.plain()["encoder"]["layer"] == -2
    assert model.router.image.rounding == "original"


def test_an_original_checkpoint_reaches_transformers_through_us(original: Path, theirs: Any, tmp_path: Path) -> None:
    export_hf(import_original(original), tmp_path / "out")
    model = import_original(original)
    require_same_logits(model, AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mm_projector_type": "pooler"}, "mm_projector_type is 'pooler'"),
        ({"mm_patch_merge_type": "flat"}, "mm_patch_merge_type is 'flat'"),
        ({"mm_resampler_type": "perceiver"}, "mm_resampler_type is 'perceiver'"),
        ({"image_aspect_ratio": "pad"}, "image_aspect_ratio is 'pad'"),
        ({"add_faster_video": True}, "add_faster_video is True"),
        ({"architectures": ["LlavaMptForCausalLM"]}, "architectures are"),
        ({"mm_vision_tower": "openai/clip-vit-large-patch14-336"}, "mm_vision_tower is 'openai/clip"),
    ],
)
def test_an_original_config_that_we_do_not_compute_is_refused(
    original: Path, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "copy"))
    with pytest.raises(ConfigError, match=re.escape(reason)):
        import_original(reconfigured(folder, **change))


def test_a_tower_of_another_size_than_its_name_is_refused(original: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "copy"))
    with pytest.raises(CheckpointError, match="64 positions of 14 pixels, which does not fit pictures of 384 pixels"):
        import_original(reconfigured(folder, mm_vision_tower="google/siglip-so400m-patch14-384"))


# Faults -------------------------------------------------------------------------------------------------------------


def test_missing_extra_and_reshaped_tensors_are_all_listed_by_their_own_names(copied: Path) -> None:
    def damage(tensors: Tensors) -> Tensors:
        tensors.pop("image_newline")
        tensors["language_model.model.layers.0.self_attn.q_norm.weight"] = torch.zeros(8)
        tensors["vision_tower.encoder.layers.0.gate"] = torch.zeros(3)
        tensors["multi_modal_projector.linear_1.bias"] = torch.zeros(7)
        return tensors

    with pytest.raises(CheckpointError) as refused:
        import_hf(rewritten(copied, damage))
    assert str(refused.value).splitlines()[1:] == [
        "  missing: image_newline (32,)",
        "  extra: language_model.model.layers.0.self_attn.q_norm.weight (8,)",
        "  extra: vision_tower.encoder.layers.0.gate (3,)",
        "  shape: multi_modal_projector.linear_1.bias is (7,) in the file, (32,) in the model",
    ]


@pytest.mark.parametrize("kept", [0, 4, 100, 20_000])
def test_a_cut_file_is_refused_by_name(copied: Path, kept: int) -> None:
    (copied / WEIGHTS).write_bytes((copied / WEIGHTS).read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read .*cut or damaged"):
        import_hf(copied)


def test_a_missing_shard_is_named(theirs: Any, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    with pytest.raises(CheckpointError, match=r"names files that are missing: model-00002-of-"):
        import_hf(tmp_path)


def test_a_config_that_is_missing_or_cut_is_refused(copied: Path) -> None:
    config = (copied / "config.json").read_text()
    (copied / "config.json").write_text(config[:50])
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read .*cut or damaged"):
        import_hf(copied)
    (copied / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        import_hf(copied)


def test_a_folder_of_pickled_weights_is_refused(copied: Path) -> None:
    (copied / WEIGHTS).rename(copied / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights"):
        import_hf(copied)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"projector_hidden_act": "relu"}, "projector_hidden_act is 'relu'"),
        ({"multimodal_projector_bias": False}, "multimodal_projector_bias is False"),
        ({"vision_feature_select_strategy": "default"}, "vision_feature_select_strategy is 'default'"),
        ({"vision_feature_layer": [-1, -2]}, r"vision_feature_layer is [-1, -2]"),
        ({"vision_aspect_ratio": "pad"}, "vision_aspect_ratio is 'pad'"),
    ],
)
def test_a_config_that_we_do_not_compute_is_refused(copied: Path, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        import_hf(reconfigured(copied, **change))


def test_a_processor_with_other_colours_is_refused(copied: Path) -> None:
    path = copied / "processor_config.json"
    config = json.loads(path.read_text())
    config["image_processor"]["image_mean"] = [0.48, 0.46, 0.41]
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"image_mean=\[0\.48, 0\.46, 0\.41\]; only \[0\.5, 0\.5, 0\.5\] is read"):
        import_hf(copied)


# The command --------------------------------------------------------------------------------------------------------


def test_each_kind_of_folder_is_recognised(checkpoint: Path, original: Path, ours: OneVision, tmp_path: Path) -> None:
    mmblocks.save(ours, tmp_path / "ours")
    assert [detect(f) for f in (checkpoint, original, tmp_path / "ours")] == ["llava_onevision", "llava", "mmblocks"]


def test_an_unknown_kind_of_folder_is_refused_with_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    with pytest.raises(CheckpointError, match=r"holds a 'bert' model of \['BertModel'\]"):
        detect(tmp_path)


def test_convert_there_and_back_checks_each_step(
    checkpoint: Path, ours: OneVision, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["convert", str(checkpoint), str(tmp_path / "ours")]) == 0
    assert cli.main(["convert", str(tmp_path / "ours"), str(tmp_path / "theirs")]) == 0
    said = capsys.readouterr().out
    assert "layout   transformers 5, hub prefixes" in said
    assert said.count("largest difference of logits") == 8
    assert same_state(import_hf(tmp_path / "theirs"), ours)


def test_convert_to_bfloat16_is_checked_against_the_rounded_model(checkpoint: Path, tmp_path: Path) -> None:
    assert cli.main(["convert", str(checkpoint), str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    assert cli.main(["convert", str(tmp_path / "half"), str(tmp_path / "theirs")]) == 0
    assert {t.dtype for t in load_file(tmp_path / "theirs" / WEIGHTS).values()} == {torch.bfloat16}


def test_convert_reads_the_original_and_writes_either(
    original: Path, theirs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["convert", str(original), str(tmp_path / "ours")]) == 0
    assert cli.main(["convert", str(original), str(tmp_path / "hf"), "--to", "llava_onevision"]) == 0
    assert "LLaVA-OneVision's own layout" in capsys.readouterr().out
    require_same_logits(mmblocks.load(tmp_path / "ours"), theirs)


def test_a_result_that_computes_something_else_is_not_kept(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import mmblocks.model.checkpoint as checkpoints

    save = checkpoints.save

    def save_wrongly(model: OneVision, folder: Path) -> Path:
        with torch.no_grad():
            model.marks["newline"].add_(1)
        return save(model, folder)

    monkeypatch.setattr(checkpoints, "save", save_wrongly)
    assert cli.main(["convert", str(checkpoint), str(tmp_path / "out")]) == 1
    assert "nothing was kept" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_convert_never_writes_over_a_folder(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["convert", str(checkpoint), str(tmp_path)]) == 2
    assert "exists; name a folder that does not" in capsys.readouterr().err


def test_a_damaged_source_leaves_nothing_behind(copied: Path, tmp_path: Path) -> None:
    (copied / WEIGHTS).write_bytes((copied / WEIGHTS).read_bytes()[:500])
    assert cli.main(["convert", str(copied), str(tmp_path / "out")]) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]
