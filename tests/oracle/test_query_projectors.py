"""Q-Formers and Idefics2's connector against whole models of transformers, random and made here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    Idefics2Config,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    OPTConfig,
)
from transformers.models.idefics2.modeling_idefics2 import Idefics2Connector

from mmblocks.batch import Instructions
from mmblocks.components import projectors
from mmblocks.shapes import Size

VISION: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "layer_norm_eps": 1e-5,
}
QFORMER: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "cross_attention_frequency": 2,
    "encoder_hidden_size": 24,
}
TEXT = OPTConfig(
    vocab_size=30,
    hidden_size=12,
    ffn_dim=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=16,
    word_embed_proj_dim=12,
)
OURS = {"queries": 5, "dim": 16, "depth": 4, "heads": 2, "mlp_dim": 20, "cross_every": 2}
WORDS = {"vocab_size": 40, "max_text_tokens": 8, "text_tokenizer": "mmblocks:tinyworld_text"}
CELLS = Size(1, 5)  # CLS and four patches: BLIP's Q-Former reads them all
TOLERANCE = {"rtol": 0, "atol": 1e-5}  # fp32: other kernels sum in another order


def disturbed(model: nn.Module) -> Any:
    """Random in every tensor, so that no fresh LayerNorm or zero query can hide a tensor that was not loaded."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return model.eval()


def blip2() -> Any:
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**VISION),
        qformer_config=Blip2QFormerConfig(**QFORMER),
        text_config=TEXT,
        num_query_tokens=5,
    )
    return disturbed(Blip2ForConditionalGeneration(config))


def instructblip() -> Any:
    config = InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(**VISION),
        qformer_config=InstructBlipQFormerConfig(**QFORMER, vocab_size=40, max_position_embeddings=8),
        text_config=TEXT,
        num_query_tokens=5,
    )
    return disturbed(InstructBlipForConditionalGeneration(config))


def ours(theirs: Any, spec: dict[str, Any], unread: tuple[str, ...] = ()) -> Any:
    """A projector with the tensors of the whole model that are its own, every one of them by name."""
    moved = {"vision_model.post_layernorm.": "body.ln_vision.", "language_projection.": "head."}
    moved |= {"qformer.": "body.qformer.", "query_tokens": "body.query_tokens"}
    state = {
        new + name.removeprefix(old): tensor
        for name, tensor in theirs.state_dict().items()
        for old, new in moved.items()
        if name.startswith(old) and not name.startswith(unread)
    }
    projector = projectors.build(spec, in_dim=24, out_dim=12, grid=CELLS).eval()
    projector.load_state_dict(state)
    return projector


def features(theirs: Any, pixels: Tensor) -> Tensor:
    """What the vision model has before its last norm, as a row of cells."""
    vision = theirs.vision_model
    return vision.encoder(vision.embeddings(pixels)).last_hidden_state.unsqueeze(1)


@torch.no_grad()
def test_the_qformer_is_blip_2s() -> None:
    theirs, pixels = blip2(), torch.randn(3, 3, 28, 28)
    projector = ours(theirs, {"name": "qformer", **OURS})

    got = projector(features(theirs, pixels)).squeeze(1)

    torch.testing.assert_close(got, theirs.get_image_features(pixels).pooler_output, **TOLERANCE)


UNREAD = ("qformer.encoder.layer.3.intermediate.", "qformer.encoder.layer.3.output.")


@torch.no_grad()
@pytest.mark.parametrize("questions", [[[7, 3, 9]] * 3, [[7, 3, 9, 1], [4], [2, 39]], [[5, 6], [], [8] * 8]])
def test_the_instructed_qformer_is_instructblips(questions: list[list[int]]) -> None:
    theirs, pixels = instructblip(), torch.randn(3, 3, 28, 28)
    projector = ours(theirs, {"name": "instruct_qformer", **OURS, **WORDS}, UNREAD)
    asked = Instructions.from_ids([torch.tensor(ids, dtype=torch.int64) for ids in questions])

    got = projector(features(theirs, pixels), asked).squeeze(1)

    longest = max(map(len, questions))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in questions])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in questions])
    torch.testing.assert_close(got, theirs.get_image_features(pixels, ids, mask).pooler_output, **TOLERANCE)


@torch.no_grad()
def test_without_words_the_queries_are_those_of_instructblip_with_all_words_masked() -> None:
    theirs, pixels = instructblip(), torch.randn(2, 3, 28, 28)
    projector = ours(theirs, {"name": "instruct_qformer", **OURS, **WORDS}, UNREAD)
    nothing = torch.zeros(2, 3, dtype=torch.int64)

    want = theirs.get_image_features(pixels, nothing, nothing).pooler_output

    for asked in (None, Instructions.make_empty(2)):
        torch.testing.assert_close(projector(features(theirs, pixels), asked).squeeze(1), want, **TOLERANCE)


@torch.no_grad()
def test_the_perceiver_of_idefics2_is_transformers_connector() -> None:
    perceiver = {"resampler_n_latents": 5, "resampler_depth": 2, "resampler_n_heads": 4, "resampler_head_dim": 6}
    config = Idefics2Config(
        vision_config={"hidden_size": 24},
        text_config={"model_type": "mistral", "hidden_size": 12, "intermediate_size": 28},
        perceiver_config={**perceiver, "hidden_size": 12, "num_key_value_heads": 2},
    )
    theirs = disturbed(Idefics2Connector(config))
    sizes = {"queries": 5, "depth": 2, "heads": 4, "head_dim": 6, "kv_heads": 2, "mlp_dim": 28}
    projector = projectors.build({"name": "idefics2_perceiver", **sizes}, in_dim=24, out_dim=12, grid=Size(2, 3))
    projector.body.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 2, 3, 24)

    want = theirs(x.flatten(1, 2), torch.ones(3, 6, dtype=torch.bool))

    torch.testing.assert_close(projector(x).squeeze(1), want, **TOLERANCE)
