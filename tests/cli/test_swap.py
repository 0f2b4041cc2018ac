"""`mmblocks swap`: a new folder with other parts, whole or not at all."""

import json

import pytest
from safetensors.torch import load_file

import mmblocks
from mmblocks import cli


@pytest.fixture
def saved(tiny_model, tmp_path):
    return mmblocks.save(tiny_model, tmp_path / "model")


def files(folder):
    return {p.name for p in folder.iterdir()}


def test_a_swap_is_written_with_sums_over_every_parameter(saved, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["swap", str(saved), "projector=gated", "projector.expansion=2", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    totals = json.loads((out / "swap.json").read_text())["swaps"][0]["parameters"]
    assert totals["after"] == totals["kept"] + totals["resized"] + totals["new"]
    assert f"after    {totals['after']:,} parameters = {totals['kept']:,} kept" in said
    assert f"before   {totals['before']:,} parameters, {totals['dropped']:,} of them dropped" in said
    assert mmblocks.load(out).spec.to_dict()["projector"] == {"name": "gated", "expansion": 2}


def test_what_is_kept_is_the_same_file(saved, tmp_path):
    out = tmp_path / "out"
    assert cli.main(["swap", str(saved), "projector=gated", "--out", str(out)]) == 0
    for part in ("encoder", "learned_tokens", "backbone"):
        file = f"{part}/model.safetensors"
        assert (saved / file).read_bytes() == (out / file).read_bytes()


def test_a_model_in_half_precision_stays_in_it(tiny_model, tmp_path):
    import torch

    mmblocks.save(tiny_model, tmp_path / "half", dtype=torch.bfloat16)
    assert cli.main(["swap", str(tmp_path / "half"), "projector=gated", "--out", str(tmp_path / "out")]) == 0
    for part in ("encoder", "projector", "learned_tokens", "backbone"):
        tensors = load_file(tmp_path / "out" / part / "model.safetensors")
        assert {t.dtype for t in tensors.values()} == {torch.bfloat16}


def test_each_swap_adds_its_record_to_those_before(saved, tmp_path):
    assert cli.main(["swap", str(saved), "projector=gated", "--out", str(tmp_path / "b"), "--seed", "4"]) == 0
    assert cli.main(["swap", str(tmp_path / "b"), "tokenizer.image=pad", "--out", str(tmp_path / "c")]) == 0
    swaps = json.loads((tmp_path / "c/swap.json").read_text())["swaps"]
    assert [(s["changes"], s["seed"]) for s in swaps] == [({"projector": "gated"}, 4), ({"tokenizer.image": "pad"}, 0)]


def test_all_reasons_come_before_any_weight_is_read(saved, tmp_path, capsys):
    for file in saved.rglob("*.safetensors"):
        file.write_bytes(b"damaged")
    assert cli.main(["swap", str(saved), "projector=gatde", "encoder=siglp", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "Did you mean 'gated'" in said
    assert "Did you mean 'siglip'" in said
    assert files(tmp_path) == {"model"}


def test_a_damaged_source_leaves_nothing_behind(saved, tmp_path, capsys):
    (saved / "encoder/model.safetensors").write_bytes(b"damaged")
    assert cli.main(["swap", str(saved), "projector=gated", "--out", str(tmp_path / "out")]) == 1
    assert "truncated or damaged" in capsys.readouterr().err
    assert files(tmp_path) == {"model"}


def test_a_swap_never_writes_over_a_folder(saved, capsys):
    assert cli.main(["swap", str(saved), "projector=gated", "--out", str(saved)]) == 2
    assert "exists; name a folder that does not" in capsys.readouterr().err


def test_a_change_without_a_value_is_refused(saved, tmp_path, capsys):
    assert cli.main(["swap", str(saved), "gated", "--out", str(tmp_path / "out")]) == 2
    assert "'gated': write SLOT=NAME or SLOT.SETTING=VALUE" in capsys.readouterr().err
