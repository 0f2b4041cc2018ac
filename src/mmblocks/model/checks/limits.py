"""What attention, vocabularies and sequence limits do not allow, with the setting to change."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmblocks.components import Backbone, ChatTemplate, SpecialTokenTemplate, VisionTokenizer
from mmblocks.errors import CheckpointError, MMBlocksError
from mmblocks.faults import Fault, join_key
from mmblocks.pretrained import find_cached_folder, read_tokenizer
from mmblocks.shapes import Scenario, Size, VisualShape

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from mmblocks.backbones.causal_lm import CausalLM

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
    """What neighbours need of a backbone, read from its settings when it cannot be built."""

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
    from mmblocks.backbones.family_config import SIZE_SETTINGS

    further = {SIZE_SETTINGS[k]: v for k, v in (settings.get("further") or {}).items() if k in SIZE_SETTINGS}
    settings = {**settings, **further}
    faults = list(_find_setting_faults(settings))
    known = {name: value for name, value in settings.items() if name not in {fault.key for fault in faults}}
    faults += list(_find_head_faults(known)) or _find_kv_head_faults(known)
    return [fault.move_below("model.backbone") for fault in faults]


def _find_setting_faults(settings: Mapping[str, Any]) -> Iterator[Fault]:
    """Sizes that are none, a family that transformers has not, a placeholder that is no token."""
    for name in POSITIVE_SETTINGS:
        value = settings.get(name)
        if isinstance(value, int | float) and value <= 0:
            yield Fault(name, f"{name}={value} is not a size.", "Write a number above 0.")
    if (family := settings.get("family")) is not None:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as known

        if family not in known:
            close = difflib.get_close_matches(family, known, n=3)
            cure = f"Did you mean {', '.join(close)}?" if close else "Write its model_type, such as 'qwen2' or 'llama'."
            yield Fault("family", f"transformers has no causal language model {family!r}.", cure)
    placeholder, size = settings.get("placeholder_id"), settings.get("vocab_size")
    if placeholder is not None and size is not None and size > 0 and not 0 <= placeholder < size:
        message = f"placeholder_id={placeholder} is outside the vocabulary of {size} tokens."
        yield Fault("placeholder_id", message, f"Write an id from 0 to {size - 1}.")


def _find_head_faults(settings: Mapping[str, Any]) -> Iterator[Fault]:
    from mmblocks.backbones.family_config import find_fixed_head_dim

    dim, heads, head_dim = settings.get("dim"), settings.get("heads"), settings.get("head_dim")
    if not head_dim and settings.get("family") is not None:
        with suppress(MMBlocksError):  # an unknown family, which is a fault of its own
            head_dim = find_fixed_head_dim(settings["family"])
    if head_dim:
        yield from find_head_limit_faults("", {"dim": head_dim * (heads or 1), "heads": heads or 1})
        return
    if not dim or not heads:
        return
    share = dim // heads
    if dim % heads:
        cure = _suggest_divisors("heads", dim, heads)
        yield Fault("heads", f"dim={dim} channels cannot be shared by heads={heads}.", cure)
    elif share % 2:
        message = f"dim={dim} with heads={heads} gives {share} channels per head; rotary positions turn them in pairs."
        yield Fault("heads", message, "Choose heads so that dim / heads is even.")
    else:
        yield from find_head_limit_faults("", settings)


def _find_kv_head_faults(settings: Mapping[str, Any]) -> list[Fault]:
    heads, kv_heads = settings.get("heads"), settings.get("kv_heads")
    if not heads or not kv_heads or heads % kv_heads == 0:
        return []
    message = f"heads={heads} cannot be shared out among kv_heads={kv_heads}."
    return [Fault("kv_heads", message, _suggest_divisors("kv_heads", heads, kv_heads))]


def find_head_limit_faults(key: str, settings: Mapping[str, Any]) -> Iterator[Fault]:
    """More channels per head than the kernels of attention take."""
    dim, heads = settings.get("dim"), settings.get("heads")
    if isinstance(dim, int) and isinstance(heads, int) and heads > 0 and dim // heads > MAX_HEAD_DIM:
        message = f"dim={dim} with heads={heads} gives {dim // heads} channels per head; xformers takes {MAX_HEAD_DIM}."
        yield Fault(join_key(key, "heads"), message, f"Write heads={-(-dim // MAX_HEAD_DIM)} or more.")


def _suggest_divisors(name: str, total: int, near: int) -> str:
    best = sorted((d for d in range(1, total + 1) if total % d == 0), key=lambda d: abs(d - near))[:2]
    return f"Write {' or '.join(f'{name}={d}' for d in sorted(best))}."


def count_kv_bytes_per_token(config: PreTrainedConfig | None, bytes_per_value: int = 2) -> int | None:
    """Keys and values that one token leaves in the cache; None for a backbone that is not transformers'."""
    layers, heads = getattr(config, "num_hidden_layers", None), getattr(config, "num_attention_heads", None)
    if config is None or not layers or not heads:
        return None
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 2 * layers * kv_heads * head_dim * bytes_per_value


# Media against the sequence limit -----------------------------------------------------------------------------------


def find_media_faults(tokenizers: Mapping[Scenario, Any], view_px: Size, max_tokens: int) -> list[Fault]:
    """Scenarios whose largest visual does not fit into a sequence, with a token left for text.

    Several images of which one fits are a warning: smaller ones may fit together, as in LLaVA-NeXT with Vicuna.
    """
    found = []
    for scenario, tokenizer in tokenizers.items():
        try:
            tokens, what = find_largest_visual(tokenizer, scenario, view_px)
        except MMBlocksError as cause:
            found.append(Fault(f"model.tokenizer.{scenario}", f"it cannot plan: {cause}"))
            continue
        if tokens >= max_tokens:
            cure = f"Raise model.backbone.max_tokens above {tokens}, or let the tokenizer make fewer tokens."
            message = f"{what} takes {tokens} tokens, and the backbone takes max_tokens={max_tokens} in all."
            is_one_enough = scenario == "multi_image" and tokens < 2 * max_tokens
            found.append(Fault(f"model.tokenizer.{scenario}", message, cure, "warning" if is_one_enough else "error"))
    return found


def find_largest_visual(tokenizer: VisionTokenizer[Any], scenario: Scenario, view_px: Size) -> tuple[int, str]:
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


def find_text_faults(backbone: CausalLM, template: ChatTemplate) -> list[Fault]:
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
    faults, words = find_template_faults("model.template", template, text_tokenizer), len(text_tokenizer)
    if words > backbone.vocab_size:
        message = f"the text tokenizer writes {words} ids and the backbone embeds vocab_size={backbone.vocab_size}."
        faults.insert(0, Fault("model.backbone.vocab_size", message, f"Write vocab_size={words} or more."))
    return faults


def count_tokenizer_words(source: str) -> int:
    """Tokens of a text tokenizer by its hub id or folder, when it is on this machine, else 0."""
    folder = find_local_folder(source, "tokenizer_config.json")
    if folder is None:
        return 0
    try:
        return len(read_tokenizer(folder))
    except CheckpointError:  # the dry build says so
        return 0


def find_local_tokenizer(backbone: Backbone | BackboneSizes) -> Path | None:
    """The folder of a backbone's text tokenizer when it is on this machine."""
    source = getattr(backbone, "tokenizer_source", None)
    return find_local_folder(source, "tokenizer_config.json") if source else None


def find_local_folder(source: str, file: str = "config.json") -> Path | None:
    """The folder of a checkpoint, given as a folder or as a hub id whose `file` is in the hub's cache."""
    from mmblocks.backbones.causal_lm import resolve_source

    folder = Path(resolve_source(source))
    return folder if folder.is_dir() else find_cached_folder(source, file)


def find_template_faults(key: str, template: ChatTemplate, text_tokenizer: PreTrainedTokenizerBase) -> list[Fault]:
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
    read_back = {text: text_tokenizer.decode(text_tokenizer.encode(text, add_special_tokens=False)) for text in stop}
    unwritten = [text for text in stop if text not in special and text.strip() not in read_back[text]]
    cure = "Choose the template that the tokenizer was made for."
    if unknown or unwritten:
        which = ", ".join(map(repr, [*unknown, *unwritten]))
        never = any(text in stop for text in [*unknown, *unwritten])
        so = "so answers would never end" if never else "so the model would read other text than it was trained on"
        return [Fault(key, f"the text tokenizer does not have {which} as a token, {so}.", cure)]
    return []


def _is_token(text: str, text_tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = text_tokenizer.encode(text, add_special_tokens=False)
    unknown = getattr(text_tokenizer, "unk_token_id", None)
    return len(ids) == 1 and (ids[0] != unknown or text == text_tokenizer.unk_token)  # which is Qwen2's end, too
