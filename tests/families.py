"""Small language models of every family that is compared with transformers, random in every tensor."""

import json
from pathlib import Path

import torch

from mmblocks.components import backbones

FAMILIES = json.loads((Path(__file__).parent / "contract" / "families.json").read_text())
TINY = {"vocab_size": 64, "dim": 32, "depth": 2, "heads": 4, "mlp_dim": 48, "max_tokens": 64}


def lively(backbone):
    """Random in every tensor, so that scores are large enough for caps, windows and sinks to matter."""
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return backbone.eval()


def family(name, **changed):
    given = {**TINY, "family": name, **FAMILIES[name], **changed}
    made = lively(backbones.build({"name": "causal_lm", **{k: v for k, v in given.items() if v is not None}}))
    made.lm.generation_config.eos_token_id = None
    return made
