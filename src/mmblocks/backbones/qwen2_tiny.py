import torch
from torch import nn

from mmblocks.backbones.causal_lm import CausalLM
from mmblocks.components import backbones


@backbones.register(
    "qwen2_tiny",
    source="https://arxiv.org/abs/2407.10671",
    tiny={"vocab_size": 512, "dim": 32, "depth": 2, "heads": 4, "kv_heads": 2, "mlp_dim": 48},
    verified_against="transformers Qwen2ForCausalLM (LlavaOnevision)",
)
class TinyQwen2(CausalLM):
    """Qwen2's architecture at laptop size with TinyWorld's vocabulary, initialised so that a narrow model learns fast.

    transformers draws every matrix with a standard deviation of 0.02, which suits widths in the thousands. Here it is
    dim ** -0.5, and 0.2 for embeddings; projections into the residual stream are scaled by (2 * depth) ** -0.5 (as in
    GPT-2).
    """

    def __init__(
        self,
        vocab_size: int = 512,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        kv_heads: int = 2,
        mlp_dim: int = 352,
        max_tokens: int = 2048,
        text_tokenizer: str | None = "mmblocks:tinyworld_text",
        placeholder_id: int = 0,
        checkpoint: str | None = None,
    ) -> None:
        super().__init__(
            family="qwen2",
            checkpoint=checkpoint,
            text_tokenizer=text_tokenizer,
            vocab_size=vocab_size,
            dim=dim,
            depth=depth,
            heads=heads,
            kv_heads=kv_heads,
            mlp_dim=mlp_dim,
            max_tokens=max_tokens,
            tie_embeddings=True,
            placeholder_id=placeholder_id,
        )
        if torch.get_default_device().type == "meta":  # weights drawn there cost time and hold no numbers
            return
        for module in self.lm.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=self.dim**-0.5)
        nn.init.normal_(self.lm.get_input_embeddings().weight, std=0.2)
        with torch.no_grad():
            for layer in self.lm.get_decoder().layers:
                for residual in (layer.self_attn.o_proj, layer.mlp.down_proj):
                    residual.weight.mul_((2 * depth) ** -0.5)
