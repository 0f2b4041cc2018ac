"""A model on disk is a folder of components: whole, strict, readable."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import mmblocks
from mmblocks.errors import CheckpointError


def test_what_is_saved_comes_back_bit_for_bit(tiny_model, tmp_path):
    mmblocks.save(tiny_model, tmp_path / "m")
    back = mmblocks.load(tmp_path / "m")
    want, got = tiny_model.state_dict(), back.state_dict()
    assert want.keys() == got.keys()
    assert all(torch.equal(want[k], got[k]) for k in want)
    assert back.spec.plain() == tiny_model.spec.plain()


def test_the_folder_holds_one_folder_per_component_and_no_pickle(tiny_model, tmp_path):
    mmblocks.save(tiny_model, tmp_path / "m")
    files = {str(p.relative_to(tmp_path / "m")) for p in (tmp_path / "m").rglob("*") if p.is_file()}
    assert {
        "config.json",
        "encoder/model.safetensors",
        "projector/model.safetensors",
        "marks/model.safetensors",
    } <= files
    assert {f.rpartition(".")[2] for f in files} <= {"json", "safetensors", "jinja"}
    assert "_target_" not in (tmp_path / "m" / "config.json").read_text()


def test_weights_may_be_stored_smaller(tiny_model, tmp_path):
    mmblocks.save(tiny_model, tmp_path / "m", dtype=torch.float16)
    assert load_file(tmp_path / "m/projector/model.safetensors")["head.weight"].dtype == torch.float16
    back = mmblocks.load(tmp_path / "m")
    want = tiny_model.projector.head.weight.half().float()
    assert torch.equal(back.projector.head.weight, want)
    assert torch.equal(back.backbone.lm.lm_head.weight, back.backbone.lm.model.embed_tokens.weight)


def test_a_missing_and_an_extra_key_are_both_named(tiny_model, tmp_path):
    mmblocks.save(tiny_model, tmp_path / "m")
    file = tmp_path / "m/projector/model.safetensors"
    tensors = load_file(file)
    tensors["head.wieght"] = tensors.pop("head.weight")
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"(?s)missing: head.weight \(32, 32\).*extra: head.wieght \(32, 32\)"):
        mmblocks.load(tmp_path / "m")


def test_a_missing_language_model_key_is_named(tiny_model, tmp_path):
    mmblocks.save(tiny_model, tmp_path / "m")
    file = tmp_path / "m/backbone/model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing.*model.layers.1.mlp.up_proj.weight"):
        mmblocks.load(tmp_path / "m")


@pytest.mark.parametrize("part", ["encoder", "projector", "marks", "backbone"])
def test_a_cut_file_is_named_and_nothing_is_loaded(tiny_model, tmp_path, part):
    mmblocks.save(tiny_model, tmp_path / "m")
    file = tmp_path / "m" / part / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=f"{part}.*cut or damaged"):
        mmblocks.load(tmp_path / "m")


@pytest.mark.parametrize("part", ["encoder", "projector", "marks", "backbone"])
def test_a_missing_file_is_named(tiny_model, tmp_path, part):
    mmblocks.save(tiny_model, tmp_path / "m")
    (tmp_path / "m" / part / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=part):
        mmblocks.load(tmp_path / "m")


def test_a_folder_that_is_no_model_says_so(tmp_path):
    with pytest.raises(CheckpointError, match=r"not a model saved by mmblocks"):
        mmblocks.load(tmp_path)


def test_a_cut_config_says_so(tiny_model, tmp_path):
    mmblocks.save(tiny_model, tmp_path / "m")
    config = tmp_path / "m/config.json"
    config.write_text(config.read_text()[:50])
    with pytest.raises(CheckpointError, match=r"config.json cannot be read"):
        mmblocks.load(tmp_path / "m")


def test_a_failed_save_leaves_the_older_model_whole(tiny_model, tmp_path, monkeypatch):
    mmblocks.save(tiny_model, tmp_path / "m")
    before = (tmp_path / "m/projector/model.safetensors").read_bytes()

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(type(tiny_model.backbone), "save_to", fails)
    with pytest.raises(OSError, match="disk full"):
        mmblocks.save(tiny_model, tmp_path / "m")
    assert (tmp_path / "m/projector/model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_saved_model_needs_no_hub(tiny_model, tmp_path):
    mmblocks.save(tiny_model, tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    config["model"]["backbone"]["text_tokenizer"] = "someone/not-to-be-asked"
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    assert mmblocks.load(tmp_path / "m").backbone.text_tokenizer.encode("red") != []
