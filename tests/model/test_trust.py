"""No code of a checkpoint is run: "y" is typed at every door, beside a Python file that would leave a witness."""

import ast
import io
import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import mmblocks
from mmblocks.assets import tiny_model
from mmblocks.backbones.text_tokenizer import read_text_tokenizer
from mmblocks.cli import main
from mmblocks.components import backbones, encoders, projectors
from mmblocks.errors import MMBlocksError
from mmblocks.model.checks.limits import words_of
from mmblocks.model.convert import detect, door_of
from mmblocks.pretrained import read_processor
from mmblocks.shapes import Size

SOURCE = Path(mmblocks.__file__).parent
CODE = """
import pathlib
pathlib.Path({witness!r}).write_text("ran")
class Config: pass
class Model: pass
class Tokenizer: pass
def generate(*args, **kwargs): pass
"""
MAPPED = {
    "AutoConfig": "evil.Config",
    "AutoModel": "evil.Model",
    "AutoModelForCausalLM": "evil.Model",
    "AutoModelForImageTextToText": "evil.Model",
    "AutoProcessor": "evil.Config",
    "AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"],
    "AutoImageProcessor": "evil.Config",
}


@pytest.fixture
def witness(tmp_path, monkeypatch):
    """Where a run of foreign code would show, with "y" typed at every question."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 50))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "witness"


def poisoned(folder, witness, family):
    """Have every settings file of a folder ask for code; `family` None keeps the families that transformers has."""
    for file in folder.rglob("*.json"):
        raw = json.loads(file.read_text())
        if file.name == "tokenizer.json" or not isinstance(raw, dict):
            continue
        raw["auto_map"] = MAPPED
        for nested in ("text_config", "vision_config"):
            if isinstance(raw.get(nested), dict):
                raw[nested]["auto_map"] = MAPPED
        if family and "model_type" in raw:
            raw["model_type"] = family
        if family and file.name == "tokenizer_config.json":
            raw["tokenizer_class"] = "EvilTokenizer"
        file.write_text(json.dumps(raw))
    for place in {folder, *(file.parent for file in folder.rglob("*.json"))}:
        (place / "evil.py").write_text(CODE.format(witness=str(witness)))
        (place / "custom_generate").mkdir(exist_ok=True)
        (place / "custom_generate" / "generate.py").write_text(CODE.format(witness=str(witness)))
    return folder


def saved(tmp_path, witness, family):
    return poisoned(Path(shutil.copytree(tiny_model(), tmp_path / "m")), witness, family)


DOORS = {
    "load": lambda m: mmblocks.load(m),
    "chat": lambda m: main(["chat", "--model", str(m), "--ask", "what ?", "--max-new-tokens", "1"]),
    "convert": lambda m: main(["convert", str(m), str(m.parent / "out")]),
    "convert a foreign layout": lambda m: door_of(detect(m / "backbone")).import_(m / "backbone", dtype=None),
    "build": lambda m: mmblocks.build(
        encoder="tiny_conv", backbone={"name": "causal_lm", "checkpoint": str(m / "backbone")}
    ),
    "pretrained weights": lambda m: backbones.build(
        {"name": "causal_lm", "checkpoint": str(m / "backbone")}
    ).load_pretrained(),
    "text tokenizer": lambda m: read_text_tokenizer(str(m / "backbone")),
    "words": lambda m: words_of(str(m / "backbone")),
    "processor": lambda m: read_processor(m / "backbone"),
    "encoder": lambda m: encoders.build(
        {
            "name": "hf_vision",
            "checkpoint": str(m / "backbone"),
            "image_px": 32,
            "grid": [2, 2],
            "prefix_tokens": 0,
            "pixel_mean": [0.5] * 3,
            "pixel_std": [0.5] * 3,
        }
    ),
    "projector": lambda m: (
        projectors.build(
            {"name": "instruct_qformer", "text_tokenizer": str(m / "backbone")}, in_dim=16, out_dim=16, grid=Size(2, 2)
        ).text_tokenizer
    ),
}


@pytest.mark.parametrize("family", [None, "evil"])
@pytest.mark.parametrize("door", DOORS)
def test_typing_yes_at_a_door_runs_no_code_of_a_checkpoint(door, family, tmp_path, witness, capsys):
    folder = saved(tmp_path, witness, family)
    with suppress(MMBlocksError):
        DOORS[door](folder)
    assert not witness.exists()
    assert sys.stdin.tell() == 0  # nobody asked
    said = capsys.readouterr()
    assert "[y/N]" not in said.out + said.err


def test_a_family_that_transformers_has_is_read_whatever_its_auto_map_says(tmp_path, witness):
    loaded = mmblocks.load(saved(tmp_path, witness, None))
    assert loaded.backbone.config.model_type == "qwen2"
    assert loaded.backbone.text_tokenizer("a")["input_ids"]


def test_a_checkpoint_that_needs_its_own_code_is_refused_with_the_cure(tmp_path, witness):
    folder = saved(tmp_path, witness, "evil") / "backbone"
    with pytest.raises(
        MMBlocksError, match=r"(?s)backbone needs Python code .*runs no code of a checkpoint.*--upgrade"
    ):
        backbones.build({"name": "causal_lm", "checkpoint": str(folder)})


def test_a_config_that_names_a_kernel_of_the_hub_is_refused(tmp_path):
    folder = Path(shutil.copytree(tiny_model(), tmp_path / "m"))
    file = folder / "backbone" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"attn_implementation": "someone/kernel"}))
    with pytest.raises(MMBlocksError, match=r"backbone/config.json: attn_implementation='someone/kernel' names code"):
        mmblocks.load(folder)


def calls(tree):
    """Names of what is called in a source, by the last name of each."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def test_no_call_goes_past_the_door():
    doors = {"from_pretrained", "from_config", "get_config_dict", "get_image_processor_dict", "pipeline"}
    past = {
        str(file.relative_to(SOURCE))
        for file in SOURCE.rglob("*.py")
        if doors & set(calls(ast.parse(file.read_text(encoding="utf-8"))))
    }
    assert past == {"pretrained.py"}


def test_pickles_are_read_without_code_and_recipes_name_no_code():
    text = {file: file.read_text(encoding="utf-8") for file in SOURCE.rglob("*.py")}
    reads = [line for body in text.values() for line in body.splitlines() if "torch.load(" in line]
    assert all("weights_only=True" in line for line in reads)
    assert not any("hydra.utils" in body or "instantiate(" in body for body in text.values())
    assert not any("trust_remote_code=True" in body for body in text.values())
