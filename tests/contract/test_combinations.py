"""Every pair of components works together, forward and backward, or gives a reason."""

import itertools

import pytest
import torch

import mmblocks
from mmblocks.components import encoders, poolings, projectors
from mmblocks.conversation import Conversation
from mmblocks.data.collate import collate
from mmblocks.data.processor import Processor
from mmblocks.errors import ConfigError
from mmblocks.model.check import faults

ENCODERS = [name for name in encoders if encoders[name].of is None]


def spec(base, encoder, projector, pooling):
    parts = {"encoder": (encoders, encoder), "projector": (projectors, projector), "pooling": (poolings, pooling)}
    chosen = {kind: {"name": name, **registry[name].tiny} for kind, (registry, name) in parts.items()}
    return {**base, **chosen}


def batch_for(model):
    clip = torch.arange(3 * 20 * 20 * 3).remainder(251).to(torch.uint8).view(3, 20, 20, 3).numpy()
    said = [{"type": "video", "video": clip}, {"type": "text", "text": "What is moving?"}]
    messages = [{"role": "user", "content": said}, {"role": "assistant", "content": "red circle"}]
    return collate([Processor.of(model).training_sample(Conversation.of(messages))])


@pytest.mark.parametrize(
    ("encoder", "projector", "pooling"),
    [(e, p, "bilinear") for e, p in itertools.product(ENCODERS, projectors)]
    + [("tiny_conv", "mlp", pooling) for pooling in poolings],
)
def test_a_pair_learns_or_says_why_not(tiny_spec, encoder, projector, pooling):
    combined = spec(tiny_spec, encoder, projector, pooling)
    if reasons := faults(combined):
        assert projector == "identity"
        with pytest.raises(ConfigError, match="channels"):
            mmblocks.build(combined)
        assert len(reasons) == 1
        return
    model = mmblocks.build(combined, seed=0)
    loss = model(batch_for(model)).mean
    loss.backward()
    silent = [
        n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
    assert loss.isfinite()
    assert silent == []
