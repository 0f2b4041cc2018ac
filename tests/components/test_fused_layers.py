"""Layers of language models by fused ops: which are taken, what changes, and what stays.

Triton reads TRITON_INTERPRET when it is imported, so this file is also the program in which the interpreter stands for a GPU.
"""

import copy
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama import modeling_llama
from transformers.models.qwen2 import modeling_qwen2

from mmblocks.backbones.causal_lm import CausalLM
from mmblocks.backbones.fused_layers import FusedModule, find_fused_class, fuse_layers, use_own_layers
from mmblocks.batch import Packing, RowIndex
from mmblocks.compat import enable_gradient_checkpointing
from mmblocks.model.costs.activations import count_activations
from mmblocks.ops.choice import use_backends

SIZES = {"vocab_size": 64, "dim": 32, "depth": 2, "heads": 4, "kv_heads": 2, "mlp_dim": 48}
PACKING = Packing.from_lengths([4, 3])
POSITIONS = torch.tensor([0, 1, 2, 3, 0, 1, 2])
ROWS = RowIndex(torch.tensor([1, 3, 6]), (2, 1))


def make_meta_model(family, **entries):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, num_hidden_layers=1, **entries))


# What is taken ------------------------------------------------------------------------------------------------------

ALL = ("norm", "mlp", "attention")
TAKEN = {
    **dict.fromkeys(("qwen2", "qwen3", "llama", "mistral", "phi3", "smollm3", "granite"), ALL),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), ALL),  # 1 + weight, GELU
    "olmo2": ALL,  # multiplied by the weight before rounding
    "olmo": ("mlp", "attention"),  # its norm subtracts the mean and has no weight
    "cohere": ("mlp",),  # the same, and neighbours are turned instead of halves
    "phi": ("attention",),  # torch's LayerNorm, an MLP without a gate
    "qwen3_moe": ("norm", "attention"),  # experts are one tensor
    "mixtral": ("norm", "attention"),
    "gpt_oss": ("norm",),  # angles of half the width
}


@pytest.mark.parametrize(("family", "taken"), TAKEN.items())
def test_layers_are_taken_where_an_op_computes_the_same(family, taken):
    lm = make_meta_model(family)
    fuse_layers(lm)
    names = {type(module).__name__.lower() for module in lm.modules() if isinstance(module, FusedModule)}
    assert {kind for kind in ALL if any(name.endswith(kind) for name in names)} == set(taken)


class ScaledNorm(modeling_llama.LlamaRMSNorm):
    def forward(self, hidden_states):
        return super().forward(hidden_states) * 1.001


class ClampedMLP(modeling_llama.LlamaMLP):
    def forward(self, x):
        return self.down_proj((self.act_fn(self.gate_proj(x)) * self.up_proj(x)).clamp(-1, 1))


class DroppingMLP(modeling_llama.LlamaMLP):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x), training=self.training)


class ReluMLP(modeling_llama.LlamaMLP):
    def __init__(self, config):
        super().__init__(config)
        self.act_fn = nn.ReLU()


@pytest.mark.parametrize("make", [ClampedMLP, DroppingMLP, ReluMLP])
def test_mlps_that_compute_something_else_are_left_alone(make):
    config = AutoConfig.for_model("llama", hidden_size=64, intermediate_size=24)
    assert find_fused_class(make(config).eval(), make) is None
    assert find_fused_class(modeling_llama.LlamaMLP(config), modeling_llama.LlamaMLP) is not None


def test_norms_that_compute_something_else_are_left_alone():
    assert find_fused_class(ScaledNorm(16), ScaledNorm) is None
    assert find_fused_class(nn.RMSNorm(16), nn.RMSNorm) is None
    assert find_fused_class(modeling_llama.LlamaRMSNorm(16), modeling_llama.LlamaRMSNorm) is not None


def test_a_forward_that_somebody_replaced_stays():
    norm = modeling_llama.LlamaRMSNorm(16)
    norm.forward = torch.zeros_like
    assert find_fused_class(norm, type(norm)) is None


# What stays ---------------------------------------------------------------------------------------------------------


def test_without_a_gpu_all_layers_keep_their_own_class():
    backbone = CausalLM(family="qwen2", **SIZES)
    assert not [module for module in backbone.modules() if isinstance(module, FusedModule)]


def test_fused_layers_have_the_same_weights_by_name():
    own, fused = make_meta_model("qwen2"), make_meta_model("qwen2")
    fuse_layers(fused)
    assert list(fused.state_dict()) == list(own.state_dict())
    assert repr(fused) == repr(own)


def test_other_models_of_the_family_are_untouched():
    rotary, forward = modeling_qwen2.apply_rotary_pos_emb, modeling_qwen2.Qwen2Attention.forward
    fuse_layers(make_meta_model("qwen2"))
    assert (modeling_qwen2.apply_rotary_pos_emb, modeling_qwen2.Qwen2Attention.forward) == (rotary, forward)
    assert not isinstance(make_meta_model("qwen2").model.norm, FusedModule)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_and_a_pickle_have_the_same_classes(copied):
    lm = make_meta_model("llama", hidden_size=64, intermediate_size=24)
    fuse_layers(lm)
    for module in (lm.model.norm, lm.model.layers[0].mlp):
        assert type(copied(module)) is type(module)
        assert repr(copied(module)) == repr(module)


def count_layer_bytes(lm, tokens=64):
    """What a decoder layer keeps for backward, its input included."""
    layer, dim = lm.model.layers[0], lm.config.hidden_size
    x = torch.empty(1, tokens, dim, device="meta", dtype=torch.bfloat16).requires_grad_()
    angles = tuple(torch.empty(1, tokens, lm.config.head_dim, device="meta", dtype=torch.bfloat16) for _ in range(2))
    return count_activations(
        lm, (), lambda: layer(x, position_embeddings=angles, attention_mask=None, position_ids=None)
    ).saved


def test_a_fused_decoder_layer_keeps_what_is_needed_and_no_more():
    lm = make_meta_model("qwen3", attn_implementation="sdpa").bfloat16()
    dim, mlp_dim, tokens = lm.config.hidden_size, lm.config.intermediate_size, 64
    heads, kv_heads, head_dim = lm.config.num_attention_heads, lm.config.num_key_value_heads, lm.config.head_dim
    own = count_layer_bytes(lm, tokens)
    fuse_layers(lm)
    fused = count_layer_bytes(lm, tokens)
    with use_own_layers():
        assert count_layer_bytes(lm, tokens) == own
    numbers = {
        "what the norms read, and what they give": 4 * dim,
        "queries and keys before their norms": (heads + kv_heads) * head_dim,
        "queries, keys and values, and the output of attention": 2 * (heads + kv_heads) * head_dim,
        "gate and up": 2 * mlp_dim,
    }
    float32 = {"rows of all norms": 2 + heads + kv_heads, "of attention": heads}
    angles = 2 * head_dim
    assert fused == tokens * (2 * (sum(numbers.values()) + angles) + 4 * sum(float32.values()))
    assert own > 1.6 * fused


# Where the interpreter stands for a GPU -----------------------------------------------------------------------------

FAMILIES = ("qwen2", "qwen3", "phi3", "gemma", "olmo2")
TOLERANCE = 1e-5  # float32 through two layers, in other orders


def report() -> Iterator[tuple[str, float, float]]:
    """What is compared, how far apart it is and how far it may be."""
    for family in FAMILIES:
        torch.manual_seed(0)
        backbone = CausalLM(family=family, **SIZES).train()
        assert any(isinstance(module, FusedModule) for module in backbone.modules())
        x = torch.randn(7, SIZES["dim"], requires_grad=True)
        for name, rows in (("all rows", None), ("some rows", ROWS)):
            fused, own = compute_both(backbone, x, rows)
            yield f"{family}, {name}", measure_distance(fused, own), TOLERANCE
        with use_backends("reference"):
            assert measure_distance(compute(backbone, x, None), compute_both(backbone, x, None)[1]) == 0
        enable_gradient_checkpointing(backbone.lm, {"use_reentrant": False})
        yield (
            f"{family}, checkpointed",
            measure_distance(compute(backbone, x, None), compute_both(backbone, x, None)[1]),
            TOLERANCE,
        )
    yield from report_of_adapters()
    yield from report_of_compilation()


def compute(backbone, x, rows):
    """Hidden states, and gradients of the input and of all weights."""
    hidden = backbone.compute_hidden_states(x, POSITIONS, PACKING, rows)
    pulled = torch.linspace(-1, 1, hidden.numel()).view(hidden.shape)
    return [hidden, *torch.autograd.grad((hidden * pulled).sum(), [x, *backbone.lm.model.layers.parameters()])]


def compute_both(backbone, x, rows):
    fused = compute(backbone, x, rows)
    with use_own_layers():
        return fused, compute(backbone, x, rows)


def report_of_adapters() -> Iterator[tuple[str, float, float]]:
    """The last layer's gradients where its down projection keeps more than what it reads."""
    torch.manual_seed(0)
    backbone = CausalLM(family="qwen2", **SIZES).train()
    for layer in backbone.lm.model.layers:
        layer.mlp.down_proj = nn.Sequential(layer.mlp.down_proj, nn.Tanh())
    fused, own = compute_both(backbone, torch.randn(7, SIZES["dim"], requires_grad=True), None)
    yield "something around the down projection", measure_distance(fused, own), TOLERANCE


def report_of_compilation() -> Iterator[tuple[str, float, float]]:
    """A compiler sees one op each, forward and backward."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    torch.manual_seed(0)
    backbone = CausalLM(family="qwen2", **SIZES).train()
    backbone.lm.set_attn_implementation("sdpa")
    layer, x = backbone.lm.model.layers[0], torch.randn(1, 7, SIZES["dim"], requires_grad=True)
    angles = backbone.lm.model.rotary_emb(x, POSITIONS[None])
    seen: list[str] = []

    def record_ops(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes if "mmblocks" in str(node.target))
        return make_boxed_func(graph.forward)

    def run(layer):
        hidden = layer(x, position_embeddings=angles, attention_mask=None)
        return [hidden, *torch.autograd.grad(hidden.square().sum(), [x, *backbone.lm.model.layers[0].parameters()])]

    compiled = torch.compile(
        layer, backend=aot_autograd(fw_compiler=record_ops, bw_compiler=record_ops), fullgraph=True
    )
    yield "compiled", measure_distance(run(compiled), run(layer)), TOLERANCE
    forward = ["rms_norm", "rotary", "rms_norm", "gated_product"]
    assert seen == [f"mmblocks.{name}.default" for name in (*forward, *(f"{op}_backward" for op in reversed(forward)))]


def measure_distance(got, want):
    return max(float((g - w).abs().max() / w.abs().max().clamp(min=1e-9)) for g, w in zip(got, want, strict=True))


def test_fused_layers_compute_and_learn_what_their_own_do():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert len(found) == 3 * len(FAMILIES) + 2
    assert [line for line in found if not line[1] <= line[2]] == []


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_layers_on_a_gpu_compute_what_their_own_do(dtype):
    torch.manual_seed(0)
    backbone = CausalLM(family="qwen2", **SIZES).train().to("cuda", dtype)
    x = torch.randn(7, SIZES["dim"], device="cuda", dtype=dtype).requires_grad_()
    hidden = []
    for context in (use_backends(), use_own_layers()):
        with context:
            hidden.append(backbone.compute_hidden_states(x, POSITIONS.cuda(), PACKING.to("cuda")).float())
    # As many roundings as bfloat16's own layers have among each other.
    assert measure_distance(hidden[:1], hidden[1:]) < (1e-3 if dtype == torch.float32 else 3e-2)


if __name__ == "__main__":
    print(json.dumps(list(report())))
