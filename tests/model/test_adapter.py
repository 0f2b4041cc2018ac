"""A projector alone, as LLaVA's first stage leaves it, put into a model of ours."""

import pytest
import torch
from safetensors.torch import save_file

import mmblocks
from mmblocks import cli
from mmblocks.errors import CheckpointError, ConfigError
from mmblocks.model.convert.original.adapter import import_adapter

SHAPES = {"0.weight": (32, 16), "0.bias": (32,), "2.weight": (32, 32), "2.bias": (32,)}


def adapter(prefix="model.mm_projector."):
    """Tensors as LLaVA's trainer saves them after feature alignment."""
    generator = torch.Generator().manual_seed(5)
    return {f"{prefix}{name}": torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


@pytest.fixture
def written(tmp_path):
    def write(tensors, name="mm_projector.bin"):
        torch.save(tensors, tmp_path / name)
        return tmp_path / name

    return write


def test_a_pickled_adapter_fills_the_projector_and_nothing_else(tiny_model, written):
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    taken = import_adapter(tiny_model, written(adapter()))
    state, given = tiny_model.state_dict(), adapter()
    assert taken.tensors == {
        "model.mm_projector.0.weight": "projector.body.0.weight",
        "model.mm_projector.0.bias": "projector.body.0.bias",
        "model.mm_projector.2.weight": "projector.head.weight",
        "model.mm_projector.2.bias": "projector.head.bias",
    }
    assert all(torch.equal(state[ours], given[theirs]) for theirs, ours in taken.tensors.items())
    assert all(torch.equal(state[name], before[name]) for name in state if not name.startswith("projector."))
    assert taken.kept == ("marks.newline",)


def test_what_stands_before_the_projectors_name_does_not_matter(tiny_model, written):
    taken = import_adapter(tiny_model, written(adapter("base_model.model.model.mm_projector.")))
    assert len(taken.tensors) == 4
    assert torch.equal(tiny_model.projector.head.bias, adapter()["model.mm_projector.2.bias"])


def test_a_newline_is_taken_where_the_file_has_one(tiny_model, written):
    taken = import_adapter(tiny_model, written({**adapter(), "model.image_newline": torch.ones(32)}))
    assert torch.equal(tiny_model.marks["newline"], torch.ones(32))
    assert taken.kept == ()


def test_a_safetensors_adapter_is_read_alike(tiny_model, tmp_path):
    save_file(adapter(), tmp_path / "adapter.safetensors")
    assert len(import_adapter(tiny_model, tmp_path / "adapter.safetensors").tensors) == 4


def test_half_precision_is_read_into_the_models_type(tiny_model, written):
    given = {name: tensor.half() for name, tensor in adapter().items()}
    import_adapter(tiny_model, written(given))
    assert torch.equal(tiny_model.projector.head.bias, given["model.mm_projector.2.bias"].float())


def test_missing_extra_and_reshaped_tensors_are_all_listed_and_nothing_is_changed(tiny_model, written):
    tensors = adapter()
    del tensors["model.mm_projector.2.bias"]
    tensors |= {"model.mm_projector.0.bias": torch.zeros(7), "model.vision_resampler.query": torch.zeros(3)}
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    with pytest.raises(CheckpointError) as refused:
        import_adapter(tiny_model, written(tensors))
    assert str(refused.value).splitlines()[1:] == [
        "  missing: model.mm_projector.2.bias (32,)",
        "  extra: model.vision_resampler.query (3,)",
        "  shape: model.mm_projector.0.bias is (7,) in the file, (32,) in the model",
    ]
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny_model.state_dict().items())


def test_a_newline_for_a_model_that_has_none_is_refused(tiny_spec, written):
    bare = {"image": "pad", "multi_image": "pad", "video": {"name": "frames", "newline": "none"}}
    model = mmblocks.build({**tiny_spec, "tokenizer": bare}, seed=0)
    with pytest.raises(CheckpointError, match=r"extra: model\.image_newline \(32,\)"):
        import_adapter(model, written({**adapter(), "model.image_newline": torch.ones(32)}))


class Trap:
    """A pickle of it writes a file when it is loaded by a reader that runs code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)


def test_a_pickle_that_asks_for_code_is_refused_and_nothing_runs(tiny_model, written, tmp_path):
    with pytest.raises(CheckpointError, match="asks for code to be run, which mmblocks never does"):
        import_adapter(tiny_model, written({"model.mm_projector.0.weight": Trap(tmp_path / "ran")}))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"no pickle at all", b"PK\x03\x04cut"])
def test_a_damaged_pickle_is_named(tiny_model, tmp_path, content):
    (tmp_path / "mm_projector.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"mm_projector\.bin cannot be read"):
        import_adapter(tiny_model, tmp_path / "mm_projector.bin")


def test_a_pickle_of_something_else_is_refused(tiny_model, written):
    with pytest.raises(CheckpointError, match="holds list, not tensors by name"):
        import_adapter(tiny_model, written([1, 2]))


def test_a_projector_that_llava_does_not_have_is_refused(tiny_spec, written):
    model = mmblocks.build({**tiny_spec, "projector": "gated"}, seed=0)
    with pytest.raises(ConfigError, match="projector: Gated; adapters of LLaVA are linear, mlpNx_gelu"):
        import_adapter(model, written(adapter()))


# The command --------------------------------------------------------------------------------------------------------


def test_convert_puts_an_adapter_into_a_saved_model(tiny_model, written, tmp_path, capsys):
    mmblocks.save(tiny_model, tmp_path / "model")
    file = written(adapter())
    assert cli.main(["convert", str(file), str(tmp_path / "model"), "--out", str(tmp_path / "out")]) == 0
    again = mmblocks.load(tmp_path / "out")
    assert torch.equal(again.projector.head.bias, adapter()["model.mm_projector.2.bias"])
    said = capsys.readouterr().out
    assert "taken    4 tensors" in said
    assert "kept     marks.newline: the file does not have it" in said


def test_an_adapter_is_never_written_into_the_model_itself(tiny_model, written, tmp_path, capsys):
    mmblocks.save(tiny_model, tmp_path / "model")
    file = written(adapter())
    assert cli.main(["convert", str(file), str(tmp_path / "model")]) == 2
    assert "name the folder to write with --out" in capsys.readouterr().err
    assert cli.main(["convert", str(file), str(tmp_path / "model"), "--out", str(tmp_path / "model")]) == 2
    assert "exists; name a folder that does not" in capsys.readouterr().err
