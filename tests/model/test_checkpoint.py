"""A model on disk is a folder of components: whole, strict, readable."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import mmblocks
from mmblocks.components import projectors
from mmblocks.conversation import Conversation
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import CheckpointError, ConfigError
from mmblocks.model.generate import Decoding, generate

PICTURE = Image.effect_noise((60, 40), 90).convert("RGB")


def test_what_is_saved_comes_back_bit_for_bit(tiny_model, tmp_path):
    mmblocks.save(tiny_model, tmp_path / "m")
    back = mmblocks.load(tmp_path / "m")
    want, got = tiny_model.state_dict(), back.state_dict()
    assert want.keys() == got.keys()
    assert all(torch.equal(want[k], got[k]) for k in want)
    assert back.spec.to_dict() == tiny_model.spec.to_dict()


def test_the_folder_holds_one_folder_per_component_and_no_pickle(tiny_model, tmp_path):
    mmblocks.save(tiny_model, tmp_path / "m")
    files = {str(p.relative_to(tmp_path / "m")) for p in (tmp_path / "m").rglob("*") if p.is_file()}
    assert {
        "config.json",
        "encoder/model.safetensors",
        "projector/model.safetensors",
        "learned_tokens/model.safetensors",
    } <= files
    assert {f.rpartition(".")[2] for f in files} <= {"json", "safetensors", "jinja", "SHA256SUMS"}
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


@pytest.mark.parametrize("part", ["encoder", "projector", "learned_tokens", "backbone"])
def test_a_cut_file_is_named_and_nothing_is_loaded(tiny_model, tmp_path, part):
    mmblocks.save(tiny_model, tmp_path / "m")
    file = tmp_path / "m" / part / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=f"{part}.*truncated or damaged"):
        mmblocks.load(tmp_path / "m")


@pytest.mark.parametrize("part", ["encoder", "projector", "learned_tokens", "backbone"])
def test_a_missing_file_is_named(tiny_model, tmp_path, part):
    mmblocks.save(tiny_model, tmp_path / "m")
    (tmp_path / "m" / part / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=part):
        mmblocks.load(tmp_path / "m")


def test_a_folder_that_is_no_model_says_so(tmp_path):
    with pytest.raises(CheckpointError, match=r"is not a model: it has no config.json"):
        mmblocks.load(tmp_path)


def test_a_model_of_an_earlier_version_says_so(tiny_model, tmp_path):
    folder = mmblocks.save(tiny_model, tmp_path / "m")
    (folder / "learned_tokens").rename(folder / "marks")
    with pytest.raises(CheckpointError, match=r"saved by an earlier mmblocks.*train or convert the model again"):
        mmblocks.load(folder)


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
    (tmp_path / "m/SHA256SUMS").unlink()  # it was changed on purpose
    assert mmblocks.load(tmp_path / "m").backbone.text_tokenizer.encode("red") != []


# Words of the projector -------------------------------------------------------------------------------------------------


@pytest.fixture
def asking(tiny_spec, tmp_path):
    """A model whose projector reads the question with a text tokenizer from a folder of this machine."""
    from mmblocks.assets import resolve_source

    words = Path(shutil.copytree(resolve_source("mmblocks:tinyworld_text"), tmp_path / "words"))
    projector = {"name": "instruct_qformer", **projectors["instruct_qformer"].tiny, "text_tokenizer": str(words)}
    video = {"name": "frames", "max_frames": 4, "newline": "none"}
    tokenizer = {"image": "pad", "multi_image": "pad", "video": video}
    spec = {**tiny_spec, "projector": projector, "pooling": "none", "tokenizer": tokenizer}
    return mmblocks.build(spec, seed=0).eval()


def answer(model):
    talk = Conversation.from_messages(
        [{"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What colour?"}]}]
    )
    return generate(model, collate([Processor.from_model(model).make_prompt_sample(talk)]), Decoding(max_new_tokens=6))


def test_a_projectors_text_tokenizer_goes_with_the_model(asking, tmp_path):
    said = answer(asking)
    mmblocks.save(asking, tmp_path / "here")
    assert str(tmp_path) not in (tmp_path / "here/config.json").read_text()
    (tmp_path / "here").rename(tmp_path / "there")
    shutil.rmtree(tmp_path / "words")
    assert answer(mmblocks.load(tmp_path / "there")) == said


def test_a_model_with_its_own_words_is_saved_again_and_built_again(asking, tmp_path):
    loaded = mmblocks.load(mmblocks.save(asking, tmp_path / "first"))
    mmblocks.save(loaded, tmp_path / "second")
    first, second = ((tmp_path / name / "config.json").read_text() for name in ("first", "second"))
    assert first == second
    assert mmblocks.build(loaded.spec).projector.text_tokenizer.encode("red") != []
    shutil.rmtree(tmp_path / "first")
    assert mmblocks.load(tmp_path / "second").projector.text_tokenizer.encode("red") != []


def test_words_that_ship_with_the_package_are_named_not_copied(asking, tiny_spec, tmp_path):
    shipped = {**asking.spec.to_dict(), "backbone": tiny_spec["backbone"]}
    shipped["projector"] = {**shipped["projector"], "text_tokenizer": "mmblocks:tinyworld_text"}
    model = mmblocks.build(shipped, seed=0)
    back = mmblocks.load(mmblocks.save(model, tmp_path / "m"))
    assert back.spec.to_dict() == model.spec.to_dict()
    assert [file.name for file in (tmp_path / "m/projector").iterdir()] == ["model.safetensors"]


# What is replaced, and what was damaged ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["notes.txt", "encoder/notes.txt", ".git/HEAD", "backbone/old/model.safetensors"])
def test_a_folder_with_anything_else_in_it_is_not_replaced(tiny_model, tmp_path, name):
    folder = mmblocks.save(tiny_model, tmp_path / "m")
    other = folder / name
    other.parent.mkdir(parents=True, exist_ok=True)
    other.write_text("mine")
    with pytest.raises(
        ConfigError, match=f"m holds {name}, which mmblocks has not written there, so it is not replaced"
    ):
        mmblocks.save(tiny_model, folder)
    assert other.read_text() == "mine"
    assert mmblocks.load(folder)


def test_a_folder_of_pictures_is_not_replaced_and_an_empty_one_is_used(tiny_model, tmp_path):
    (tmp_path / "photos").mkdir()
    mmblocks.save(tiny_model, tmp_path / "photos")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/a.jpg").write_bytes(b"jpeg")
    with pytest.raises(ConfigError, match=r"home holds a\.jpg"):
        mmblocks.save(tiny_model, tmp_path / "home")
    with pytest.raises(ConfigError, match=r"a\.jpg is a file; name a folder"):
        mmblocks.save(tiny_model, tmp_path / "home/a.jpg")
    assert (tmp_path / "home/a.jpg").read_bytes() == b"jpeg"


def test_a_model_takes_the_place_of_a_model(tiny_model, tmp_path):
    folder = mmblocks.save(tiny_model, tmp_path / "m")
    tiny_model.projector.head.weight.data.zero_()
    mmblocks.save(tiny_model, folder)
    assert not mmblocks.load(folder).projector.head.weight.any()
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_the_list_of_checksums_is_one_that_sha256sum_checks(tiny_model, tmp_path):
    folder = mmblocks.save(tiny_model, tmp_path / "m")
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {line.partition(": ")[0] for line in done.stdout.splitlines()} == files - {"SHA256SUMS"}


def test_a_flipped_bit_in_any_file_is_found(tiny_model, tmp_path):
    folder = mmblocks.save(tiny_model, tmp_path / "m")
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[-20] ^= 1
        path.write_bytes(bytes(flipped))
        with pytest.raises(CheckpointError, match=re.escape(path.name)):
            mmblocks.load(folder)
        path.write_bytes(whole)
    assert mmblocks.load(folder)


def test_a_file_that_was_changed_on_purpose_is_read_without_its_line(tiny_model, tmp_path):
    folder = mmblocks.save(tiny_model, tmp_path / "m")
    weights = load_file(folder / "projector/model.safetensors")
    save_file({name: tensor * 0 for name, tensor in weights.items()}, folder / "projector/model.safetensors")
    with pytest.raises(CheckpointError, match=r"projector/model\.safetensors is not as it was written"):
        mmblocks.load(folder)
    sums = folder / "SHA256SUMS"
    sums.write_text("".join(line for line in sums.read_text().splitlines(keepends=True) if "projector/" not in line))
    assert not mmblocks.load(folder).projector.head.weight.any()
