"""Nothing that the settings of a part can say ends the process: they are refused by name, or the part works."""

import json
import random
import subprocess
import sys
from pathlib import Path

FAMILIES = json.loads((Path(__file__).parents[1] / "contract" / "families.json").read_text())
DRAWS = 1000
BUILT = 5
CHILD = """
import json, random, sys
import torch
from mmblocks.components import backbones
from mmblocks.errors import MMBlocksError
from mmblocks.model import limits
from mmblocks.model.check import _try_backbone
OF_NUMBERS = ("does not compute what", "see each other")  # what random weights alone can show
torch.set_num_threads(1)
families, count = json.load(sys.stdin)
chosen = []
for drawn in families:
    free = [s for s in drawn if not limits.backbone_faults({"placeholder_id": 0, **s})]
    chosen += random.Random(0).sample(free, min(count, len(free)))
    print(len(drawn))
for spec in chosen:
    print(json.dumps(spec), file=sys.stderr, flush=True)  # the last one is what ended the process
    with torch.device("meta"):
        faults = _try_backbone(spec, True).faults
    try:
        backbones.build(spec)  # runs five rows through it
    except MMBlocksError as refused:
        assert faults or any(words in str(refused) for words in OF_NUMBERS), f"not said by the check: {refused}"
    else:
        assert not faults, faults
"""


def one(draw, family, own):
    """Random settings, many of which cannot be."""
    spec = {
        "name": "causal_lm",
        "family": family,
        "vocab_size": draw.choice([1, 7, 64]),
        "dim": draw.choice([2, 8, 32, 32, 48, 64]),
        "depth": draw.choice([1, 2, 3]),
        "heads": draw.choice([1, 2, 3, 4, 4, 8]),
        "mlp_dim": draw.choice([1, 16, 48]),
        "max_tokens": draw.choice([8, 512]),
    }
    maybe = {
        "kv_heads": [1, 2, 2, 3, 4, 8, 32, 0, -1],
        "head_dim": [1, 2, 8, 12, 16, 0, -2],
        "sliding_window": [0, 1, 4, 10**6, -1],
        "rope_theta": [1e-3, 1.0, 1e4, 0.0, -1.0, float("nan")],
        "norm_eps": [1e-12, 1e-5, 1.0, 0.0, float("inf")],
    }
    spec |= {name: draw.choice(values) for name, values in maybe.items() if draw.random() < 0.3}
    if draw.random() < 0.4:
        spec["further"] = draw.choice(FURTHER)
    return {k: v for k, v in spec.items() if own.get(k, 0) is not None}


FURTHER = [
    {"num_key_value_heads": 0},
    {"num_key_value_heads": 3},
    {"num_key_value_heads": 32},
    {"num_attention_heads": 0},
    {"num_attention_heads": 16},
    {"head_dim": 0},
    {"head_dim": 7},
    {"hidden_size": 0},
    {"num_hidden_layers": 0},
    {"num_hidden_layers": 10**9},
    {"intermediate_size": 0},
    {"vocab_size": 10**12},
    {"rope_parameters": {}},
    {"rope_parameters": {"rope_type": "unheard_of"}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 0}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.0}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 7.0}},
    {"hidden_act": "unheard_of"},
    {"layer_types": []},
    {"layer_types": ["unheard_of"]},
    {"pad_token_id": 10**6},
    {"max_position_embeddings": 0},
    {"query_pre_attn_scalar": 0},
    {"logits_scaling": 0},
]


def test_a_thousand_random_settings_of_each_family_are_refused_or_work_and_the_check_knows():
    families = [family for family in FAMILIES if family not in ("gpt_oss", "gpt2")]
    drawn = [
        [one(random.Random(f"{family} {i}"), family, FAMILIES[family]) for i in range(DRAWS)] for family in families
    ]
    command = [sys.executable, "-c", CHILD]
    child = subprocess.run(command, input=json.dumps([drawn, BUILT]), capture_output=True, text=True)
    assert child.returncode == 0, child.stderr[-2000:]
    assert child.stdout.split() == [str(DRAWS)] * len(families)
