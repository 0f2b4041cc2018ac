"""Whatever stands in the files of a model's folder: it is a `CheckpointError` that names the folder, or the right model."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch

import mmblocks
from mmblocks.assets import find_tiny_model
from mmblocks.batch import Packing
from mmblocks.errors import CheckpointError

FILES = sorted(str(p.relative_to(find_tiny_model())) for p in find_tiny_model().rglob("*") if p.is_file())
SETTINGS = [name for name in FILES if name.endswith("config.json")]
HUGE, OUTSIDE = 10**12, "../../etc"
RAW = {
    "missing": None,
    "empty": b"",
    "not UTF-8": b"\xff\xfe\x00\xd8",
    "[]": b"[]",
    "null": b"null",
    "a text": b'"x"',
    "{}": b"{}",
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 3000 + b"1" + b"}" * 3000,
    "a long number": b'{"a": ' + b"9" * 5000 + b"}",
}
STILL_WHOLE = {  # files that a model may lack, or that say nothing
    "backbone/generation_config.json": ("missing", "{}"),
    "backbone/tokenizer_config.json": ("missing", "{}"),
    "backbone/tokenizer.json": (),
}


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(find_tiny_model(), tmp_path / "m"))


def logits(folder):
    """What a model answers to eight tokens that its own tokenizer writes."""
    model = mmblocks.load(folder)
    ids = torch.tensor(model.backbone.text_tokenizer("what is it ? a red one .")["input_ids"])
    packing = Packing.from_lengths([len(ids)])
    with torch.no_grad():
        return model.backbone.compute_logits(
            model.backbone.compute_hidden_states(model.backbone.embed_tokens(ids), torch.arange(len(ids)), packing)
        )


@pytest.fixture(scope="module")
def right():
    return logits(find_tiny_model())


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [*RAW, "cut in half", "a folder"])
def test_a_damaged_file_is_named(folder, right, name, damage):
    file = folder / name
    content = file.read_bytes()
    file.unlink()
    if damage == "a folder":
        file.mkdir()
    elif (raw := content[: len(content) // 2] if damage == "cut in half" else RAW[damage]) is not None:
        file.write_bytes(raw)
    if damage in STILL_WHOLE.get(name, ()):
        assert torch.equal(logits(folder), right)
        return
    with pytest.raises(CheckpointError, match=str(folder)):
        logits(folder)


def keys_of(name):
    def walk(value, path):
        for key, inner in value.items():
            yield (*path, key)
            if isinstance(inner, dict):
                yield from walk(inner, (*path, key))

    return list(walk(json.loads((find_tiny_model() / name).read_text()), ()))


@pytest.mark.parametrize("key", keys_of("config.json"), ids=".".join)
def test_a_setting_of_the_wrong_kind_is_named_or_harmless(folder, right, key):
    whole = json.loads((folder / "config.json").read_text())
    for value in ([], -1, HUGE, {}, None):
        refused_or_right(folder, right, "config.json", whole, key, value)


@pytest.mark.parametrize("name", ["backbone/config.json", "backbone/tokenizer_config.json"])
def test_a_setting_of_a_part_that_says_nothing_is_named_or_harmless(folder, right, name):
    whole = json.loads((folder / name).read_text())
    for key in keys_of(name):
        refused_or_right(folder, right, name, whole, key, None)


def refused_or_right(folder, right, name, whole, key, value):
    changed = json.loads(json.dumps(whole))
    inner = changed
    for part in key[:-1]:
        inner = inner[part]
    inner[key[-1]] = value
    (folder / name).write_text(json.dumps(changed))
    try:
        found = logits(folder)
    except CheckpointError as fault:
        named = str(folder) in str(fault)
    else:
        named = torch.equal(found, right)
    assert named, (key, value)


@pytest.mark.parametrize("value", [OUTSIDE, "/etc/passwd", "a/../../b", "~/x"])
@pytest.mark.parametrize("setting", ["checkpoint", "text_tokenizer"])
def test_a_place_outside_of_the_folder_is_refused(folder, setting, value):
    config = json.loads((folder / "config.json").read_text())
    config["model"]["backbone"][setting] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"config\.json: {setting}='.*' is outside of the model's folder"):
        mmblocks.load(folder)


def test_a_number_of_blocks_that_would_never_end_is_refused(folder):
    for name, key in (
        ("config.json", ("model", "encoder", "blocks")),
        ("backbone/config.json", ("num_hidden_layers",)),
    ):
        whole = changed = json.loads((folder / name).read_text())
        for part in key[:-1]:
            changed = changed[part]
        before, changed[key[-1]] = changed[key[-1]], HUGE
        (folder / name).write_text(json.dumps(whole))
        with pytest.raises(CheckpointError, match=str(folder)):
            mmblocks.load(folder)
        changed[key[-1]] = before
        (folder / name).write_text(json.dumps(whole))


def with_header(file, change):
    content = file.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = change(json.loads(content[8 : 8 + size]))
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


HEADERS = {
    "a type that no torch has": lambda h: {k: {**v, "dtype": "F7"} if k != "__metadata__" else v for k, v in h.items()},
    "whole numbers": lambda h: {k: {**v, "dtype": "I32"} if k != "__metadata__" else v for k, v in h.items()},
    "another shape": lambda h: {k: {**v, "shape": [2**60]} if k != "__metadata__" else v for k, v in h.items()},
    "other names": lambda h: {f"x.{k}": v for k, v in h.items()},
    "no json": lambda h: b"\xff" * 64,
}


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".safetensors")])
@pytest.mark.parametrize("header", HEADERS)
def test_a_weights_file_with_a_strange_header_is_named(folder, name, header):
    with_header(folder / name, HEADERS[header])
    with pytest.raises(CheckpointError, match=str(folder)):
        mmblocks.load(folder)


@pytest.mark.parametrize("length", [0, 2**40, 2**63, 2**64 - 1])
def test_a_weights_file_whose_header_has_an_impossible_length_is_named(folder, length):
    for name in [name for name in FILES if name.endswith(".safetensors")]:
        file = folder / name
        content = file.read_bytes()
        file.write_bytes(struct.pack("<Q", length) + content[8:])
        with pytest.raises(CheckpointError, match=str(folder)):
            mmblocks.load(folder)
        file.write_bytes(content)


def test_a_language_model_whose_index_names_files_elsewhere_is_refused(folder):
    (folder / "backbone" / "model.safetensors").rename(folder / "away.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../away.safetensors"}}
    (folder / "backbone" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"index\.json names files outside of its folder: \.\./away"):
        mmblocks.load(folder)
