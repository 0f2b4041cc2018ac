"""The doors: every layout in, the hub's layout out, LLaVA's own in; nothing lost, nothing guessed."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jinja2 import TemplateError
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, GenerationConfig

import mmblocks
from mmblocks import cli
from mmblocks.cli.convert_check import check_logits
from mmblocks.components import poolings, templates, tokenizers
from mmblocks.conversation import Conversation
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import CheckpointError, ConfigError
from mmblocks.model.build import build_from_spec, build_router
from mmblocks.model.convert import detect_layout, layout_of
from mmblocks.model.convert.chat import choose_chat_template
from mmblocks.model.convert.float32 import Float32Mode
from mmblocks.model.convert.original.llava import import_original
from mmblocks.model.convert.probe import compute_our_logits, compute_transformers_logits, make_probes
from mmblocks.model.convert.transformers.export import export_hf
from mmblocks.model.convert.transformers.families import import_hf, import_hf_with_report
from mmblocks.model.convert.transformers.jinja import to_jinja
from mmblocks.model.convert.weights import find_stored_dtype, measure_gigabytes
from mmblocks.model.generate import StopSequences
from mmblocks.model.onevision import OneVision
from mmblocks.model.swapping.swap import swap
from mmblocks.settings import REQUIRED
from mmblocks.shapes import Size, VisualShape
from mmblocks.tensors import StoredTensors, leave_weights_empty
from mmblocks.tokenizers.frames import Frames

Tensors = dict[str, Tensor]
EXACT: dict[str, Any] = {"rtol": 0, "atol": 5e-6}
"""Of logits up to 4, in float64, but for what transformers computes in float32 all the same: norms and rotary tables."""
WEIGHTS = "model.safetensors"


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
    """On an image, two images, a video and text alone, in float64: in float32 sums of another order differ more on some processors."""
    ours, theirs = copy.deepcopy(ours).double(), copy.deepcopy(theirs).double()
    for probe in make_probes(ours):
        torch.testing.assert_close(
            compute_our_logits(ours, probe), compute_transformers_logits(theirs, ours, probe), **EXACT
        )


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


def test_the_ends_of_a_checkpoint_come_in_stay_and_go_out_again(copied: Path, tmp_path: Path) -> None:
    settings = {"eos_token_id": [7, 9], "repetition_penalty": 1.1, "temperature": 0.9}  # a list as Qwen2-Instruct's
    (copied / "generation_config.json").write_text(json.dumps(settings))
    model = import_hf(copied)
    (own,) = (i for i in StopSequences.from_model(model).tokens if i not in (7, 9))
    mmblocks.save(model, tmp_path / "saved")
    export_hf(mmblocks.load(tmp_path / "saved"), tmp_path / "export")
    written = GenerationConfig.from_pretrained(tmp_path / "export")
    assert written.eos_token_id == [own, 7, 9]
    assert model.backbone.text_tokenizer.convert_ids_to_tokens(own) == model.template.stop[0]
    assert model.backbone.lm.generation_config.repetition_penalty == 1.1


def test_an_imported_model_is_saved_and_loaded_as_one_of_ours(ours: OneVision, tmp_path: Path) -> None:
    loaded = mmblocks.load(mmblocks.save(ours, tmp_path / "ours"))
    assert same_state(loaded, ours)
    assert loaded.spec.to_dict()["tokenizer"] == ours.spec.to_dict()["tokenizer"]


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
    plain, before = model.spec.to_dict(), ours.spec.to_dict()
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
    newline = ours.learned_tokens["newline"].detach()
    assert torch.equal(stored["image_newline"], newline.bfloat16())


def test_the_processor_of_an_export_prepares_what_our_model_sees(
    exported: Path, ours: OneVision, pil_processor: Any
) -> None:
    processor = pil_processor(exported)
    ours, theirs = copy.deepcopy(ours).double(), AutoModelForImageTextToText.from_pretrained(exported).double().eval()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 260, 3), dtype=np.uint8))
    messages: Any = [
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What?"}]}
    ]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    batch = collate([Processor.from_model(ours).make_prompt_sample(Conversation.from_messages(messages))])
    assert inputs["input_ids"].shape[1] == batch.num_tokens
    with torch.no_grad():
        torch.testing.assert_close(ours.compute_logits(batch), theirs(**inputs).logits[0], **EXACT)
    stop = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert theirs.generation_config.eos_token_id in (stop, [stop])


SHOWN = {"type": "image", "image": "a.png"}
TALKS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    [{"role": "system", "content": ""}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}],
    [
        {"role": "system", "content": [{"type": "text", "text": " Say\n"}, {"type": "text", "text": " \u00e9.\n"}]},
        {"role": "user", "content": [{"type": "text", "text": " \n"}, SHOWN, SHOWN, {"type": "text", "text": " two "}]},
        {"role": "assistant", "content": " Two. "},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ],
    [
        {"role": "user", "content": [SHOWN, {"type": "text", "text": 'What\'s "it"?\n'}]},
        {"role": "assistant", "content": "A ramp."},
        {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "video", "video": "b.mp4"}]},
    ],
    [{"role": "assistant", "content": "Ask me."}, {"role": "user", "content": "Why?"}],
]
FORMLESS = ["blip2", "plain", "tokenizer", "v0_plain"]
FORMED = sorted({*templates} - {*FORMLESS})


def said_by(template: Any, messages: list[dict[str, Any]], opened: bool) -> str:
    """The text of a template's spans, visuals as <image> and <video>."""
    spans = [
        *template.to_spans(Conversation.from_messages(messages).messages),
        *(template.open_answer() if opened else []),
    ]
    return "".join(s.content if isinstance(s.content, str) else f"<{s.content.kind}>" for s in spans)


def require_same_text(tokenizer: Any, template: Any) -> None:
    """Of all conversations, with and without an answer to be written."""
    for messages, opened in product(TALKS, (True, False)):
        written = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opened)
        assert written == said_by(template, messages, opened)


@pytest.mark.parametrize("name", FORMED)
def test_exported_chat_templates_write_what_our_spans_say(make_tokenizer: Callable[..., Any], name: str) -> None:
    tokenizer, template = make_tokenizer(), templates.build(name)
    tokenizer.chat_template = to_jinja(template)
    require_same_text(tokenizer, template)


def test_a_chat_template_is_written_with_its_own_settings(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer()
    for spec in ({"name": "gemma_instruct", "system": "Be kind.\n"}, {"name": "llama_3", "system": " Be kind. "}):
        tokenizer.chat_template = to_jinja(template := templates.build(spec))
        require_same_text(tokenizer, template)


def test_an_exported_chat_template_refuses_a_late_system_message(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = to_jinja(templates.build("gemma_instruct"))
    with pytest.raises(TemplateError, match="can only be the first"):
        tokenizer.apply_chat_template([*TALKS[0], TALKS[1][0]], tokenize=False)


OWN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"


@pytest.fixture
def with_own_chat(make_tokenizer: Callable[..., Any]) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = OWN
    return tokenizer


def test_the_text_tokenizers_own_template_is_exported_for_contents_of_parts(
    make_tokenizer: Callable[..., Any], with_own_chat: Any
) -> None:
    template = templates.build("tokenizer", text_tokenizer=lambda: with_own_chat)
    exported = make_tokenizer()
    exported.chat_template = to_jinja(template)
    require_same_text(exported, template)


def test_a_model_with_its_tokenizers_own_chat_comes_back_with_it(
    ours: OneVision, with_own_chat: Any, tmp_path: Path
) -> None:
    with_own_chat.save_pretrained(tmp_path / "text")
    backbone = {**ours.spec.to_dict()["backbone"], "text_tokenizer": str(tmp_path / "text")}
    model = mmblocks.build({**ours.spec.to_dict(), "backbone": backbone, "template": "tokenizer"}, seed=1)
    back = import_hf(export_hf(model, tmp_path / "out"))
    assert back.spec.to_dict()["template"] == model.spec.to_dict()["template"]
    assert said_by(back.template, TALKS[4], True) == said_by(model.template, TALKS[4], True)
    assert to_jinja(back.template) == to_jinja(model.template)


def test_templates_without_a_form_say_so() -> None:
    assert [name for name in templates if to_jinja(templates.build(name)) is None] == FORMLESS


def test_every_exported_chat_template_is_recognised(tmp_path: Path) -> None:
    for name in FORMED:
        jinja = to_jinja(templates.build(name))
        (tmp_path / "chat_template.jinja").write_text(str(jinja), encoding="utf-8")
        assert to_jinja(templates.build(choose_chat_template(tmp_path, None).spec)) == jinja


@pytest.mark.parametrize(
    ("stored", "special", "family", "name", "why"),
    [
        ("", ["<|im_end|>"], "mistral", "qwen_2", "<|im_end|> is in the vocabulary"),
        ("", ["<|eot_id|>"], "llama", "llava_llama_3", "<|eot_id|> is in the vocabulary"),
        ("", ["<|im_end|>"], "llama", "chatml_direct", "of a Llama, as in LLaVA-v1.6-34b"),
        ("", ["<end_of_turn>"], "gemma", "gemma_instruct", "<end_of_turn> is in the vocabulary"),
        ("", ["</s>"], "llama", "vicuna_v1", "</s> is in the vocabulary"),
        ("", ["</s>"], "mistral", "mistral_instruct", "family mistral"),
        ("{{ '[INST] ' + messages[0].content | upper }}", ["</s>"], "llama", "mistral_instruct", "writes [INST]"),
        ("{{ '[INST] <<SYS>>' + messages[0].content | upper }}", ["</s>"], "llama", "llama_2", "writes <<SYS>>"),
        ("{{ '<|start_header_id|>' + messages[0].role }}", [], "llama", "llava_llama_3", "writes <|start_header_id|>"),
        ("{{ '<start_of_turn>' + messages[0].role }}", [], "gemma", "gemma_instruct", "writes <start_of_turn>"),
        ("{{ 'ASSISTANT:' }}", ["</s>"], "mistral", "vicuna_v1", "writes ASSISTANT:"),
        ("", [], "llama", "qwen_2", "default"),
    ],
)
def test_a_chat_template_that_is_unknown_or_cannot_be_followed_is_guessed_with_a_reason(
    make_tokenizer: Callable[..., Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    stored: str,
    special: list[str],
    family: str,
    name: str,
    why: str,
) -> None:
    tokenizer = make_tokenizer(special)
    tokenizer.chat_template = stored or None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": {"model_type": family}}))
    with caplog.at_level("INFO"):
        assert choose_chat_template(tmp_path, tokenizer).spec == name
    assert f"chat template: {name} (" in caplog.text
    assert why in caplog.text


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
        ({"template": "plain"}, "template: PlainCaption has no form"),
        ({"tokenizer": {"image": {"name": "anyres", "max_tiles": None}}}, "tokenizer.image: only 'anyres'"),
        ({"tokenizer": {"image": "pad"}}, "tokenizer.image: only 'anyres'"),
        ({"tokenizer": {"video": {"name": "frames", "newline": "grid"}}}, "tokenizer.video: only 'frames'"),
    ],
)
def test_each_thing_that_transformers_cannot_express_has_its_reason(
    ours: OneVision, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    plain = ours.spec.to_dict()
    tokenizer = {**plain["tokenizer"], **change.pop("tokenizer", {})} if "tokenizer" in change else plain["tokenizer"]
    model = mmblocks.build({**plain, **change, "tokenizer": tokenizer})
    with pytest.raises(ConfigError, match=re.escape(reason)):
        export_hf(model, tmp_path / "out")


EXPRESSIBLE = {
    ("llava_onevision", "image"): {"anyres", "anyres_max", "anyres_tiny"},
    ("llava_onevision", "multi_image"): {"pad_newline"},
    ("llava_onevision", "video"): {"frames", "frames_8"},
    ("llava", "image", "multi_image"): {"pad", "square"},
    ("llava_next", "image", "multi_image"): {"anyres", "anyres_next"},
    ("llava_next_video", "image", "multi_image"): {"anyres", "anyres_next"},
    ("llava_next_video", "video"): {"frames", "frames_plain", "frames_8_plain", "frames_16_plain"},
}
"""Tokenizers by family and scenarios, with the settings of `suited` where a family wants some."""
SHAPES = {
    "image": [VisualShape("image", Size(90, 250))],
    "multi_image": [VisualShape("image", Size(90, 250)), VisualShape("image", Size(120, 70))],
    "video": [VisualShape("video", Size(112, 112), num_frames=4)],
}


def suited(family: str, name: str) -> dict[str, Any]:
    """A tokenizer with what it must be given, and what the family wants where it is a bare component."""
    needed = {s.name: 224 for s in tokenizers.list_settings(name) if s.default is REQUIRED}
    wanted = {("llava_onevision", "anyres"): {"max_tiles": 4}, ("llava_next_video", "frames"): {"newline": "none"}}
    early = {"pool_at": "features"} if family == "llava_next_video" and tokenizers[name].builder is Frames else {}
    return {"name": name, **needed, **wanted.get((family, name), {}), **early}


def with_tokenizers(model: OneVision, changed: dict[str, Any]) -> OneVision | None:
    """The model with other visual tokenizers; None where they cannot work in it."""
    spec = replace(model.spec, tokenizer={**model.spec.tokenizer, **changed})
    router = build_router(spec, model.encoder, model.projector)
    if router.find_faults():
        return None
    return OneVision(model.encoder, model.projector, router, model.backbone, model.template, spec)


def tokens_of_transformers(processor: Any, shapes: list[VisualShape]) -> int:
    """How many visual tokens a processor writes."""
    if shapes[0].kind == "video":
        clips = [torch.zeros(s.num_frames, 3, *s.size, dtype=torch.uint8) for s in shapes]
        inputs, token = processor(text=["<video>"], videos=clips), "<video>"
    else:
        pictures = [Image.new("RGB", (s.size.width, s.size.height)) for s in shapes]
        inputs, token = processor(text=["<image>" * len(shapes)], images=[pictures]), "<image>"
    return list(inputs["input_ids"][0]).count(processor.tokenizer.convert_tokens_to_ids(token))


@pytest.mark.parametrize("case", EXPRESSIBLE)
def test_of_all_visual_tokenizers_an_export_keeps_the_counts_or_refuses(
    ours: OneVision, make_rig: Any, pil_processor: Any, tmp_path: Path, case: tuple[str, ...]
) -> None:
    family, *scenarios = case
    base = ours if family == "llava_onevision" else make_rig(family).ours
    kept = set()
    for name in tokenizers:
        model = with_tokenizers(base, dict.fromkeys(scenarios, suited(family, name)))
        if model is None:
            continue
        if reasons := layout_of(family).reasons_against_export(model):
            assert any(reason.startswith((f"tokenizer.{scenarios[0]}:", "pooling:")) for reason in reasons), name
            continue
        kept.add(name)
        folder = export_hf(model, tmp_path / name, family)
        for scenario in scenarios:
            plans = [routed.plan for routed in model.router.plan(SHAPES[scenario])]
            assert not any(plan.inline_texts for plan in plans)
            assert tokens_of_transformers(pil_processor(folder), SHAPES[scenario]) == sum(
                plan.num_tokens for plan in plans
            ), name
    assert kept == EXPRESSIBLE[case]  # type: ignore[index]


@pytest.mark.parametrize("change", [{"tell_times": "seconds"}, {"force": True}, {"tell_times": "steps", "force": True}])
@pytest.mark.parametrize("family", ["llava_onevision", "llava_next_video"])
def test_what_is_told_or_repeated_of_a_clip_is_refused(
    ours: OneVision, make_rig: Any, family: str, change: dict[str, Any]
) -> None:
    base = ours if family == "llava_onevision" else make_rig(family).ours
    model = with_tokenizers(base, {"video": {**base.spec.to_dict()["tokenizer"]["video"], **change}})
    assert model is not None
    reasons = layout_of(family).reasons_against_export(model)
    assert [reason.partition("=")[0] for reason in reasons] == [f"tokenizer.video: {setting}" for setting in change]


@pytest.mark.parametrize(
    ("family", "known"), [("llava_onevision", {"bilinear"}), ("llava_next_video", {"average", "max"})]
)
def test_of_all_poolings_an_export_takes_those_of_its_family(
    ours: OneVision, make_rig: Any, family: str, known: set[str]
) -> None:
    base = ours if family == "llava_onevision" else make_rig(family).ours
    taken = set()
    for name in poolings:
        pooling = {"name": name, **(poolings[name].tiny or {})}
        model = with_tokenizers(replaced_pooling(base, pooling), {})
        if model is not None and not (reasons := layout_of(family).reasons_against_export(model)):
            taken.add(name)
        elif model is not None:
            assert [reason.partition(":")[0] for reason in reasons] == ["pooling"]
    assert taken == known


def replaced_pooling(model: OneVision, pooling: dict[str, Any]) -> OneVision:
    spec = replace(model.spec, pooling=pooling)
    return OneVision(model.encoder, model.projector, model.router, model.backbone, model.template, spec)


def test_an_export_to_a_family_without_clips_warns_that_they_are_left_out(
    make_rig: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export_hf(make_rig("llava").ours, tmp_path / "out", "llava")
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warnings == ["transformers' llava takes no videos: tokenizer.video is left out."]


def test_a_vocabulary_without_room_for_the_visual_tokens_is_refused(
    ours: OneVision, make_tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    make_tokenizer(["<|im_start|>", "<|im_end|>"]).save_pretrained(tmp_path / "text")
    backbone = {**ours.spec.to_dict()["backbone"], "vocab_size": 259, "placeholder_id": 0}
    small = mmblocks.build({**ours.spec.to_dict(), "backbone": {**backbone, "text_tokenizer": str(tmp_path / "text")}})
    with pytest.raises(ConfigError, match="259 token embeddings leave no room for <image> and <video>") as refused:
        export_hf(small, tmp_path / "out")
    assert "mmblocks swap MODEL backbone.vocab_size=320 --out DIR" in str(refused.value)
    export_hf(swap(small, {"backbone.vocab_size": 320}).model, tmp_path / "out")


def test_visual_tokens_that_the_tokenizer_lacks_are_added_where_the_vocabulary_has_room(
    ours: OneVision, make_tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    make_tokenizer(["<|im_start|>", "<|im_end|>"]).save_pretrained(tmp_path / "text")
    backbone = {**ours.spec.to_dict()["backbone"], "placeholder_id": 0, "text_tokenizer": str(tmp_path / "text")}
    model = mmblocks.build({**ours.spec.to_dict(), "backbone": backbone}, seed=1).eval()
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
    assert model.spec.to_dict()["encoder"]["layer"] == -2
    assert model.router.image.rounding == "original"


def test_an_original_checkpoint_reaches_transformers_through_us(original: Path, theirs: Any, tmp_path: Path) -> None:
    export_hf(import_original(original), tmp_path / "out")
    model = import_original(original)
    require_same_logits(model, AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval())


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
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read .*truncated or damaged"):
        import_hf(copied)


def test_a_missing_shard_is_named(theirs: Any, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    with pytest.raises(CheckpointError, match=r"names files that are missing: model-00002-of-"):
        import_hf(tmp_path)


def test_a_config_that_is_missing_or_cut_is_refused(copied: Path) -> None:
    config = (copied / "config.json").read_text()
    (copied / "config.json").write_text(config[:50])
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read .*truncated or damaged"):
        import_hf(copied)
    (copied / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        import_hf(copied)


def test_pickled_weights_are_read_like_safetensors(copied: Path, ours: OneVision) -> None:
    torch.save(load_file(copied / WEIGHTS), copied / "pytorch_model.bin")
    (copied / WEIGHTS).unlink()
    assert same_state(import_hf(copied), ours)


def test_a_pickle_that_is_damaged_is_refused(copied: Path) -> None:
    (copied / WEIGHTS).rename(copied / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin cannot be read"):
        import_hf(copied)


# Loading ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["transformers", "mmblocks"])
def test_each_tensor_is_read_once_and_the_generator_stays(
    layout: str, checkpoint: Path, ours: OneVision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint if layout == "transformers" else mmblocks.save(ours, tmp_path / "ours")
    read: Counter[str] = Counter()
    read_one = StoredTensors.__getitem__

    def count(stored: StoredTensors, name: str) -> torch.Tensor:
        read[name] += 1
        return read_one(stored, name)

    monkeypatch.setattr(StoredTensors, "__getitem__", count)
    generator_before = torch.get_rng_state()
    model = mmblocks.load(folder)
    assert torch.equal(torch.get_rng_state(), generator_before)
    assert same_state(model, ours)
    assert len(read) == len(model.state_dict())
    assert set(read.values()) == {1}


def test_a_file_that_is_mapped_again_and_again_gives_the_same_values(
    checkpoint: Path, ours: OneVision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmblocks.tensors.MAPPED_BYTES", 0)
    assert same_state(mmblocks.load(checkpoint), ours)


def test_weights_are_left_empty_and_buffers_are_made(ours: OneVision) -> None:
    with leave_weights_empty():
        empty = build_from_spec(ours.spec)
    assert all(parameter.is_meta for parameter in empty.parameters())
    made, expected = dict(empty.named_buffers()), dict(ours.named_buffers())
    assert made.keys() == expected.keys()
    assert all(torch.equal(made[name], expected[name]) for name in made)


def test_weights_take_the_type_that_is_asked_for_and_rotary_frequencies_keep_theirs(checkpoint: Path) -> None:
    model = mmblocks.load(checkpoint, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.backbone.lm.model.rotary_emb.inv_freq.dtype == torch.float32
    assert not any(buffer.is_meta for buffer in model.buffers())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"projector_hidden_act": "relu"}, "projector_hidden_act is 'relu'"),
        ({"multimodal_projector_bias": False}, "multimodal_projector_bias is False"),
        ({"vision_feature_select_strategy": "default"}, "vision_feature_select_strategy is 'default'"),
        ({"vision_feature_layer": 9}, "layer=9 names no block; with 3 blocks choose 1 to 3"),
        ({"image_token_index": 400}, "the config puts <image> at id 400, beyond the 320 token embeddings"),
        ({"image_token_index": 258}, "its text tokenizer has <image> at id 259, its config at 258"),
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


def test_all_reasons_against_a_config_and_its_processor_are_listed_together(copied: Path) -> None:
    path = copied / "processor_config.json"
    config = json.loads(path.read_text())
    config["image_processor"]["resample"] = 2
    path.write_text(json.dumps(config))
    reconfigured(copied, projector_hidden_act="relu", vision_aspect_ratio="pad", video_token_index=999)
    with pytest.raises(ConfigError) as refused:
        import_hf(copied)
    for reason in ("projector_hidden_act", "vision_aspect_ratio", "resample=2", "<video> at id 999"):
        assert reason in str(refused.value)


def test_a_tokenizer_in_which_no_turn_can_end_is_refused(copied: Path, make_tokenizer: Callable[..., Any]) -> None:
    make_tokenizer(["<image>", "<video>"]).save_pretrained(copied)
    reconfigured(copied, image_token_index=257, video_token_index=258)
    with pytest.raises(ConfigError, match="none of the special tokens that end a turn"):
        import_hf(copied)


def test_widths_that_disagree_are_listed_before_a_value_is_read(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def narrow(tensors: Tensors) -> Tensors:
        return tensors | {"multi_modal_projector.linear_1.weight": torch.zeros(32, 8), "image_newline": torch.zeros(16)}

    rewritten(copied, narrow)

    def read(stored: Any, name: str) -> Tensor:
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr("mmblocks.tensors.StoredTensors.__getitem__", read)
    with pytest.raises(CheckpointError) as refused:
        import_hf(copied)
    assert str(refused.value).splitlines()[1:] == [
        "  shape: image_newline is (16,) in the file, (32,) in the model",
        "  shape: multi_modal_projector.linear_1.weight is (32, 8) in the file, (32, 16) in the model",
    ]


# The command --------------------------------------------------------------------------------------------------------


def test_each_kind_of_folder_is_recognised(checkpoint: Path, original: Path, ours: OneVision, tmp_path: Path) -> None:
    mmblocks.save(ours, tmp_path / "ours")
    assert [detect_layout(f) for f in (checkpoint, original, tmp_path / "ours")] == [
        "llava_onevision",
        "original",
        "mmblocks",
    ]


def test_an_unknown_kind_of_folder_is_refused_with_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    with pytest.raises(CheckpointError, match=r"holds a 'bert' model of \['BertModel'\]"):
        detect_layout(tmp_path)


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
    assert "LLaVA's own layout" in capsys.readouterr().out
    require_same_logits(mmblocks.load(tmp_path / "ours"), theirs)


def test_a_result_that_computes_something_else_is_not_kept(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import mmblocks.model.checkpoint as checkpoints

    save = checkpoints.save

    def save_wrongly(model: OneVision, folder: Path, **options: Any) -> Path:
        with torch.no_grad():
            model.learned_tokens["newline"].add_(1)
        return save(model, folder, **options)

    monkeypatch.setattr(checkpoints, "save", save_wrongly)
    assert cli.main(["convert", str(checkpoint), str(tmp_path / "out")]) == 1
    assert "nothing was kept" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_weights_widened_one_by_one_compute_what_a_model_in_float32_does(checkpoint: Path) -> None:
    half, wide = import_hf(checkpoint, dtype=torch.bfloat16), import_hf(checkpoint, dtype=torch.bfloat16).float()
    theirs = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()
    widened = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.bfloat16).float().eval()
    for probe in make_probes(wide):
        with Float32Mode():
            ours, own = compute_our_logits(half, probe), compute_transformers_logits(theirs, half, probe)
        assert torch.equal(ours, compute_our_logits(wide, probe))
        assert torch.equal(own, compute_transformers_logits(widened, wide, probe))
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_logits_of_some_rows_are_those_of_all(ours: OneVision, theirs: Any) -> None:
    probe = make_probes(ours)[0]
    rows = probe.select_rows(7)
    assert rows.tolist()[-1] == len(probe.rows) - 1
    assert torch.equal(compute_our_logits(ours, probe, rows), compute_our_logits(ours, probe)[rows])
    assert torch.equal(
        compute_transformers_logits(theirs, ours, probe, rows), compute_transformers_logits(theirs, ours, probe)[rows]
    )


def test_a_check_holds_one_model_at_a_time(checkpoint: Path, ours: OneVision, tmp_path: Path) -> None:
    """The model in memory has given up its weights where the others are run, one after the other."""
    model = import_hf(checkpoint)
    mmblocks.save(model, tmp_path / "ours")
    check_logits(model, layout_of("llava_onevision"), checkpoint, layout_of("mmblocks"), tmp_path / "ours", exact=True)
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_integers_in_a_checkpoint_do_not_make_it_float32(checkpoint: Path, tmp_path: Path) -> None:
    """Old ones hold position ids; read in float32, their weights would take twice the memory."""
    half = {name: tensor.bfloat16() for name, tensor in load_file(checkpoint / WEIGHTS).items()}
    save_file({**half, "position_ids": torch.arange(4)}, tmp_path / WEIGHTS)
    assert find_stored_dtype(tmp_path) == torch.bfloat16
    assert measure_gigabytes(tmp_path, torch.float32) == 2 * measure_gigabytes(tmp_path)


def test_convert_says_how_much_memory_it_takes(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["convert", str(checkpoint), str(tmp_path / "ours")]) == 0
    assert "memory   up to 1.0 GB for 0.0 GB of weights" in capsys.readouterr().out


def test_convert_never_writes_over_a_folder(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["convert", str(checkpoint), str(tmp_path)]) == 2
    assert "exists; name a folder that does not" in capsys.readouterr().err


def test_a_damaged_source_leaves_nothing_behind(copied: Path, tmp_path: Path) -> None:
    (copied / WEIGHTS).write_bytes((copied / WEIGHTS).read_bytes()[:500])
    assert cli.main(["convert", str(copied), str(tmp_path / "out")]) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]
