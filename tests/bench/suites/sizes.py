"""Models that are measured, from one that a test builds in a moment to the released ones, and what is shown to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from mmblocks.errors import ConfigError
from mmblocks.model.build import build_from_spec, set_dtype
from mmblocks.model.generate import StopSequences
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import ModelSpec
from mmblocks.settings import format_suggestion
from mmblocks.shapes import Size

TEXT_TOKENIZER = "mmblocks:tinyworld_text"
"""Comes with the package, so that nothing is fetched; a wider vocabulary only leaves rows that no text uses."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What the scenarios show: frames of a video and a lone image of the size of a view, an image that is tiled, one of
    several images and how many of them.
    """

    view: Size
    frames: int
    picture: Size
    one_of_several: Size
    several: int


@dataclass(frozen=True, slots=True)
class Scale:
    """A size of model: settings of the encoder and the backbone, and what is shown to it.

    learned: what is shown in training, where that is less: the peer keeps every row's logits and all of its padding.
    """

    name: str
    encoder: Mapping[str, Any]
    backbone: Mapping[str, Any]
    shown: Shown
    pinpoints: str = "(1x1),...,(6x6)"
    learned: Shown | None = None

    @property
    def spec(self) -> ModelSpec:
        """LLaVA-OneVision at this size, as transformers' llava_onevision computes it."""
        anyres = {"name": "anyres", "pinpoints": self.pinpoints, "max_tiles": 9, "rounding": "transformers"}
        return ModelSpec.from_dict(
            {
                "encoder": dict(self.encoder),
                "projector": {"name": "mlp", "depth": 2},
                "pooling": {"name": "bilinear", "stride": 2},
                "tokenizer": {
                    "image": anyres,
                    "multi_image": {"name": "pad", "newline": True},
                    "video": {"name": "frames", "newline": "one_token", "max_frames": self.shown.frames},
                },
                "backbone": {**self.backbone, "text_tokenizer": TEXT_TOKENIZER, "placeholder_id": 0},
                "template": "chatml",
            }
        )


def _make_siglip(image_px: int, dim: int, depth: int, heads: int, mlp_dim: int) -> dict[str, Any]:
    """`depth` blocks, the last of them unused, as in LLaVA-OneVision."""
    return {
        "name": "siglip",
        "image_px": image_px,
        "dim": dim,
        "depth": depth,
        "heads": heads,
        "mlp_dim": mlp_dim,
        "layer": -2,
    }


def _make_qwen2(dim: int, depth: int, heads: int, kv_heads: int, mlp_dim: int, vocab_size: int) -> dict[str, Any]:
    return {
        "name": "causal_lm",
        "family": "qwen2",
        "vocab_size": vocab_size,
        "dim": dim,
        "depth": depth,
        "heads": heads,
        "kv_heads": kv_heads,
        "mlp_dim": mlp_dim,
        "max_tokens": 32768,
        "rope_theta": 1000000.0,
        "tie_embeddings": True,
    }


LEAST, TINY, SMALL = "least", "tiny", "small"
VIEW = Size(384, 384)
LIKE_CPU = Shown(VIEW, frames=8, picture=Size(600, 800), one_of_several=Size(480, 640), several=6)
LIKE_H200 = Shown(VIEW, frames=32, picture=Size(864, 1152), one_of_several=Size(480, 640), several=12)
SIZES = {
    scale.name: scale
    for scale in (
        Scale(
            LEAST,
            _make_siglip(56, dim=48, depth=3, heads=2, mlp_dim=64),
            _make_qwen2(dim=32, depth=2, heads=4, kv_heads=2, mlp_dim=64, vocab_size=1000),
            Shown(Size(56, 56), frames=2, picture=Size(90, 116), one_of_several=Size(60, 70), several=2),
        ),
        Scale(
            TINY,
            _make_siglip(384, dim=288, depth=3, heads=4, mlp_dim=1152),
            _make_qwen2(dim=256, depth=2, heads=4, kv_heads=2, mlp_dim=1024, vocab_size=8000),
            LIKE_CPU,
        ),
        Scale(
            SMALL,
            _make_siglip(384, dim=288, depth=5, heads=4, mlp_dim=1152),
            _make_qwen2(dim=256, depth=6, heads=4, kv_heads=2, mlp_dim=1024, vocab_size=8000),
            LIKE_CPU,
        ),
        Scale(
            "0_5b",
            {"name": "siglip_so400m_384"},
            {"name": "qwen2_0_5b"},
            LIKE_H200,
            learned=replace(LIKE_H200, frames=8, picture=Size(768, 1024)),
        ),
        Scale(
            "7b",
            {"name": "siglip_so400m_384"},
            {"name": "qwen2_7b"},
            LIKE_H200,
            learned=replace(LIKE_H200, frames=4, picture=VIEW),
        ),
    )
}


def find_scale(name: str) -> Scale:
    """A size by name. Raises `ConfigError` for one that does not exist."""
    if name not in SIZES:
        raise ConfigError(f"no size is called {name!r}; there are {', '.join(SIZES)}.{format_suggestion(name, SIZES)}")
    return SIZES[name]


def make_model(scale: Scale, device: torch.device, dtype: torch.dtype, seed: int = 0) -> OneVision:
    """The model with random weights, made where it will run. It writes ordinary words only and never stops by itself."""
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        model = build_from_spec(scale.spec)
    model = set_dtype(model.to(device), dtype).eval()
    _allow_ordinary_words_only(model)
    return model


@torch.no_grad()
def _allow_ordinary_words_only(model: OneVision) -> None:
    """Zero the other rows of the vocabulary. Some word is always above 0, so none of these is ever the likeliest."""
    tokenizer = model.backbone.text_tokenizer
    words = sorted(
        set(tokenizer.get_vocab().values())
        - set(tokenizer.all_special_ids)
        - set(StopSequences.from_model(model).tokens)
    )
    head = model.backbone.lm.get_output_embeddings().weight
    kept = head[words]
    head.zero_()
    head[words] = kept
