"""A language model over several devices: the same numbers, and every operation on tensors of one device."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import mmblocks
from mmblocks.assets import find_media, find_tiny_model
from mmblocks.components import backbones
from mmblocks.errors import ConfigError
from mmblocks.model import placement
from mmblocks.model.generate import Decoding, StopSequences
from mmblocks.model.generation.batching import Batcher, SequenceState
from mmblocks.model.generation.pool import KVPool
from mmblocks.model.generation.step import DecodingStep, reasons_against_capture
from mmblocks.model.generation.store import KVCache
from mmblocks.model.generation.writing import prefill_prompts
from mmblocks.model.spreading import spread_backbone

CPU = torch.device("cpu")
GPUS = [torch.device("cuda:0"), torch.device("cuda:1")]
TINY = {"vocab_size": 64, "dim": 32, "depth": 4, "heads": 4, "mlp_dim": 48, "max_tokens": 64}
PLENTY = [2**30, 2**30]


def replace_tensors(module, change):
    """Module.to, which cannot move tensors that have shapes and devices alone."""
    for part in module.modules():
        for own in (part._parameters, part._buffers):
            own.update({name: tensor if tensor is None else change(tensor) for name, tensor in own.items()})


def test_answers_are_the_same():
    question = [mmblocks.image(find_media("image.png")), "How many shapes are there?"]
    answers = []
    for devices in ([], [CPU, CPU]):
        model = mmblocks.load(find_tiny_model())
        if devices:
            spread_backbone(model.backbone, devices, PLENTY)
        chat = mmblocks.Chat(model)
        answers.append((chat.ask(*question), chat.ask("What colour is it?")))
    assert answers[0] == answers[1]
    assert answers[0][0] == "3"


@pytest.mark.parametrize("family", ["qwen2", "llama", "phi3", "mistral", "gemma3_text", "gpt_neox", "olmo2"])
def test_every_operation_has_its_tensors_on_one_device(family, monkeypatch):
    further = {"sliding_window": 4} if family in ("mistral", "gemma3_text") else {}
    backbone = backbones.build({"name": "causal_lm", "family": family, **TINY, **further}).eval().requires_grad_(False)
    mode = FakeTensorMode()
    replace_tensors(backbone, mode.from_tensor)
    monkeypatch.setattr(nn.Module, "to", lambda self, device: replace_tensors(self, lambda tensor: tensor.to(device)))
    with mode, torch.no_grad():
        spread_backbone(backbone, GPUS, PLENTY)
        assert {tensor.device for tensor in backbone.parameters()} == set(GPUS)
        store, x = KVCache(2), torch.empty(9, 32, device=GPUS[0])
        logits = prefill_prompts(backbone, store, x, [5, 4])
        assert (logits.shape, logits.device) == ((2, 64), GPUS[0])
        step = DecodingStep(backbone, store, GPUS[0])
        step.ids.copy_(logits.argmax(-1))
        logits = step()
        assert (logits.shape, logits.device) == ((2, 64), GPUS[0])
        batcher = Batcher(backbone, KVPool(40), 64)
        states = [
            SequenceState(backbone, part, batcher.pool.reserve_span(10), Decoding(), StopSequences((), ()))
            for part in x.split([5, 4])
        ]
        for rows in (3, 2):  # the second time with rows before, and the end of one prompt
            logits = batcher._compute_logits([(state, min(rows, state.num_pending)) for state in states])
            for state in states:
                state.advance(min(rows, state.num_pending))
        assert (logits.shape, logits.device) == ((2, 64), GPUS[0])
        assert {buffer.device for buffer in batcher.pool._keys} == set(GPUS)
    assert "the layers are on several devices" in reasons_against_capture(backbone, GPUS[0], 100)


def test_weights_that_do_not_fit_are_refused():
    backbone = mmblocks.load(find_tiny_model()).backbone
    with pytest.raises(ConfigError, match=r"do not fit on 2 devices with .*name more devices"):
        spread_backbone(backbone, GPUS, [2**16, 2**16])


@pytest.mark.parametrize("names", ["cpu,cpu", "cpu,cuda:0", "cuda:0,cuda:0"])
def test_several_devices_are_different_ones_of_cuda(names, monkeypatch):
    monkeypatch.setattr(placement, "choose_device", torch.device)
    with pytest.raises(ConfigError, match=f"device='{names}': several devices"):
        placement.choose_devices(names)


def test_devices_are_named_with_commas(monkeypatch):
    monkeypatch.setattr(placement, "choose_device", torch.device)
    assert placement.choose_devices("cuda:0, cuda:1") == GPUS
    assert placement.choose_devices("cpu") == [CPU]


def test_slots_are_on_the_device_of_the_layer():  # an index on another GPU is an error that fake tensors do not notice
    store, meta = KVCache(2), torch.device("meta")
    with store.place_packed_rows([2, 1], CPU):
        placement = store._find_placement(meta)
        assert {placement.new.slots.device, placement.new.sequences.device} == {meta}
        assert store._find_placement(meta) is placement
    with store.place_packed_rows([1, 1], CPU):
        assert store._find_placement(meta).keys.slots.device == meta
    with store.place_step_rows(torch.tensor([3, 2]), 4):
        assert store._find_placement(meta).slots.device == meta
    pool = KVPool(4)
    with pool.place_rows([range(1, 3)], CPU):
        assert pool._find_places(meta).device == meta
