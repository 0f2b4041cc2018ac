"""Config entries of transformers' model families: names of sizes, rotary settings, special token ids."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from mmblocks.errors import ConfigError
from mmblocks.faults import Fault
from mmblocks.settings import find_number_fault

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig

SIZE_NAMES = {  # our setting -> transformers' name
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "mlp_dim": "intermediate_size",
    "head_dim": "head_dim",
    "max_tokens": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}
SIZE_SETTINGS = {theirs: ours for ours, theirs in SIZE_NAMES.items() if ours != "tie_embeddings"}
POSITIVE_ENTRIES = ("logits_scaling", "query_pre_attn_scalar", "final_logit_softcapping", "attn_logit_softcapping")
"""Numbers of a config beside its sizes by which something is divided."""
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""What families call the number of their experts."""
_NORM_EPS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")


def count_experts(config: PreTrainedConfig) -> int:
    """How many experts a layer chooses among; 0 for a dense model."""
    return max((getattr(config, name, None) or 0) for name in EXPERT_COUNTS)


def to_family_names(family: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes by the names that a family's config has for them. Raises `ConfigError` for one that it does not have."""
    default = make_default_config(family)
    named = dict(given)
    if "rms_norm_eps" in named:
        name = next((n for n in _NORM_EPS if hasattr(default, n)), "rms_norm_eps")
        named[name] = named.pop("rms_norm_eps")
    ours = {theirs: setting for setting, theirs in SIZE_NAMES.items()} | dict.fromkeys(_NORM_EPS, "norm_eps")
    unknown = [f"{ours[name]}={value}" for name, value in named.items() if not hasattr(default, name)]
    if unknown:
        raise ConfigError(f"backbone family {family!r} has no such size: {', '.join(unknown)}; leave it out.")
    return named


def make_rope_settings(family: str, theta: float) -> dict[str, Any]:
    """The family's rotary settings with `rope_theta` replaced."""
    own = getattr(make_default_config(family), "rope_parameters", None) or {}
    if any(isinstance(value, Mapping) for value in own.values()):
        raise ConfigError(
            f"backbone family {family!r} has rotary settings for each kind of layer, so rope_theta={theta:g} does not say "
            "which; write further.rope_parameters.",
            settings=["rope_theta"],
        )
    return {"rope_type": "default", **own, "rope_theta": theta}


def disable_special_tokens(family: str, settings: Mapping[str, Any]) -> dict[str, None]:
    """Special token ids of the family that lie outside a smaller vocabulary, set to None."""
    size = settings.get("vocab_size")
    if size is None:
        return {}
    names = [f"{n}_token_id" for n in ("pad", "bos", "eos") if f"{n}_token_id" not in settings]
    ids = {name: getattr(make_default_config(family), name, None) for name in names}
    return {n: None for n, i in ids.items() if any(j >= size for j in (i if isinstance(i, list) else [i or 0]))}


@cache
def make_default_config(family: str) -> PreTrainedConfig:
    """A family's config with its own settings. Raises `ConfigError` for a family that transformers lacks."""
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(family)
    except ValueError as cause:
        raise ConfigError(
            f"transformers has no family={family!r}; write its model_type, such as 'qwen2'.", settings=["family"]
        ) from cause


def to_savable(settings: GenerationConfig) -> GenerationConfig:
    """The same settings, without those of sampling where nothing is sampled: transformers refuses to save these (Vicuna's)."""
    try:
        settings.validate(strict=True)
    except ValueError:
        kept = ("bos_token_id", "eos_token_id", "pad_token_id", "repetition_penalty", "no_repeat_ngram_size")
        return type(settings)(**{name: getattr(settings, name) for name in kept})
    return settings


def infer_kv_heads(family: str, settings: Mapping[str, Any]) -> dict[str, int]:
    """As many key-value heads as heads where only the latter are given: the family's own number fits its own heads only."""
    given = {"num_attention_heads", "num_key_value_heads"} & settings.keys()
    if given != {"num_attention_heads"} or getattr(make_default_config(family), "num_key_value_heads", None) is None:
        return {}
    return {"num_key_value_heads": settings["num_attention_heads"]}


@cache
def find_fixed_head_dim(family: str) -> int | None:
    """Channels per head of a family where they do not depend on its width (Gemma's 256); None where heads divide the width."""
    from transformers import AutoConfig

    default = make_default_config(family)
    width, head_dim = getattr(default, "hidden_size", None), getattr(default, "head_dim", None)
    if not isinstance(width, int) or not isinstance(head_dim, int):
        return None
    wider = AutoConfig.for_model(family, hidden_size=2 * width)
    return head_dim if getattr(wider, "head_dim", None) == head_dim else None


def require_moderate_sizes(settings: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for sizes (transformers' names) so large that the config alone would fill the memory."""
    faults = [
        fault
        for name, value in settings.items()
        if name in SIZE_SETTINGS and (fault := find_number_fault(SIZE_SETTINGS[name], value))
    ]
    if faults:
        texts = (f"{fault.message} {fault.cure}" for fault in faults)
        raise ConfigError(f"backbone: {' '.join(texts)}", settings=[fault.key for fault in faults])


def require_possible_sizes(config: PreTrainedConfig) -> None:
    """Raise `ConfigError` for sizes that no model can have, whether given or the family's defaults.

    The whole config is checked, not only the settings: torch's CPU kernels end the process on some impossible sizes.
    """
    faults = [
        Fault(ours := SIZE_SETTINGS.get(name, name), f"{ours}={value!r} is not a number above 0")
        for name in (*SIZE_SETTINGS, *POSITIVE_ENTRIES)
        if (value := getattr(config, name, None)) is not None and not _is_above_zero(value)
    ]
    sizes = {ours: getattr(config, theirs, None) for theirs, ours in SIZE_SETTINGS.items()}
    faults += [fault for name, size in sizes.items() if (fault := find_number_fault(name, size))]
    heads, kv_heads = (getattr(config, f"num_{kind}_heads", None) for kind in ("attention", "key_value"))
    if not faults and isinstance(heads, int) and isinstance(kv_heads, int) and heads % kv_heads:
        message = f"heads={heads} is no multiple of kv_heads={kv_heads}; write kv_heads={heads} or a divisor"
        faults.append(Fault("kv_heads", message))
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()) and not getattr(
        config, "sliding_window", None
    ):
        message = "sliding_window=0, but its layers look through a window; leave it out or write its tokens"
        faults.append(Fault("sliding_window", message))
    own = getattr(config, "rope_parameters", None) or {}
    faults += [
        Fault("rope_theta", f"rope_theta={value!r} in rope_parameters is not a number above 0")
        for kind in (own, *(inner for inner in own.values() if isinstance(inner, Mapping)))
        if not _is_above_zero(value := kind.get("rope_theta", 1.0))
    ]
    if faults:
        texts = (f"{fault.message} {fault.cure}".strip(" .") for fault in faults)
        message = f"backbone family {config.model_type!r}: {'; '.join(texts)}."
        raise ConfigError(message, settings=[fault.key for fault in faults])


def _is_above_zero(value: object) -> bool:
    numbers = value if isinstance(value, list | tuple) else [value]  # one for each layer
    return all(isinstance(n, int | float) and not isinstance(n, bool) and 0 < n < float("inf") for n in numbers)


def read_config_sizes(config: PreTrainedConfig) -> tuple[int, int, int]:
    """Width, vocabulary and sequence limit."""
    names = ("hidden_size", "vocab_size", "max_position_embeddings")
    missing = [name for name in names if not isinstance(getattr(config, name, None), int)]
    if missing:
        nested = " (its text model is a part of it; name the family of that)" if hasattr(config, "text_config") else ""
        raise ConfigError(
            f"backbone family {config.model_type!r}: its config says no {', '.join(missing)}{nested}, "
            "so it cannot be a backbone."
        )
    return config.hidden_size, config.vocab_size, config.max_position_embeddings
