"""Whole systems of the LLaVA family as choices of components: what was published, ready to have a part swapped.

A system is no class and has no code of its own; every line below is a name from a registry.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mmblocks.errors import UnknownComponentError
from mmblocks.model.spec import ModelSpec
from mmblocks.registry import Spec
from mmblocks.settings import format_suggestion

Choices = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class System:
    """A published system: what all its sizes share, and what each size chooses beside that. The first is the usual one."""

    name: str
    summary: str
    source: str
    shared: Choices
    sizes: Mapping[str, Choices]

    def make_spec(self, size: str) -> ModelSpec:
        return ModelSpec.from_dict(merge_choices(self.shared, self.sizes[size]))


def merge_choices(base: Choices, over: Choices) -> dict[str, Any]:
    """Choices with others laid over them, tokenizers scenario by scenario."""
    tokenizer = {**base.get("tokenizer", {}), **over.get("tokenizer", {})}
    return {**base, **over, **({"tokenizer": tokenizer} if tokenizer else {})}


def compose(system: str, /, **parts: Spec | Mapping[str, Spec]) -> ModelSpec:
    """A system with parts swapped: `compose("llava_next/vicuna_7b", projector="gated")`.

    Without a size it is the usual one. `tokenizer={"video": ...}` swaps a single scenario's. Build it with
    `mmblocks.build`, weigh it with `mmblocks.model.budget.plan`. Raises `UnknownComponentError` for a name that is none.
    """
    found, size = find_system(system)
    return ModelSpec.from_dict(merge_choices(merge_choices(found.shared, found.sizes[size]), parts))


def find_system(name: str) -> tuple[System, str]:
    """A system and a size by `system` or `system/size`."""
    system, _, size = name.partition("/")
    if system not in SYSTEMS:
        raise UnknownComponentError(f"no system is called {name!r}.{format_suggestion(system, SYSTEMS)}")
    found = SYSTEMS[system]
    size = size or next(iter(found.sizes))
    if size not in found.sizes:
        raise UnknownComponentError(
            f"the system {system!r} has no size {size!r}.{format_suggestion(size, found.sizes)}"
        )
    return found, size


def list_system_names() -> Iterator[str]:
    """Every `system/size`."""
    return (f"{system.name}/{size}" for system in SYSTEMS.values() for size in system.sizes)


def _use_for_images(tokenizer: str) -> dict[str, str]:
    return {"image": tokenizer, "multi_image": tokenizer}


# Vicuna's 4096 tokens hold no two AnyRes images and no 32 frames; there several images are one view each.
VICUNA = {"vicuna_7b": {"backbone": "vicuna_7b"}, "vicuna_13b": {"backbone": "vicuna_13b"}}

SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        System(
            "llava_v1",
            "CLIP at 224 px, one linear map, one view",
            "https://arxiv.org/abs/2304.08485",
            {
                "encoder": "clip_vit_l_224",
                "projector": "linear",
                "pooling": "none",
                "tokenizer": {**_use_for_images("square"), "video": "frames_8_plain"},
                "template": "llava_v1",
            },
            {**VICUNA, "llama2_7b": {"backbone": "llama2_7b", "template": "llava_llama_2"}},
        ),
        System(
            "llava_1_5",
            "CLIP at 336 px, two-layer MLP, one padded view",
            "https://arxiv.org/abs/2310.03744",
            {
                "encoder": "clip_vit_l_336",
                "projector": "mlp",
                "pooling": "average",
                "tokenizer": {**_use_for_images("pad"), "video": "frames_8_plain"},
                "template": "vicuna_v1",
            },
            VICUNA,
        ),
        System(
            "llava_next",
            "CLIP at 336 px, two-layer MLP, AnyRes over five canvases",
            "https://llava-vl.github.io/blog/2024-01-30-llava-next/",
            {
                "encoder": "clip_vit_l_336",
                "projector": "mlp",
                "pooling": "average",
                "tokenizer": {"image": "anyres_next", "multi_image": "pad", "video": "frames_8_plain"},
                "template": "vicuna_v1",
            },
            {
                **VICUNA,
                "mistral_7b": {"backbone": "mistral_7b", "template": "mistral_instruct"},
                "llama3_8b": {"backbone": "llama3_8b", "template": "llava_llama_3"},
                "yi_34b": {"backbone": "yi_34b", "template": "chatml_direct"},
            },
        ),
        System(
            "llava_next_video",
            "LLaVA-NeXT shown videos: frames pooled by two",
            "https://llava-vl.github.io/blog/2024-04-30-llava-next-video/",
            {
                "encoder": "clip_vit_l_336",
                "projector": "mlp",
                "pooling": "average",
                "tokenizer": {"image": "anyres_next", "multi_image": "pad", "video": "frames_16_plain"},
                "template": "vicuna_v1",
            },
            {
                "vicuna_7b": VICUNA["vicuna_7b"],
                "qwen1_5_32b": {
                    "backbone": "qwen1_5_32b",
                    "template": "qwen_1_5",
                    "tokenizer": {"video": "frames_lines"},
                },
            },
        ),
        System(
            "llava_next_interleave",
            "SigLIP at 384 px, every image and frame one view in the prompt's order",
            "https://arxiv.org/abs/2407.07895",
            {
                "encoder": "siglip_so400m_384",
                "projector": "mlp",
                "pooling": "none",
                "tokenizer": {"image": "anyres_next", "multi_image": "pad_newline", "video": "frames_as_images"},
                "template": "qwen_1_5",
            },
            {
                "qwen1_5_7b": {"backbone": "qwen1_5_7b"},
                "qwen1_5_0_5b": {"backbone": "qwen1_5_0_5b"},
                "qwen1_5_14b": {"backbone": "qwen1_5_14b"},
            },
        ),
        System(
            "llava_onevision",
            "SigLIP at 384 px, two-layer MLP, AnyRes-max-9, pooled frames",
            "https://arxiv.org/abs/2408.03326",
            {"encoder": "siglip_so400m_384", "projector": "mlp", "pooling": "bilinear", "template": "qwen_2"},
            {
                "qwen2_7b": {"backbone": "qwen2_7b", "tokenizer": {}},
                "qwen2_0_5b": {"backbone": "qwen2_0_5b", "tokenizer": {}},
                "qwen2_72b": {"backbone": "qwen2_72b", "tokenizer": {}},
            },
        ),
        System(
            "blip2",
            "BLIP-2's Q-Former in OneVision's place for a projector: 32 tokens a view",
            "https://arxiv.org/abs/2301.12597",
            {
                "encoder": "blip2_vit_g_224",
                "projector": "qformer",
                "pooling": "none",
                "tokenizer": {**_use_for_images("square"), "video": "frames_plain"},
                "template": "qwen_2",
            },
            {"qwen2_7b": {"backbone": "qwen2_7b"}, "qwen2_0_5b": {"backbone": "qwen2_0_5b"}},
        ),
        System(
            "instructblip",
            "InstructBLIP's Q-Former, which reads the question, before Vicuna",
            "https://arxiv.org/abs/2305.06500",
            {
                "encoder": "blip2_vit_g_224",
                "projector": "instruct_qformer",
                "pooling": "none",
                "tokenizer": {**_use_for_images("square"), "video": "frames_plain"},
                "template": "vicuna_v1",
            },
            VICUNA,
        ),
    )
}
