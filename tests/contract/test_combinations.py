"""Every component in whole models built from names, forward and backward, or refused with one reason.

All of them with all others are the matrix (test_matrix.py).
"""

import pytest
import torch

import mmblocks
from mmblocks.components import encoders, poolings, projectors
from mmblocks.conversation import Conversation
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import ConfigError
from mmblocks.model.checks.composition import find_faults

ENCODERS = [name for name in encoders if not encoders.find_info(name).preset_of]
PROJECTORS = [name for name in projectors if not projectors.find_info(name).preset_of]
FOR_A_ROW = {"image": "pad", "multi_image": "pad", "video": {"name": "frames", "max_frames": 4, "newline": "none"}}


def spec(base, encoder, projector, pooling):
    parts = {"encoder": (encoders, encoder), "projector": (projectors, projector), "pooling": (poolings, pooling)}
    chosen = {kind: {"name": name, **registry[name].tiny} for kind, (registry, name) in parts.items()}
    with torch.device("meta"):
        ordered = encoders.build(chosen["encoder"]).spatial
    if ordered and getattr(projectors[projector].builder, "spatial", True):
        return {**base, **chosen}
    return {**base, **chosen, "pooling": "none", "tokenizer": FOR_A_ROW}  # nothing that asks for an image's order


def batch_for(model):
    clip = torch.arange(3 * 20 * 20 * 3).remainder(251).to(torch.uint8).view(3, 20, 20, 3).numpy()
    said = [{"type": "video", "video": clip}, {"type": "text", "text": "What is moving?"}]
    messages = [{"role": "user", "content": said}, {"role": "assistant", "content": "red circle"}]
    return collate([Processor.from_model(model).make_training_sample(Conversation.from_messages(messages))])


@pytest.mark.parametrize(
    ("encoder", "projector", "pooling"),
    [(encoder, "mlp", "bilinear") for encoder in ENCODERS]
    + [("tiny_conv", projector, "bilinear") for projector in PROJECTORS]
    + [("interleaved", projector, "bilinear") for projector in PROJECTORS]  # its features have no image's order
    + [("tiny_conv", "mlp", pooling) for pooling in poolings if not poolings.find_info(pooling).preset_of],
)
def test_a_pair_learns_or_says_why_not(tiny_spec, encoder, projector, pooling):
    combined = spec(tiny_spec, encoder, projector, pooling)
    if reasons := find_faults(combined):
        assert projector == "identity" or f"projector '{projector}'" in str(reasons[0])
        with pytest.raises(ConfigError, match="channels" if projector == "identity" else "a grid of"):
            mmblocks.build(combined)
        assert len(reasons) == 1
        return
    model = mmblocks.build(combined, seed=0)
    loss = model(batch_for(model)).loss
    loss.backward()
    silent = [
        n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]
    assert loss.isfinite()
    assert silent == []
