"""A language model in few bits: what is quantized, what it takes, and what refuses it."""

import bitsandbytes
import pytest
import torch
from torch import nn

import mmblocks
from mmblocks import cli
from mmblocks.assets import find_media, find_tiny_model
from mmblocks.errors import ConfigError
from mmblocks.model.convert.original.llava import export_original
from mmblocks.model.convert.transformers.export import export_hf
from mmblocks.model.quantized import QuantizedLinear, list_linear_layers


@pytest.fixture(params=[8, 4])
def bits(request):
    return request.param


def count_bytes(linear):
    return sum(buffer.nbytes for buffer in linear.buffers())


def test_the_language_model_alone_is_quantized(bits):
    whole, few = mmblocks.load(find_tiny_model()), mmblocks.load(find_tiny_model(), bits=bits)
    quantized = {name for name, module in few.named_modules() if isinstance(module, QuantizedLinear)}
    assert quantized == {f"backbone.lm.{name}" for name in list_linear_layers(whole)}
    kept = few.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in whole.state_dict().items() if name in kept)
    assert not any(
        parameter.requires_grad
        for name in quantized
        for parameter in few.get_submodule(name).parameters(False)
        if parameter.ndim > 1
    )


def test_a_layer_takes_as_many_bits_as_are_named(bits):
    torch.manual_seed(0)
    linear = nn.Linear(1024, 1024, bias=False)
    quantized = QuantizedLinear.from_linear(linear, bits)
    assert bits / 8 <= count_bytes(quantized) / linear.weight.numel() < 1.05 * bits / 8


def test_4_bits_compute_what_the_layer_of_bitsandbytes_computes():
    torch.manual_seed(0)
    linear = nn.Linear(128, 96)
    theirs = bitsandbytes.nn.Linear4bit(128, 96, compute_dtype=torch.float32, quant_type="nf4")
    theirs.load_state_dict(linear.state_dict())
    theirs.train().to("cpu")  # quantizes; in evaluation mode some CPUs compute in bfloat16
    x = torch.randn(5, 128)
    torch.testing.assert_close(QuantizedLinear.from_linear(linear, 4)(x), theirs(x))


def test_answers_are_written_in_few_bits(bits):
    model = mmblocks.load(find_tiny_model(), bits=bits)
    chat = mmblocks.Chat(model)
    assert chat.ask(mmblocks.image(find_media("image.png")), "What is in the image?")


def test_a_model_of_few_bits_is_not_saved_without_its_weights(bits, tmp_path):
    model = mmblocks.load(find_tiny_model(), bits=bits)
    for write in (mmblocks.save, export_hf, export_original):
        with pytest.raises(ConfigError, match="whole weights; load it without bits"):
            write(model, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_other_numbers_of_bits_are_refused():
    with pytest.raises(ConfigError, match="bits=3 is neither 4 nor 8"):
        mmblocks.load(find_tiny_model(), bits=3)


def test_a_chat_in_4_bits(capsys):
    assert cli.main(["chat", "--bits", "4", "--image", str(find_media("image.png")), "--ask", "What is it?"]) == 0
    assert capsys.readouterr().out.strip()
