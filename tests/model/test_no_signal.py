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
from mmblocks.model.checks import limits
from mmblocks.model.checks.composition import _try_backbone
OF_NUMBERS = ("does not compute what", "see each other")  # what random weights alone can show
torch.set_num_threads(1)
families, count = json.load(sys.stdin)
chosen = []
for drawn in families:
    free = [s for s in drawn if not limits.find_backbone_faults({"placeholder_id": 0, **s})]
    chosen += random.Random(0).sample(free, min(count, len(free)))
    print(len(drawn))
for spec in chosen:
    print(json.dumps(spec), file=sys.stderr, flush=True)  # the last one is what ended the process
    with torch.device("meta"):
        faults = _try_backbone("model.backbone", spec, True).faults
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


# Encoders -----------------------------------------------------------------------------------------------------------

ENCODER_CHILD = """
import json, sys
import torch
from mmblocks.components import encoders
from mmblocks.errors import MMBlocksError
from mmblocks.model.checks.composition import _try_encoder
torch.set_num_threads(1)
for spec in json.load(sys.stdin):
    print(json.dumps(spec), file=sys.stderr, flush=True)  # the last one is what ended the process
    with torch.device("meta"):
        found = [str(fault) for fault in _try_encoder("model.encoder", spec).faults]
    try:
        encoder = encoders.build(spec).eval()
    except MMBlocksError as refused:
        assert found, f"not said by the check: {refused}"
        print("refused")
        continue
    assert not found, found
    with torch.no_grad():
        seen = encoder(torch.zeros(1, 3, *encoder.view_px))
    assert seen.shape == (1, *encoder.grid, encoder.dim), seen.shape
    print("works")
"""
ENCODERS = 120
OF_VITS = ("vit", "mlcd_vision_model", "dinov2", "siglip_vision_model", "clip_vision_model", "deit")
OF_STAGES = ("swin", "convnext", "resnet", "dinov3_convnext")
UNUSUAL = [
    {"num_channels": 1},
    {"num_channels": 0},
    {"hidden_act": "unheard_of"},
    {"layer_norm_eps": float("nan")},
    {"hidden_dropout_prob": 2.0},
    {"attention_probs_dropout_prob": -1},
    {"num_register_tokens": 10**9},
    {"window_size": 0},
    {"num_hidden_layers": 10**20},
    {"depths": [10**9]},
]


def seldom(draw, usual, unusual):
    """Mostly what works, so that a spec has one or two oddities and not ten."""
    return draw.choice(unusual) if draw.random() < 0.12 else draw.choice(usual)


def any_tower(draw):
    """A tower of transformers, its grid as it should be for most."""
    family = draw.choice([*OF_VITS, *OF_VITS, *OF_STAGES])
    side = seldom(draw, [16, 32, 48], [0, -1, 1, 10**6, 65_537, [32, 16], "32"])
    patch = seldom(draw, [8, 16], [0, -1, 7, 64, 2**20, None])
    sizes = {
        "image_size": side,
        "patch_size": patch,
        "hidden_size": seldom(draw, [8, 16], [0, -2, 1, 10**9]),
        "num_hidden_layers": seldom(draw, [1, 2, 3], [0, -1, 10**9]),
        "num_attention_heads": seldom(draw, [1, 2, 4], [0, -1, 3, 48]),
        "intermediate_size": seldom(draw, [1, 16], [0, -1]),
    }
    if family in OF_STAGES:
        width = "embed_dim" if family == "swin" else "hidden_sizes"
        sizes = {
            "depths": seldom(draw, [[1, 1, 1, 1]], [[], [0], [1], [10**9]]),
            width: seldom(draw, [12 if family == "swin" else [4, 8, 16, 16]], [0, [], [0], [4]]),
        }
    if draw.random() < 0.12:
        sizes |= draw.choice(UNUSUAL)
    image_px = seldom(draw, [side if isinstance(side, int) else 32], [0, -1, 31, 10**20])
    cells = max(1, image_px // (patch if isinstance(patch, int) and patch > 0 and family in OF_VITS else 32))
    return {
        "name": "hf_vision",
        "family": family,
        "sizes": sizes,
        "image_px": image_px,
        "grid": seldom(draw, [[cells, cells]], [[0, 1], [2, 3], [-1, -1]]),
        "prefix_tokens": {"dinov2": 1, "siglip_vision_model": 0, "deit": 2}.get(family, int(family in OF_VITS)),
        "layer": seldom(draw, [None, -1], [0, 1, 9, -9, [0, 1], []]),
        "pixel_mean": [0.5] * 3,
        "pixel_std": seldom(draw, [[0.5] * 3], [[0.0] * 3, [-1, 1, 1], [float("nan")] * 3]),
    }


def any_encoder(draw):
    """One of our own encoders."""
    from mmblocks.components import encoders

    name = draw.choice(["clip", "siglip", "dinov2", "dinov3", "blip2_vit", "tiny_conv", "timm_vit", "timm_features"])
    drawn = {
        "image_px": seldom(draw, [32, 64], [0, -1, 1, 30, 10**6]),
        "view_px": seldom(draw, [12, 24, 48], [0, -1, 13, 10**6]),
        "patch_px": seldom(draw, [8, 16], [0, -1, 7, 64]),
        "dim": seldom(draw, [16, 32], [0, -1, 1, 6]),
        "depth": seldom(draw, [2, 3], [0, -1, 10**9]),
        "heads": seldom(draw, [1, 2, 4], [0, -1, 3, 64]),
        "mlp_dim": seldom(draw, [1, 16], [0, -1]),
        "mlp_ratio": seldom(draw, [1, 4], [0, -1]),
        "registers": seldom(draw, [0, 2], [-1, 10**9]),
        "trained_px": seldom(draw, [28, 42], [0, -1, 1]),
        "layer": seldom(draw, [1, -1, 2], [0, -2, 9, [0, 1], [1, 2], []]),
        "stage": seldom(draw, [0, 1, -1], [9, -9]),
        "widths": seldom(draw, [[8, 8]], [[], [0], [4, 6], [8]]),
        "strides": seldom(draw, [[3, 2, 2]], [[], [0, 1], [2, 2], [1]]),
        "groups": seldom(draw, [1, 2, 4], [0, -1, 3]),
        "blocks": seldom(draw, [0, 1], [-1, 10**9]),
    }
    schema = {setting.name for setting in encoders.list_settings(name)}
    return {"name": name, **encoders[name].tiny, **{k: v for k, v in drawn.items() if k in schema}}


def test_random_encoders_are_refused_or_see_and_the_check_knows():
    drawn = [(any_tower if i % 2 else any_encoder)(random.Random(f"encoder {i}")) for i in range(ENCODERS)]
    command = [sys.executable, "-c", ENCODER_CHILD]
    child = subprocess.run(command, input=json.dumps(drawn), capture_output=True, text=True)
    assert child.returncode == 0, child.stderr[-2000:]
    told = child.stdout.split()
    assert len(told) == ENCODERS
    assert 25 < told.count("works") < 90
