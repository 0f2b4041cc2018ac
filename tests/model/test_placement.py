"""Where a model runs and in which type."""

import pytest
import torch

import mmblocks
from mmblocks.assets import find_media, find_tiny_model
from mmblocks.cli import main
from mmblocks.errors import ConfigError
from mmblocks.model import placement


def stored(dtype):
    return lambda: dtype


@pytest.mark.parametrize(("has_cuda", "chosen"), [(True, "cuda"), (False, "cpu")])
def test_auto_takes_the_gpu_where_there_is_one(monkeypatch, has_cuda, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    assert placement.choose_device() == torch.device(chosen)


@pytest.mark.parametrize("name", ["cuda:7", "mps", "gpu", "meta"])
def test_a_device_that_is_not_there_is_refused_by_name(name):
    with pytest.raises(ConfigError, match=rf"device='{name}' .*write auto, cpu, cuda"):
        placement.choose_device(name)


@pytest.mark.parametrize(
    ("device", "has_bfloat16", "dtype", "chosen"),
    [
        ("cpu", True, torch.bfloat16, torch.float32),
        ("cuda", True, torch.bfloat16, torch.bfloat16),
        ("cuda", False, torch.bfloat16, torch.float32),
        ("cuda", False, torch.float16, torch.float16),
    ],
)
def test_auto_is_the_stored_type_where_the_device_computes_it_well(monkeypatch, device, has_bfloat16, dtype, chosen):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: has_bfloat16)
    assert placement.choose_dtype("auto", torch.device(device), stored(dtype)) == chosen


def test_a_type_is_taken_by_name():
    assert placement.choose_dtype("float16", torch.device("cpu"), stored(torch.float32)) == torch.float16
    with pytest.raises(ConfigError, match="dtype='half' is not one of auto, float32"):
        placement.choose_dtype("half", torch.device("cpu"), stored(torch.float32))


def test_a_model_is_loaded_in_a_type_by_name():
    model = mmblocks.load(find_tiny_model(), dtype="bfloat16", device="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_commands_take_device_and_type(capsys):
    words = ["--image", str(find_media("image.png")), "--ask", "How many shapes are there?"]
    for options in ([], ["--dtype", "bfloat16"], ["--device", "cpu", "--dtype", "float32"]):
        assert main(["chat", *words, *options]) == 0
        assert capsys.readouterr().out == "3\n"
    assert main(["chat", *words, "--device", "cuda:9"]) == 2
    assert "device='cuda:9' cannot be used here" in capsys.readouterr().err
