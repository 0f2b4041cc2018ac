"""A tiny random `llava_onevision` checkpoint of transformers, made here, with its processor: 112 pixels, 8x8 cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    Qwen2Config,
    Qwen2Tokenizer,
    SiglipVisionConfig,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

SIDE_PX, PATCH_PX = 112, 14
PINPOINTS = [[SIDE_PX * rows, SIDE_PX * columns] for rows in range(1, 7) for columns in range(1, 7)]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<image>", "<video>"]
VOCABULARY = 320  # 256 bytes, <|endoftext|>, the four above, and rows that no token uses, as Qwen's tables have


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def disturbed(model: nn.Module, seed: int = 11) -> Any:
    """Random in every tensor, so that no fresh LayerNorm or zero bias can hide a tensor that was not loaded."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.15 * torch.randn(p.shape, generator=generator))
    return model.eval()


def tokenizer(special: Sequence[str] = SPECIAL) -> Qwen2Tokenizer:
    """Qwen2's tokenizer without merges: every byte is a token."""
    made = Qwen2Tokenizer(vocab={c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}, merges=[])
    made.add_special_tokens({"additional_special_tokens": list(special)})
    return made


def processor() -> LlavaOnevisionProcessor:
    pixels: dict[str, Any] = {
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": {"height": SIDE_PX, "width": SIDE_PX},
    }
    return LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessorPil(**pixels, image_grid_pinpoints=PINPOINTS),
        tokenizer(),
        LlavaOnevisionVideoProcessor(**pixels),
        num_image_tokens=(SIDE_PX // PATCH_PX) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
    )


def config(**changes: Any) -> LlavaOnevisionConfig:
    ids = tokenizer().get_vocab()
    text = {"tie_word_embeddings": changes.pop("tied", False)}
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIDE_PX,
        patch_size=PATCH_PX,
        vision_use_head=False,
    )
    language = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        **text,
    )
    settings = {
        "image_token_index": ids["<image>"],
        "video_token_index": ids["<video>"],
        "image_grid_pinpoints": PINPOINTS,
        **changes,
    }
    return LlavaOnevisionConfig(vision_config=vision, text_config=language, **settings)


@pytest.fixture(scope="session")
def make_tokenizer() -> Any:
    """Qwen2's tokenizer with other special tokens: `make_tokenizer(["<|im_end|>"])`."""
    return tokenizer


@pytest.fixture(scope="session")
def make_theirs() -> Any:
    """transformers' model with random weights: `make_theirs(tied=True, vision_feature_layer=-2)`."""

    def make(**changes: Any) -> Any:
        torch.manual_seed(0)
        return disturbed(LlavaOnevisionForConditionalGeneration(config(**changes)))

    return make


@pytest.fixture(scope="session")
def theirs(make_theirs: Any) -> Any:
    return make_theirs()


@pytest.fixture(scope="session")
def their_processor() -> LlavaOnevisionProcessor:
    return processor()


@pytest.fixture(scope="session")
def checkpoint(theirs: Any, their_processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model and its processor on disk, as transformers writes a freshly built model."""
    folder = tmp_path_factory.mktemp("llava_onevision")
    theirs.save_pretrained(folder)
    their_processor.save_pretrained(folder)
    return folder
