"""The chat template that a checkpoint came with: found where processors look, kept, and our prompts are its processor's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
from jinja2 import nodes
from PIL import Image
from transformers import AutoProcessor, LlamaConfig

import mmblocks
from mmblocks import cli
from mmblocks.components import templates
from mmblocks.conversation import Conversation
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import CheckpointError, MMBlocksError
from mmblocks.model.convert.transformers.export import export_hf
from mmblocks.model.convert.transformers.families import import_hf
from mmblocks.model.convert.transformers.jinja import FLATTENED, to_jinja
from mmblocks.templates.tokenizer_chat import TokenizerChat

FIRST = (  # as LLaVA's processors on the hub: images first, whatever was written first
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + END }}{% endfor %}"
)
WRITTEN = (  # images where they were written
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}<image>"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}"
)
EACH = "{% for message in messages %}"
CHATML_TURN = EACH + "<|im_start|>{{ message['role'] }}\n" + WRITTEN + "<|im_end|>\n{% endfor %}"
CHATML_OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
DEFAULT_SYSTEM = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nSAID<|im_end|>\n{% endif %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"

TAKEN = {
    "chatml": CHATML_TURN + CHATML_OPEN,
    "qwen_2": DEFAULT_SYSTEM.replace("SAID", "You are a helpful assistant.") + CHATML_TURN + CHATML_OPEN,
    "chatml_direct": (
        DEFAULT_SYSTEM.replace("SAID", "Answer the questions.").replace("<|im_end|>\n", "<|im_end|>")
        + CHATML_TURN.replace("<|im_end|>\n", "<|im_end|>")
        + CHATML_OPEN
    ),
    "gemma_instruct": (
        NO_SYSTEM
        + EACH
        + "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else 'user' }}\n"
        + WRITTEN
        + "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
}
"""Jinjas that write what a template of ours writes, by its name."""
KEPT = {
    "vicuna, images first": (
        "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
        + FIRST.replace("END", "' '")
        + "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
    "onevision, another header for earlier answers": (
        EACH
        + "{{ '<|im_start|>' + message['role'] + ' ' }}"
        + FIRST.replace("<image>\n", "<image>").replace("content['text'] + END", "'\n' + content['text']")
        + "{{ '<|im_end|>' }}{% endfor %}"
        + CHATML_OPEN
    ),
    "a system text of its own": DEFAULT_SYSTEM.replace("SAID", "You are Ada.") + CHATML_TURN + CHATML_OPEN,
    "mistral": (
        "{{ bos_token }}" + EACH + "{% if message['role'] == 'assistant' %} {{ message['content'][0]['text'] }}</s>"
        "{% elif message['role'] == 'user' %}[INST] " + WRITTEN + " [/INST]"
        "{% else %}{{ raise_exception('roles alternate') }}{% endif %}{% endfor %}"
    ),
    "phi, each text trimmed": (
        EACH + "<|{{ message['role'] }}|>\n"
        + WRITTEN.replace("content['text'] }}", "content['text'] | trim }}")
        + "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    "system texts are texts, others are lists": (
        EACH + "<|im_start|>{{ message['role'] }}\n{% if message['role'] == 'system' %}{{ message['content'] + '!' }}{% else %}"
        + WRITTEN + "{% endif %}<|im_end|>\n{% endfor %}" + CHATML_OPEN
    ),
    "gemma, trimmed": (
        "{{ bos_token }}" + EACH + "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
        + WRITTEN.replace("content['text'] }}", "content['text'] | trim }}")
        + "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
    "an opening with a space at its end": (
        EACH + "{{ message['role'] + '> ' }}" + WRITTEN + "</s>{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant> ' }}{% endif %}"
    ),
    "texts or lists": (
        EACH + "<|im_start|>{{ message['role'] }}|{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        + WRITTEN + "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant|{% endif %}"
    ),
    "marked for learning": CHATML_TURN.replace("}<|im_end|>", "}{% generation %}!{% endgeneration %}<|im_end|>") + CHATML_OPEN,
}  # fmt: skip
"""Jinjas that no template of ours writes, by what is special to them."""
PLACES = ("processor_config.json", "chat_template.json", "chat_template.jinja", "tokenizer_config.json")
SPECIAL = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "</s>", "<image>", "<video>"]


def picture(side: int = 150) -> Image.Image:
    return Image.fromarray(np.random.default_rng(side).integers(0, 256, (side, 260, 3), dtype=np.uint8))


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


def shown(side: int = 150) -> dict[str, Any]:
    return {"type": "image", "image": picture(side)}


USER = {"role": "user", "content": [text("Which shape is it?")]}
SHOWN = {"role": "user", "content": [shown(), text("What is this? ")]}
LATE = {"role": "user", "content": [text("What is this: "), shown(), text("and this? "), shown(90)]}
ANSWER = {"role": "assistant", "content": [text("A ramp.")]}
SYSTEM = {"role": "system", "content": [text("Be brief.")]}
TALKS: dict[str, list[dict[str, Any]]] = {
    "text": [USER],
    "an image": [SHOWN],
    "images between words": [LATE],
    "several turns": [SHOWN, ANSWER, USER, ANSWER, LATE],
    "white space": [{"role": "user", "content": [text(" \n See: "), shown(), text("\n  ")]}],
    "a system text": [SYSTEM, USER],
    "a system text and an image": [SYSTEM, SHOWN, ANSWER, USER],
}


def stored(folder: Path, place: str, jinja: str) -> Path:
    """The folder with a chat template in one of the places where it may stand."""
    path = folder / place
    if place.endswith(".jinja"):
        path.write_text(jinja, encoding="utf-8")
    else:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        path.write_text(json.dumps({**found, "chat_template": jinja}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def bare(make_theirs: Any, their_processor: Any, make_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without a chat template, with the special tokens of many."""
    folder = tmp_path_factory.mktemp("bare")
    tokenizer = make_tokenizer(SPECIAL)
    ids = {f"{kind}_token_index": tokenizer.convert_tokens_to_ids(f"<{kind}>") for kind in ("image", "video")}
    make_theirs(**ids).save_pretrained(folder)
    their_processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def copied(bare: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bare, tmp_path / "copy"))


def prompt_of(processor: Any, talk: list[dict[str, Any]]) -> list[int]:
    """A prompt's ids by transformers, in which the rows of an image are its image token."""
    if "message['content'] + '!'" in (processor.chat_template or ""):
        talk = [{**m, "content": m["content"][0]["text"]} if m["role"] == "system" else m for m in talk]
    return processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=True, return_dict=True)[
        "input_ids"
    ][0]


def our_prompt(model: Any, talk: list[dict[str, Any]]) -> list[int]:
    encoded = Processor.from_model(model).encode_conversation_prompt(Conversation.from_messages(talk))
    ids = encoded.input_ids.clone()
    ids[encoded.visual_positions] = model.backbone.text_tokenizer.convert_tokens_to_ids("<image>")
    return ids.tolist()


def require_same_prompts(model: Any, processor: Any) -> int:
    """Of all talks; one that the processor's template refuses is refused here too. The number that both wrote."""
    written = 0
    for talk in TALKS.values():
        try:
            wanted = prompt_of(processor, talk)
        except Exception:
            if isinstance(model.template, TokenizerChat):
                with pytest.raises(MMBlocksError, match="refuses this conversation"):
                    our_prompt(model, talk)
            continue
        assert our_prompt(model, talk) == wanted
        written += 1
    return written


@pytest.mark.parametrize("place", PLACES[:3])
@pytest.mark.parametrize("name", TAKEN)
def test_where_one_of_ours_writes_the_same_prompts_it_is_taken(copied: Path, place: str, name: str) -> None:
    model = import_hf(stored(copied, place, TAKEN[name]))
    assert model.spec.template == name
    assert require_same_prompts(model, AutoProcessor.from_pretrained(copied)) >= 4


@pytest.mark.parametrize("place", PLACES[:3])
@pytest.mark.parametrize("case", KEPT)
def test_any_other_is_kept_and_prompts_are_its_processors(copied: Path, place: str, case: str, tmp_path: Path) -> None:
    model = import_hf(stored(copied, place, KEPT[case]))
    assert model.spec.template == "tokenizer"
    assert require_same_prompts(model, AutoProcessor.from_pretrained(copied)) >= 4


def test_a_text_tokenizers_own_template_is_taken_where_no_processor_has_one(copied: Path) -> None:
    """Its contents are texts, in which an image stands where it was written."""
    jinja = EACH + "<|{{ message['role'] }}|>{{ message['content'] }}<|im_end|>{% endfor %}<|assistant|>"
    jinja = jinja.replace("<|assistant|>", "{% if add_generation_prompt %}<|assistant|>{% endif %}")
    model = import_hf(stored(copied, "tokenizer_config.json", jinja))
    assert model.spec.template == "tokenizer"
    tokenizer = model.backbone.text_tokenizer
    assert our_prompt(model, [USER]) == tokenizer("<|user|>Which shape is it?<|im_end|><|assistant|>")["input_ids"]
    (first, *_), rest = tokenizer("<|user|>")["input_ids"], our_prompt(model, [SHOWN])
    assert rest[0] == first
    assert tokenizer.decode(rest).endswith("<image>What is this? <|im_end|><|assistant|>")


def test_the_places_are_read_in_the_order_of_transformers(copied: Path) -> None:
    """processor_config.json, chat_template.json, chat_template.jinja, and then the text tokenizer's own."""
    for number, place in reversed([*enumerate(PLACES)]):
        stored(copied, place, KEPT["a system text of its own"].replace("Ada", f"Number {number}"))
        model, processor = import_hf(copied), AutoProcessor.from_pretrained(copied)
        ids = our_prompt(model, [USER])
        assert f"You are Number {number}." in processor.tokenizer.decode(ids)
        if processor.chat_template is not None:
            assert ids == prompt_of(processor, [USER])


def test_of_several_templates_the_default_is_taken(copied: Path) -> None:
    (copied / "additional_chat_templates").mkdir()
    (copied / "additional_chat_templates" / "tool_use.jinja").write_text("{{ 'tools' }}")
    stored(copied, "chat_template.jinja", KEPT["a system text of its own"])
    model, processor = import_hf(copied), AutoProcessor.from_pretrained(copied)
    assert isinstance(processor.chat_template, dict)
    assert our_prompt(model, [SHOWN]) == prompt_of(processor, [SHOWN])


@pytest.mark.parametrize("case", KEPT)
def test_what_was_kept_is_saved_loaded_and_exported(copied: Path, case: str, tmp_path: Path) -> None:
    model = import_hf(stored(copied, "chat_template.json", KEPT[case]))
    loaded = mmblocks.load(mmblocks.save(model, tmp_path / "ours"))
    assert require_same_prompts(loaded, AutoProcessor.from_pretrained(copied)) >= 4
    exported = export_hf(model, tmp_path / "theirs")
    assert require_same_prompts(model, AutoProcessor.from_pretrained(exported)) >= 4
    assert to_jinja(import_hf(exported).template) == KEPT[case]


def test_a_broken_template_is_told_and_replaced_by_a_guess(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        model = import_hf(stored(copied, "chat_template.json", "{% for message in messages %}<|im_start|>{{ message"))
    assert model.spec.template == "qwen_2"
    assert "a guess: the stored chat template writes <|im_start|>; chat_template.json cannot be followed" in caplog.text


def test_a_cut_chat_template_json_is_named(copied: Path) -> None:
    (copied / "chat_template.json").write_text('{"chat_template": "{% for')
    with pytest.raises(CheckpointError, match=r"chat_template\.json cannot be read"):
        import_hf(copied)


# Tokenizers that write a space in front of texts ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def around_llama(make_rig: Any, beginning_tokenizers: dict[str, Callable[..., Any]]) -> Path:
    """LLaVA 1.5 of the hub in small: CLIP and Llama, with Llama's tokenizer."""
    tokenizer = beginning_tokenizers["llama"](["<image>"])
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    return make_rig("llava", words=tokenizer, text_config=text, image_token_index=image).folder


@pytest.mark.parametrize("case", [case for case in KEPT if "another header" not in case])
def test_words_behind_a_picture_are_tokenised_as_transformers_does(
    around_llama: Path, tmp_path: Path, case: str
) -> None:
    copied = Path(shutil.copytree(around_llama, tmp_path / "copy"))
    model = import_hf(stored(copied, "chat_template.json", KEPT[case]))
    assert model.spec.template == "tokenizer"
    assert require_same_prompts(model, AutoProcessor.from_pretrained(copied)) >= 4


# What convert says and does ------------------------------------------------------------------------------------------


def converted(source: Path, target: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str, str]:
    status = cli.main(["convert", str(source), str(target), *options])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_convert_says_which_template_it_took_and_that_prompts_are_the_same(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said, _ = converted(stored(copied, "chat_template.json", TAKEN["qwen_2"]), tmp_path / "one", capsys)
    assert status == 0
    assert "template qwen_2 (it writes the prompts of chat_template.json, 8 of 8 tried)" in said
    assert "prompts  8 of 8 are those of the source" in said
    status, said, _ = converted(
        stored(copied, "chat_template.json", KEPT["a system text of its own"]), tmp_path / "two", capsys
    )
    assert status == 0
    assert "template tokenizer (kept as it is in chat_template.json" in said
    assert "prompts  8 of 8 are those of the result" in said
    assert require_same_prompts(mmblocks.load(tmp_path / "two"), AutoProcessor.from_pretrained(copied)) == len(TALKS)


def test_convert_keeps_nothing_whose_prompts_are_others(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shouted = TAKEN["chatml"].replace("content['text'] }}", "content['text'] | upper }}")
    status, said, failed = converted(stored(copied, "chat_template.json", shouted), tmp_path / "out", capsys)
    assert status == 1
    assert "template qwen_2 (a guess: the stored chat template writes <|im_start|>; chat_template.json" in said
    assert "prompts  0 of 8 are those of the source" in said
    assert "nothing was kept. Choose a chat template by name with --template" in failed
    assert not (tmp_path / "out").exists()


def test_a_template_that_is_asked_for_is_taken_whatever_is_stored(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(copied, "chat_template.json", TAKEN["qwen_2"])
    status, said, _ = converted(copied, tmp_path / "out", capsys, "--template", "vicuna_v1")
    assert status == 0
    assert "template vicuna_v1 (as requested)" in said
    assert "prompts  0 of 8 are those of the source" in said
    assert mmblocks.load(tmp_path / "out").spec.template["name"] == "vicuna_v1"
    status, said, _ = converted(tmp_path / "out", tmp_path / "back", capsys, "--template", "chatml")
    assert status == 0
    assert require_same_prompts(import_hf(tmp_path / "back"), AutoProcessor.from_pretrained(tmp_path / "back")) == len(
        TALKS
    )
    assert import_hf(tmp_path / "back").spec.template == "chatml"


def test_a_template_that_is_not_known_is_refused_by_name(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, failed = converted(copied, tmp_path / "out", capsys, "--template", "vicunna_v1")
    assert status == 2
    assert "vicunna_v1" in failed
    assert "vicuna_v1" in failed


def test_without_a_stored_template_the_guess_is_said(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said, _ = converted(copied, tmp_path / "out", capsys)
    assert status == 0
    assert "template qwen_2 (a guess: no chat template is stored, <|im_end|> is in the vocabulary)" in said


def test_what_an_export_cannot_prompt_alike_is_said(
    around_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LLaVA's code tokenises words behind an image as a text of their own, transformers' processor does not."""
    model = import_hf(around_llama)
    assert model.spec.template == "vicuna_v1"
    mmblocks.save(model, tmp_path / "ours")
    status, said, _ = converted(tmp_path / "ours", tmp_path / "out", capsys)
    assert status == 0
    assert "are those of the result\ndiffers  " in said


# Servers ------------------------------------------------------------------------------------------------------------


def has_content_loop(jinja: str) -> bool:
    """Whether a template has a loop over `message['content']` for a `message` of a loop over the messages.

    vLLM and SGLang look for it in the syntax tree: only then do images stay where they are in a message.
    """
    tree = jinja2.Environment().parse(jinja)
    messages = {"messages"}
    for assigned in tree.find_all(nodes.Assign):
        source = assigned.node.node if isinstance(assigned.node, nodes.Getitem) else assigned.node
        if isinstance(source, nodes.Name) and source.name in messages and isinstance(assigned.target, nodes.Name):
            messages.add(assigned.target.name)
    loops = list(tree.find_all(nodes.For))
    names = {loop.target.name for loop in loops if isinstance(loop.iter, nodes.Name) and loop.iter.name in messages}
    return any(
        isinstance(loop.iter, nodes.Getitem)
        and isinstance(loop.iter.node, nodes.Name)
        and loop.iter.node.name in names
        and loop.iter.arg == nodes.Const("content")
        for loop in loops
    )


@pytest.mark.parametrize("name", [name for name in templates if name not in ("tokenizer", "plain", "blip2")])
def test_servers_see_that_a_message_is_a_list_of_parts(name: str) -> None:
    jinja = to_jinja(templates.build(name))
    assert jinja is None or has_content_loop(jinja)


def test_a_flattened_template_shows_servers_its_parts_too() -> None:
    assert has_content_loop(FLATTENED + "{{ messages[0]['content'] }}")


def test_a_loop_in_a_macro_is_not_seen() -> None:
    hidden = "{%- macro f(content) -%}{%- for p in content -%}{{ p }}{%- endfor -%}{%- endmacro -%}"
    assert not has_content_loop(hidden + "{%- for message in messages -%}{{ f(message['content']) }}{%- endfor -%}")
