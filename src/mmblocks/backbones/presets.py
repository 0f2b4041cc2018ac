"""Sizes of well-known language models, from the config.json that each publishes; `**dict(...)` keeps the sizes on one line."""

from typing import Any

from mmblocks.components import backbones


def _llama3_rope(factor: float) -> dict[str, Any]:
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": factor}
    limits = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return {"rope_parameters": {**rope, **limits}}


backbones.preset(
    "qwen2_0_5b",
    of="causal_lm",
    family="qwen2",
    checkpoint="Qwen/Qwen2-0.5B-Instruct",
    **dict(dim=896, depth=24, heads=14, kv_heads=2, mlp_dim=4864),
    vocab_size=151936,
    max_tokens=32768,
    rope_theta=1000000.0,
    norm_eps=1e-06,
    tie_embeddings=True,
    placeholder_id=151646,
)
backbones.preset(
    "qwen2_1_5b",
    of="qwen2_0_5b",
    checkpoint="Qwen/Qwen2-1.5B-Instruct",
    **dict(dim=1536, depth=28, heads=12, kv_heads=2, mlp_dim=8960),
)
backbones.preset(
    "qwen2_7b",
    of="qwen2_0_5b",
    checkpoint="Qwen/Qwen2-7B-Instruct",
    **dict(dim=3584, depth=28, heads=28, kv_heads=4, mlp_dim=18944),
    vocab_size=152064,
    tie_embeddings=False,
)
backbones.preset(
    "qwen2_72b",
    of="qwen2_7b",
    checkpoint="Qwen/Qwen2-72B-Instruct",
    **dict(dim=8192, depth=80, heads=64, kv_heads=8, mlp_dim=29568),
)
backbones.preset("qwen2_5_0_5b", of="qwen2_0_5b", checkpoint="Qwen/Qwen2.5-0.5B-Instruct")
backbones.preset("qwen2_5_1_5b", of="qwen2_1_5b", checkpoint="Qwen/Qwen2.5-1.5B-Instruct")
backbones.preset(
    "qwen2_5_3b",
    of="qwen2_0_5b",
    checkpoint="Qwen/Qwen2.5-3B-Instruct",
    **dict(dim=2048, depth=36, heads=16, kv_heads=2, mlp_dim=11008),
)
backbones.preset("qwen2_5_7b", of="qwen2_7b", checkpoint="Qwen/Qwen2.5-7B-Instruct")
backbones.preset(
    "qwen2_5_14b",
    of="qwen2_7b",
    checkpoint="Qwen/Qwen2.5-14B-Instruct",
    **dict(dim=5120, depth=48, heads=40, kv_heads=8, mlp_dim=13824),
)
backbones.preset(
    "qwen2_5_32b",
    of="qwen2_7b",
    checkpoint="Qwen/Qwen2.5-32B-Instruct",
    **dict(dim=5120, depth=64, heads=40, kv_heads=8, mlp_dim=27648),
)
backbones.preset("qwen2_5_72b", of="qwen2_72b", checkpoint="Qwen/Qwen2.5-72B-Instruct")
backbones.preset(
    "qwen3_0_6b",
    of="qwen2_0_5b",
    family="qwen3",
    checkpoint="Qwen/Qwen3-0.6B",
    **dict(dim=1024, depth=28, heads=16, kv_heads=8, mlp_dim=3072),
    head_dim=128,
    max_tokens=40960,
)
backbones.preset(
    "qwen3_1_7b",
    of="qwen3_0_6b",
    checkpoint="Qwen/Qwen3-1.7B",
    **dict(dim=2048, depth=28, heads=16, kv_heads=8, mlp_dim=6144),
)
backbones.preset(
    "qwen3_4b",
    of="qwen3_0_6b",
    checkpoint="Qwen/Qwen3-4B",
    **dict(dim=2560, depth=36, heads=32, kv_heads=8, mlp_dim=9728),
)
backbones.preset(
    "qwen3_8b",
    of="qwen3_0_6b",
    checkpoint="Qwen/Qwen3-8B",
    **dict(dim=4096, depth=36, heads=32, kv_heads=8, mlp_dim=12288),
    tie_embeddings=False,
)
backbones.preset(
    "qwen3_14b",
    of="qwen3_8b",
    checkpoint="Qwen/Qwen3-14B",
    **dict(dim=5120, depth=40, heads=40, kv_heads=8, mlp_dim=17408),
)
backbones.preset(
    "qwen3_32b",
    of="qwen3_8b",
    checkpoint="Qwen/Qwen3-32B",
    **dict(dim=5120, depth=64, heads=64, kv_heads=8, mlp_dim=25600),
)
backbones.preset(
    "qwen3_30b_a3b",
    of="qwen3_8b",
    family="qwen3_moe",
    checkpoint="Qwen/Qwen3-30B-A3B",
    **dict(dim=2048, depth=48, heads=32, kv_heads=4, mlp_dim=6144),
    head_dim=None,
    further={
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
    },
)
backbones.preset(
    "vicuna_7b",
    of="causal_lm",
    family="llama",
    checkpoint="lmsys/vicuna-7b-v1.5",
    **dict(dim=4096, depth=32, heads=32, kv_heads=32, mlp_dim=11008),
    vocab_size=32000,
    max_tokens=4096,
    rope_theta=10000.0,
    norm_eps=1e-05,
    tie_embeddings=False,
)
backbones.preset(
    "vicuna_13b",
    of="vicuna_7b",
    checkpoint="lmsys/vicuna-13b-v1.5",
    **dict(dim=5120, depth=40, heads=40, kv_heads=40, mlp_dim=13824),
)
backbones.preset("llama2_7b", of="vicuna_7b", checkpoint="meta-llama/Llama-2-7b-chat-hf")
backbones.preset("llama2_13b", of="vicuna_13b", checkpoint="meta-llama/Llama-2-13b-chat-hf")
backbones.preset(
    "llama2_70b",
    of="vicuna_7b",
    checkpoint="meta-llama/Llama-2-70b-chat-hf",
    **dict(dim=8192, depth=80, heads=64, kv_heads=8, mlp_dim=28672),
)
backbones.preset(
    "llama3_8b",
    of="vicuna_7b",
    checkpoint="meta-llama/Meta-Llama-3-8B-Instruct",
    vocab_size=128256,
    kv_heads=8,
    mlp_dim=14336,
    max_tokens=8192,
    rope_theta=500000.0,
)
backbones.preset(
    "llama3_70b",
    of="llama3_8b",
    checkpoint="meta-llama/Meta-Llama-3-70B-Instruct",
    **dict(dim=8192, depth=80, heads=64, kv_heads=8, mlp_dim=28672),
)
backbones.preset(
    "llama3_1_8b",
    of="llama3_8b",
    checkpoint="meta-llama/Llama-3.1-8B-Instruct",
    max_tokens=131072,
    further=_llama3_rope(8.0),
)
backbones.preset(
    "llama3_1_70b",
    of="llama3_70b",
    checkpoint="meta-llama/Llama-3.1-70B-Instruct",
    max_tokens=131072,
    further=_llama3_rope(8.0),
)
backbones.preset(
    "llama3_2_1b",
    of="llama3_1_8b",
    checkpoint="meta-llama/Llama-3.2-1B-Instruct",
    **dict(dim=2048, depth=16, heads=32, kv_heads=8, mlp_dim=8192),
    tie_embeddings=True,
    further=_llama3_rope(32.0),
)
backbones.preset(
    "llama3_2_3b",
    of="llama3_2_1b",
    checkpoint="meta-llama/Llama-3.2-3B-Instruct",
    **dict(dim=3072, depth=28, heads=24, kv_heads=8, mlp_dim=8192),
)
backbones.preset(
    "mistral_7b",
    of="llama3_8b",
    family="mistral",
    checkpoint="mistralai/Mistral-7B-Instruct-v0.2",
    vocab_size=32000,
    max_tokens=32768,
    rope_theta=1000000.0,
    sliding_window=0,
)
backbones.preset("mistral_7b_v0_3", of="mistral_7b", checkpoint="mistralai/Mistral-7B-Instruct-v0.3", vocab_size=32768)
backbones.preset(
    "mixtral_8x7b",
    of="mistral_7b",
    family="mixtral",
    checkpoint="mistralai/Mixtral-8x7B-Instruct-v0.1",
    further={"num_local_experts": 8, "num_experts_per_tok": 2},
)
backbones.preset(
    "yi_34b",
    of="vicuna_7b",
    checkpoint="NousResearch/Nous-Hermes-2-Yi-34B",
    **dict(dim=7168, depth=60, heads=56, kv_heads=8, mlp_dim=20480),
    vocab_size=64000,
    rope_theta=5000000.0,
)
backbones.preset(
    "tinyllama_1_1b",
    of="vicuna_7b",
    checkpoint="TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    **dict(dim=2048, depth=22, heads=32, kv_heads=4, mlp_dim=5632),
    max_tokens=2048,
)
backbones.preset(
    "phi2",
    of="causal_lm",
    family="phi",
    checkpoint="microsoft/phi-2",
    **dict(dim=2560, depth=32, heads=32, kv_heads=32, mlp_dim=10240),
    vocab_size=51200,
    max_tokens=2048,
    norm_eps=1e-05,
    tie_embeddings=False,
    further={"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.4}},
)
backbones.preset(
    "phi3_mini",
    of="causal_lm",
    family="phi3",
    checkpoint="microsoft/Phi-3-mini-4k-instruct",
    **dict(dim=3072, depth=32, heads=32, kv_heads=32, mlp_dim=8192),
    vocab_size=32064,
    max_tokens=4096,
    rope_theta=10000.0,
    norm_eps=1e-05,
    tie_embeddings=False,
    sliding_window=2047,
)
backbones.preset(
    "phi3_medium",
    of="phi3_mini",
    checkpoint="microsoft/Phi-3-medium-4k-instruct",
    **dict(dim=5120, depth=40, heads=40, kv_heads=10, mlp_dim=17920),
)
backbones.preset(
    "phi4",
    of="phi3_medium",
    checkpoint="microsoft/phi-4",
    vocab_size=100352,
    max_tokens=16384,
    rope_theta=250000.0,
    sliding_window=0,
    further={"original_max_position_embeddings": 16384},
)
backbones.preset(
    "gemma_2b",
    of="causal_lm",
    family="gemma",
    checkpoint="google/gemma-2b-it",
    **dict(dim=2048, depth=18, heads=8, kv_heads=1, mlp_dim=16384),
    vocab_size=256000,
    head_dim=256,
    max_tokens=8192,
    rope_theta=10000.0,
    norm_eps=1e-06,
    tie_embeddings=True,
)
backbones.preset(
    "gemma_7b",
    of="gemma_2b",
    checkpoint="google/gemma-7b-it",
    **dict(dim=3072, depth=28, heads=16, kv_heads=16, mlp_dim=24576),
)
backbones.preset(
    "gemma2_2b",
    of="gemma_2b",
    family="gemma2",
    checkpoint="google/gemma-2-2b-it",
    **dict(dim=2304, depth=26, heads=8, kv_heads=4, mlp_dim=9216),
    sliding_window=4096,
    further={"query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
)
backbones.preset(
    "gemma2_9b",
    of="gemma2_2b",
    checkpoint="google/gemma-2-9b-it",
    **dict(dim=3584, depth=42, heads=16, kv_heads=8, mlp_dim=14336),
)
backbones.preset(
    "gemma2_27b",
    of="gemma2_2b",
    checkpoint="google/gemma-2-27b-it",
    **dict(dim=4608, depth=46, heads=32, kv_heads=16, mlp_dim=36864),
    head_dim=128,
    further={"query_pre_attn_scalar": 144, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
)
backbones.preset(
    "gemma3_270m",
    of="causal_lm",
    family="gemma3_text",
    checkpoint="google/gemma-3-270m-it",
    **dict(dim=640, depth=18, heads=4, kv_heads=1, mlp_dim=2048),
    vocab_size=262144,
    head_dim=256,
    max_tokens=32768,
    norm_eps=1e-06,
    tie_embeddings=True,
    sliding_window=512,
)
backbones.preset(
    "gemma3_1b",
    of="gemma3_270m",
    checkpoint="google/gemma-3-1b-it",
    **dict(dim=1152, depth=26, heads=4, kv_heads=1, mlp_dim=6912),
)
backbones.preset(
    "smollm_135m",
    of="causal_lm",
    family="llama",
    checkpoint="HuggingFaceTB/SmolLM-135M-Instruct",
    **dict(dim=576, depth=30, heads=9, kv_heads=3, mlp_dim=1536),
    vocab_size=49152,
    max_tokens=2048,
    rope_theta=10000.0,
    norm_eps=1e-05,
    tie_embeddings=True,
)
backbones.preset(
    "smollm_360m",
    of="smollm_135m",
    checkpoint="HuggingFaceTB/SmolLM-360M-Instruct",
    **dict(dim=960, depth=32, heads=15, kv_heads=5, mlp_dim=2560),
)
backbones.preset(
    "smollm_1_7b",
    of="smollm_135m",
    checkpoint="HuggingFaceTB/SmolLM-1.7B-Instruct",
    **dict(dim=2048, depth=24, heads=32, kv_heads=32, mlp_dim=8192),
)
backbones.preset(
    "smollm2_135m",
    of="smollm_135m",
    checkpoint="HuggingFaceTB/SmolLM2-135M-Instruct",
    max_tokens=8192,
    rope_theta=100000.0,
)
backbones.preset(
    "smollm2_360m",
    of="smollm_360m",
    checkpoint="HuggingFaceTB/SmolLM2-360M-Instruct",
    max_tokens=8192,
    rope_theta=100000.0,
)
backbones.preset(
    "smollm2_1_7b",
    of="smollm_1_7b",
    checkpoint="HuggingFaceTB/SmolLM2-1.7B-Instruct",
    max_tokens=8192,
    rope_theta=130000.0,
)
backbones.preset(
    "smollm3_3b",
    of="causal_lm",
    family="smollm3",
    checkpoint="HuggingFaceTB/SmolLM3-3B",
    **dict(dim=2048, depth=36, heads=16, kv_heads=4, mlp_dim=11008),
    vocab_size=128256,
    max_tokens=65536,
    rope_theta=5000000.0,
    norm_eps=1e-06,
    tie_embeddings=True,
)
backbones.preset(
    "olmo_1b",
    of="causal_lm",
    family="olmo",
    checkpoint="allenai/OLMo-1B-hf",
    **dict(dim=2048, depth=16, heads=16, kv_heads=16, mlp_dim=8192),
    vocab_size=50304,
    max_tokens=2048,
    rope_theta=10000.0,
    tie_embeddings=True,
)
backbones.preset(
    "olmo_7b",
    of="olmo_1b",
    checkpoint="allenai/OLMo-7B-Instruct-hf",
    **dict(dim=4096, depth=32, heads=32, kv_heads=32, mlp_dim=11008),
    tie_embeddings=False,
)
backbones.preset(
    "olmo2_1b",
    of="causal_lm",
    family="olmo2",
    checkpoint="allenai/OLMo-2-0425-1B-Instruct",
    **dict(dim=2048, depth=16, heads=16, kv_heads=16, mlp_dim=8192),
    vocab_size=100352,
    max_tokens=4096,
    rope_theta=500000.0,
    norm_eps=1e-06,
    tie_embeddings=False,
)
backbones.preset(
    "olmo2_7b",
    of="olmo2_1b",
    checkpoint="allenai/OLMo-2-1124-7B-Instruct",
    **dict(dim=4096, depth=32, heads=32, kv_heads=32, mlp_dim=11008),
)
backbones.preset(
    "olmo2_13b",
    of="olmo2_1b",
    checkpoint="allenai/OLMo-2-1124-13B-Instruct",
    **dict(dim=5120, depth=40, heads=40, kv_heads=40, mlp_dim=13824),
)
backbones.preset(
    "olmo2_32b",
    of="olmo2_1b",
    checkpoint="allenai/OLMo-2-0325-32B-Instruct",
    **dict(dim=5120, depth=64, heads=40, kv_heads=8, mlp_dim=27648),
)
backbones.preset(
    "qwen1_5_0_5b",
    of="qwen2_0_5b",
    checkpoint="Qwen/Qwen1.5-0.5B-Chat",
    **dict(dim=1024, depth=24, heads=16, kv_heads=16, mlp_dim=2816),
)
backbones.preset(
    "qwen1_5_7b",
    of="qwen1_5_0_5b",
    checkpoint="Qwen/Qwen1.5-7B-Chat",
    **dict(dim=4096, depth=32, heads=32, kv_heads=32, mlp_dim=11008),
    tie_embeddings=False,
)
backbones.preset(
    "qwen1_5_14b",
    of="qwen1_5_7b",
    checkpoint="Qwen/Qwen1.5-14B-Chat",
    **dict(dim=5120, depth=40, heads=40, kv_heads=40, mlp_dim=13696),
    vocab_size=152064,
)
backbones.preset(
    "qwen1_5_32b", of="qwen1_5_14b", checkpoint="Qwen/Qwen1.5-32B-Chat", depth=64, kv_heads=8, mlp_dim=27392
)
