"""What attention, vocabularies and sequence limits do not allow, with the setting to change."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from mmblocks.components import SpecialTokenTemplate
from mmblocks.errors import CheckpointError, MMBlocksError
from mmblocks.model.checks.faults import Fault, MissingFault
from mmblocks.pretrained import find_cached_folder, read_tokenizer
from mmblocks.shapes import Scenario, Size, VisualShape

MAX_HEAD_DIM = 256
"""Channels per head that the fused kernels of xformers take (FlashAttention's limit)."""
POSITIVE_SETTINGS = (
    "vocab_size",
    "dim",
    "depth",
    "heads",
    "kv_heads",
    "mlp_dim",
    "max_tokens",
    "norm_eps",
    "rope_theta",
)
MAX_CANVAS_SIDE = 8
"""The largest image that is tried has this many views a side."""
LONG_VIDEO_FRAMES = 3600 * 30
"""Frames of the video that is tried: an hour at 30 per second."""


@dataclass(frozen=True, slots=True)
class BackboneSizes:
    """What neighbours ask of a backbone, read from its settings when it cannot be built."""

    dim: int
    max_tokens: int

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> BackboneSizes | None:
        """None where the settings do not say, or say something impossible."""
        dim, max_tokens = settings.get("dim"), settings.get("max_tokens")
        if isinstance(dim, int) and isinstance(max_tokens, int) and dim > 0 and max_tokens > 0:
            return cls(dim, max_tokens)
        return None


# Backbones ----------------------------------------------------------------------------------------------------------


def find_backbone_faults(settings: Mapping[str, Any]) -> list[Fault]:
    """What the sizes of a language model say before it is built; settings it does not have count as unknown."""
    settings = {**settings, **_sizes_in(settings.get("further"))}
    found = [*_counts(settings), *_find_family_faults(settings.get("family")), *_placeholder(settings)]
    uncounted = {fault.key.rpartition(".")[2] for fault in found}
    known = {name: value for name, value in settings.items() if name not in uncounted}
    return [*found, *(list(_find_head_faults(known)) or _find_kv_head_faults(known))]


def _sizes_in(further: Any) -> dict[str, Any]:
    """Sizes that are given in transformers' words, in ours."""
    from mmblocks.backbones.family_config import SIZE_SETTINGS

    return {SIZE_SETTINGS[name]: value for name, value in (further or {}).items() if name in SIZE_SETTINGS}


def find_encoder_faults(key: str, settings: Mapping[str, Any]) -> list[Fault]:
    """What the attention of an encoder does not allow."""
    return list(_find_head_limit_faults(key, settings.get("dim"), settings.get("heads")))


def _counts(settings: Mapping[str, Any]) -> Iterator[Fault]:
    for name in POSITIVE_SETTINGS:
        value = settings.get(name)
        if isinstance(value, int | float) and value <= 0:
            yield Fault(f"model.backbone.{name}", f"{name}={value} is not a size.", "Write a number above 0.")


def _find_family_faults(family: str | None) -> Iterator[Fault]:
    if family is None:
        return
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as known

    if family not in known:
        close = difflib.get_close_matches(family, known, n=3)
        cure = f"Did you mean {', '.join(close)}?" if close else "Write its model_type, such as 'qwen2' or 'llama'."
        yield Fault("model.backbone.family", f"transformers has no causal language model {family!r}.", cure)


def _placeholder(settings: Mapping[str, Any]) -> Iterator[Fault]:
    placeholder, size = settings.get("placeholder_id"), settings.get("vocab_size")
    if placeholder is None or size is None or size <= 0 or 0 <= placeholder < size:
        return
    message = f"placeholder_id={placeholder} is outside the vocabulary of {size} tokens."
    yield Fault("model.backbone.placeholder_id", message, f"Write an id from 0 to {size - 1}.")


def _find_head_faults(settings: Mapping[str, Any]) -> Iterator[Fault]:
    dim, heads = settings.get("dim"), settings.get("heads")
    own = settings.get("head_dim") or _own_head_dim(settings.get("family"))
    if own:
        yield from _find_head_limit_faults("model.backbone", own * (heads or 1), heads or 1)
    if own or not dim or not heads:
        return
    key, share = "model.backbone.heads", dim // heads
    if dim % heads:
        yield Fault(
            key, f"dim={dim} channels cannot be shared by heads={heads}.", _suggest_divisors("heads", dim, heads)
        )
    elif share % 2:
        message = f"dim={dim} with heads={heads} gives {share} channels per head; rotary positions turn them in pairs."
        yield Fault(key, message, "Choose heads so that dim / heads is even.")
    else:
        yield from _find_head_limit_faults("model.backbone", dim, heads)


def _own_head_dim(family: str | None) -> int | None:
    from mmblocks.backbones.family_config import find_fixed_head_dim

    try:
        return None if family is None else find_fixed_head_dim(family)
    except MMBlocksError:  # reported as an unknown family
        return None


def _find_head_limit_faults(key: str, dim: Any, heads: Any) -> Iterator[Fault]:
    if isinstance(dim, int) and isinstance(heads, int) and heads > 0 and dim // heads > MAX_HEAD_DIM:
        message = f"dim={dim} with heads={heads} gives {dim // heads} channels per head; xformers takes {MAX_HEAD_DIM}."
        yield Fault(f"{key}.heads", message, f"Write heads={-(-dim // MAX_HEAD_DIM)} or more.")


def _find_kv_head_faults(settings: Mapping[str, Any]) -> Iterator[Fault]:
    heads, kv_heads = settings.get("heads"), settings.get("kv_heads")
    if heads and kv_heads and heads % kv_heads:
        message = f"heads={heads} cannot be shared out among kv_heads={kv_heads}."
        yield Fault("model.backbone.kv_heads", message, _suggest_divisors("kv_heads", heads, kv_heads))


def _suggest_divisors(name: str, total: int, near: int) -> str:
    best = sorted((d for d in range(1, total + 1) if total % d == 0), key=lambda d: abs(d - near))[:2]
    return f"Write {' or '.join(f'{name}={d}' for d in sorted(best))}."


def count_kv_bytes_per_token(config: Any, bytes_per_value: int = 2) -> int | None:
    """Keys and values that one token leaves in the cache; None for a backbone that is not transformers'."""
    layers, heads = getattr(config, "num_hidden_layers", None), getattr(config, "num_attention_heads", None)
    if not layers or not heads:
        return None
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 2 * layers * kv_heads * head_dim * bytes_per_value


# Media against the sequence limit -----------------------------------------------------------------------------------


def find_media_faults(tokenizers: Mapping[Scenario, Any], view_px: Size, max_tokens: int) -> list[Fault]:
    """Scenarios whose largest visual does not fit into a sequence, with a token left for text."""
    found = []
    for scenario, tokenizer in tokenizers.items():
        try:
            tokens, what = find_largest_visual(tokenizer, scenario, view_px)
        except MMBlocksError as cause:
            found.append(Fault(f"model.tokenizer.{scenario}", f"it cannot plan: {cause}"))
            continue
        if tokens >= max_tokens:
            cure = f"Raise model.backbone.max_tokens above {tokens}, or let the tokenizer make fewer tokens."
            found.append(
                Fault(
                    f"model.tokenizer.{scenario}",
                    f"{what} takes {tokens} tokens, and the backbone takes max_tokens={max_tokens} in all.",
                    cure,
                )
            )
    return found


def find_largest_visual(tokenizer: Any, scenario: Scenario, view_px: Size) -> tuple[int, str]:
    """Tokens of the largest visual of a scenario (two images where several are meant), and what it is."""
    if scenario == "video":
        video = VisualShape("video", view_px, LONG_VIDEO_FRAMES, 30.0)
        plan = tokenizer.plan(video)
        return tokenizer.count_tokens(plan), f"a long video ({len(plan.views)} frames)"
    sides = range(1, MAX_CANVAS_SIDE + 1)
    shapes = (Size(rows * view_px.height, columns * view_px.width) for rows, columns in product(sides, sides))
    tokens, size = max((tokenizer.count_tokens(tokenizer.plan(VisualShape("image", size))), size) for size in shapes)
    image = f"of {size.width}x{size.height} px (width x height)"
    return (tokens, f"an image {image}") if scenario == "image" else (2 * tokens, f"a pair of images {image}")


# Text ---------------------------------------------------------------------------------------------------------------


def find_text_faults(backbone: Any, template: Any) -> list[Fault]:
    """Whether text tokenizer, chat template and vocabulary agree, where the tokenizer is on this machine."""
    folder = find_local_tokenizer(backbone)
    if folder is None:
        return []
    try:
        text_tokenizer = backbone.text_tokenizer
    except Exception as cause:  # transformers has no error of its own for a folder without a tokenizer
        return [
            Fault("model.backbone.text_tokenizer", f"{folder} holds no text tokenizer: {cause}", "Name another folder.")
        ]
    return [*_vocabulary(backbone, text_tokenizer), *find_template_faults("model.template", template, text_tokenizer)]


def count_tokenizer_words(source: str) -> int:
    """Tokens of a text tokenizer by its hub id or folder, when it is on this machine, else 0."""
    folder = find_local_folder(source, "tokenizer_config.json")
    if folder is None:
        return 0
    try:
        return len(read_tokenizer(folder))
    except CheckpointError:  # the examination says so
        return 0


def find_local_tokenizer(backbone: Any) -> Path | None:
    """The folder of a backbone's text tokenizer when it is on this machine."""
    source = getattr(backbone, "tokenizer_source", None)
    return find_local_folder(source, "tokenizer_config.json") if source else None


def find_local_folder(source: str, file: str = "config.json") -> Path | None:
    """The folder of a checkpoint, given as a folder or as a hub id whose `file` is in the hub's cache."""
    from mmblocks.backbones.causal_lm import resolve_source

    folder = Path(resolve_source(source))
    return folder if folder.is_dir() else find_cached_folder(source, file)


def make_missing_config_fault(checkpoint: str) -> MissingFault:
    """The fault of a backbone whose sizes cannot be read."""
    message = f"its sizes stand in the config.json of {checkpoint!r}, which is not on this machine."
    cure = f"Fetch it (hf download {checkpoint} config.json), name a folder, or write family and sizes as settings."
    return MissingFault("model.backbone.checkpoint", message, cure)


def _vocabulary(backbone: Any, text_tokenizer: Any) -> Iterator[Fault]:
    if len(text_tokenizer) > backbone.vocab_size:
        yield Fault(
            "model.backbone.vocab_size",
            f"the text tokenizer writes {len(text_tokenizer)} ids and the backbone embeds vocab_size={backbone.vocab_size}.",
            f"Write vocab_size={len(text_tokenizer)} or more.",
        )


def find_template_faults(key: str, template: Any, text_tokenizer: Any) -> list[Fault]:
    """Texts of a chat template that the text tokenizer cannot write, or not as the one token that they should be."""
    try:
        stop = template.stop
    except MMBlocksError as cause:
        return [Fault(key, str(cause))]
    if isinstance(template, SpecialTokenTemplate):
        special = template.special
    else:
        special = () if any(_is_token(text, text_tokenizer) for text in stop) else stop
    unknown = [text for text in special if not _is_token(text, text_tokenizer)]
    unwritten = [text for text in stop if text not in special and not _is_written(text, text_tokenizer)]
    cure = "Choose the template that the tokenizer was made for."
    if unknown or unwritten:
        which = ", ".join(map(repr, [*unknown, *unwritten]))
        never = any(text in stop for text in [*unknown, *unwritten])
        so = "so answers would never end" if never else "so the model would read other text than it was trained on"
        return [Fault(key, f"the text tokenizer does not have {which} as a token, {so}.", cure)]
    return []


def _is_token(text: str, text_tokenizer: Any) -> bool:
    ids = text_tokenizer.encode(text, add_special_tokens=False)
    unknown = getattr(text_tokenizer, "unk_token_id", None)
    return len(ids) == 1 and (ids[0] != unknown or text == text_tokenizer.unk_token)  # which is Qwen2's end, too


def _is_written(text: str, text_tokenizer: Any) -> bool:
    return text.strip() in text_tokenizer.decode(text_tokenizer.encode(text, add_special_tokens=False))
