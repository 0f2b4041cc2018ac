"""A last decoder layer that computes only the rows that are asked for; of keys and values it computes all.

Two hooks on it do this, and the family's own code does the rest: the first computes keys and values of all rows as the
family does and hands the layer the wanted rows alone, the second has these few queries attend to all keys. Whether the
result is that of the whole layer is tried on a small model of the same config; where it is not, there are no hooks.
"""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from mmblocks.batch import Packing, RowIndex
from mmblocks.compat import find_cache_keyword, suppress_warning_errors
from mmblocks.ops import attention
from mmblocks.ops.choice import REFERENCE, use_backends
from mmblocks.pretrained import make_model
from mmblocks.reprs import format_by_shape

log = logging.getLogger(__name__)
OUTPUT_ROWS_KEY = "rows_of_last_layer"
"""The keyword that carries rows through a transformers model to its last layer; other layers take no notice."""
FAMILIES = (
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "llama",
    "mistral",
    "mixtral",
    "phi",
    "phi3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "smollm3",
    "olmo",
    "olmo2",
    "granite",
    "cohere",
    "gpt_oss",
)
"""Families of transformers whose last layer computes asked rows only, on every version that mmblocks is tested with."""
_KEYS_AND_VALUES_KEY = "keys_and_values_of_all_rows"
FUSED_PROJECTION = "qkv_proj"


def at_least_one_row(rows: RowIndex) -> RowIndex:
    """The rows, or the very first one where none are asked for: not every layer can be run on nothing."""
    if len(rows.index):
        return rows
    return RowIndex(torch.zeros(1, dtype=torch.int64, device=rows.index.device), (1, *[0] * (len(rows.counts) - 1)))


def restrict_last_layer_to_rows(lm: Any) -> None:
    """Have the last layer of a language model compute asked rows only, if that is proved to change nothing.

    Otherwise it goes on computing all rows, and the reason is logged once: as a warning for one of `FAMILIES`.
    """
    if (reason := find_reason_against(lm)) is None:
        _register_hooks(lm)
    else:
        _log_reason_once(lm.config.model_type, reason)


def find_reason_against(lm: Any) -> str | None:
    """Why the last layer of a language model must compute all rows; None where it need not."""
    attends: Any = getattr(_find_last_layer(lm), "self_attn", None)
    if not (hasattr(attends, "k_proj") and hasattr(attends, "v_proj")) and not hasattr(attends, FUSED_PROJECTION):
        return f"its attention has neither k_proj and v_proj nor {FUSED_PROJECTION}"
    if _find_rotary_function(attends) is None:
        return "its code has no apply_rotary_pos_emb"
    narrow = _shrink_config(lm.config)
    text = f"{type(lm).__qualname__} {narrow.to_json_string(use_diff=False)}"
    if text not in _reasons_by_config:
        _reasons_by_config[text] = _compare_with_whole_layer(lm, narrow)
    return _reasons_by_config[text]


_reasons_by_config: dict[str, str | None] = {}


@cache
def _log_reason_once(family: str, reason: str) -> None:
    if family in FAMILIES:
        log.warning(
            "backbone family %r: its last layer computes all rows, which takes more time and memory, because its code in "
            "this version of transformers is not as expected: %s. See `mmblocks doctor`.",
            family,
            reason,
        )
    else:
        log.info("backbone family %r: its last layer computes all rows: %s", family, reason)


def find_reason_against_family(family: str) -> str | None:
    """Why the last layer of a family's default model must compute all rows; None where it need not."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    config = AutoConfig.for_model(family, num_hidden_layers=2)
    with torch.device("meta"), no_init_weights(), suppress_warning_errors():
        lm = make_model(AutoModelForCausalLM, config, attn_implementation=attention.register())
    return find_reason_against(lm)


# The hooks ----------------------------------------------------------------------------------------------------------


def _register_hooks(lm: Any) -> None:
    layer = _find_last_layer(lm)
    attends = layer.self_attn
    layer.register_forward_pre_hook(
        _LayerInputHook(_find_rotary_function(attends), find_cache_keyword(layer)), with_kwargs=True
    )
    attends.register_forward_pre_hook(_AttentionCacheHook(find_cache_keyword(attends)), with_kwargs=True)


def _find_last_layer(lm: Any) -> Any:
    layers = getattr(lm.get_decoder(), "layers", None)
    return layers[-1] if layers else None


def _find_rotary_function(attends: nn.Module) -> Any:
    return getattr(sys.modules[type(attends).__module__], "apply_rotary_pos_emb", None)


@dataclass(frozen=True)
class _LayerInputHook:
    """Before a layer: it is given the asked rows of its input, and beside them keys and values of all rows."""

    rotary: Callable[..., tuple[Tensor, Tensor]]
    cache: str

    def __call__(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        rows: RowIndex | None = kwargs.pop(OUTPUT_ROWS_KEY, None)
        if rows is None:
            return None
        x, *others = args
        k, v = self._compute_keys_and_values(layer, x, *kwargs["position_embeddings"])
        if (kept := kwargs.get(self.cache)) is not None:
            k, v = kept.update(k, v, layer.self_attn.layer_idx)
        changed = {
            _KEYS_AND_VALUES_KEY: (k, v),
            self.cache: None,
            "rows": _to_key_rows(rows, kwargs["cu_seq_lens_q"], kwargs["cu_seq_lens_k"]),
            "cu_seq_lens_q": kwargs["cu_seq_lens_k"],
            "max_length_q": kwargs["max_length_k"],
            "position_embeddings": tuple(turns[:, rows.index] for turns in kwargs["position_embeddings"]),
        }
        if kwargs.get("position_ids") is not None:
            changed["position_ids"] = kwargs["position_ids"][:, rows.index]
        return (x[:, rows.index], *others), {**kwargs, **changed}

    def _compute_keys_and_values(self, layer: Any, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """(1, rows, dim) to keys and values as they are attended to, (1, kv_heads, rows, head_dim) each."""
        attends = layer.self_attn
        x = layer.input_layernorm(x) if hasattr(layer, "input_layernorm") else x
        k, v = _project_keys_and_values(attends, x)
        if (bound := getattr(attends.config, "clip_qkv", None)) is not None:  # OLMo
            k, v = k.clamp(-bound, bound), v.clamp(-bound, bound)
        k, v = (
            heads.transpose(1, 2) for heads in (_normalise_keys(attends, k), v.unflatten(-1, (-1, attends.head_dim)))
        )
        return self._rotate_keys(attends, k, cos, sin), v

    def _rotate_keys(self, attends: Any, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if not getattr(attends, "use_rope", True):  # some layers of SmolLM3
            return k
        if (turned := getattr(attends, "rotary_ndims", k.shape[-1])) < k.shape[-1]:  # Phi
            return torch.cat([self._apply_rotary(k[..., :turned], cos, sin), k[..., turned:]], dim=-1)
        return self._apply_rotary(k, cos, sin)

    def _apply_rotary(self, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return self.rotary(k[:, :0], k, cos, sin)[1]  # of queries none


def _project_keys_and_values(attends: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values, each (1, rows, kv_heads * head_dim)."""
    if not hasattr(attends, FUSED_PROJECTION):
        return attends.k_proj(x), attends.v_proj(x)
    width = attends.config.num_key_value_heads * attends.head_dim
    k, v = attends.qkv_proj(x)[..., -2 * width :].chunk(2, dim=-1)  # Phi-3: queries are computed for nothing
    return k, v


def _normalise_keys(attends: Any, k: Tensor) -> Tensor:
    """Keys (1, rows, kv_heads * head_dim) by heads, with the family's norm over a head or over all of them (OLMo 2)."""
    norm = getattr(attends, "k_norm", None) or getattr(attends, "k_layernorm", None)
    if norm is not None and norm.weight.ndim == 1 and norm.weight.numel() == k.shape[-1]:
        k, norm = norm(k), None
    heads = k.unflatten(-1, (-1, attends.head_dim))
    return heads if norm is None else norm(heads)


def _to_key_rows(rows: RowIndex, queries: Tensor, keys: Tensor) -> RowIndex:
    """Rows of packed queries as rows of the keys, whose sequences end with them."""
    if keys is queries:
        return rows
    counts = torch.tensor(rows.counts, device=rows.index.device)
    behind = (keys - queries)[1:].to(rows.index)
    return RowIndex(rows.index + behind.repeat_interleave(counts, output_size=len(rows.index)), rows.counts)


@dataclass(frozen=True)
class _AttentionCacheHook:
    """Before a layer's attention: what it would take from a cache are keys and values of all rows.

    They come here by a keyword, since a layer that recomputes itself in backward takes no cache.
    """

    cache: str

    def __call__(self, attends: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        whole = kwargs.pop(_KEYS_AND_VALUES_KEY, None)
        return None if whole is None else (args, {**kwargs, self.cache: _FixedCache(*whole)})


@dataclass(frozen=True)
class _FixedCache:
    """What attention takes for a cache, holding all keys and values; those of the asked rows are among them."""

    k: Tensor
    v: Tensor
    __repr__ = format_by_shape

    def update(self, k: Tensor, v: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return self.k, self.v


# The trial ----------------------------------------------------------------------------------------------------------

LENGTHS = (4, 3)
TRIAL_ROWS = RowIndex(
    torch.tensor([1, 3, 6], device="cpu"), (2, 1)
)  # this file may be imported where meta is the default


def _shrink_config(config: Any) -> Any:
    """The config with few heads, few experts and few words, and narrow; what decides which code runs is kept."""
    narrow = copy.deepcopy(config)
    heads, groups = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    few = 2 if groups in (None, heads) else 4
    sizes = {
        "num_attention_heads": few,
        "num_key_value_heads": 1 if groups == 1 else 2,
        "hidden_size": few * head_dim,
        "vocab_size": 8,
        "intermediate_size": 16,
        "moe_intermediate_size": 16,
        **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
        **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token"), 2),
    }
    for name, size in sizes.items():
        if getattr(config, name, None) is not None:
            setattr(narrow, name, size)
    narrow._experts_implementation = "eager"  # grouped products know no float64
    narrow.pad_token_id = narrow.bos_token_id = narrow.eos_token_id = None
    return narrow


def _of_one_layer(config: Any) -> Any:
    """The config of a model that has the last layer alone."""
    one = copy.deepcopy(config)
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == config.num_hidden_layers:
            setattr(one, name, value[-1:])
    one.num_hidden_layers = 1
    return one


@suppress_warning_errors()
def _compare_with_whole_layer(lm: Any, narrow: Any) -> str | None:
    """Run a narrow model of the last layer whole and for some rows; what speaks against the latter."""
    try:
        with torch.device("cpu"), torch.no_grad(), use_backends(REFERENCE):
            tried = _make_trial_model(lm, narrow)
            x = torch.arange(sum(LENGTHS) * narrow.hidden_size, dtype=torch.float64).sin().view(1, sum(LENGTHS), -1)
            whole, wanted = _RecordingCache(), _RecordingCache()
            states = _run_decoder(tried, x, whole, {})[:, TRIAL_ROWS.index]
            _register_hooks(tried)
            with _record_row_counts(_find_last_layer(tried)) as met:
                rows = _run_decoder(tried, x, wanted, {OUTPUT_ROWS_KEY: TRIAL_ROWS})
    except Exception as cause:  # whatever a family's code raises is a reason against it
        return f"{type(cause).__name__}: {cause}"
    if states.shape != rows.shape or not met or max(met) > len(TRIAL_ROWS.index):
        return "it goes on computing all rows"
    pairs = zip([*whole.seen, states], [*wanted.seen, rows], strict=True)
    return None if all(torch.allclose(a, b, rtol=1e-6, atol=1e-6) for a, b in pairs) else "it computes something else"


def _make_trial_model(lm: Any, narrow: Any) -> Any:
    """A model with numbers in every tensor so large that norms, biases and bounds count; torch's generator stays."""
    from transformers.initialization import no_init_weights

    last = _find_last_layer(lm)
    with no_init_weights():
        drawn = type(lm)._from_config(_of_one_layer(narrow), attn_implementation=attention.register())
        drawn.get_decoder().layers[0] = type(last)(narrow, last.self_attn.layer_idx)
    generator = torch.Generator().manual_seed(0)
    for parameter in drawn.parameters():
        parameter.normal_(generator=generator)
    return drawn.double().eval()


def _run_decoder(lm: Any, x: Tensor, kept: _RecordingCache, asked: dict[str, Any]) -> Tensor:
    packing = Packing.from_lengths(LENGTHS)
    decoder = lm.get_decoder()
    return decoder(
        inputs_embeds=x,
        position_ids=torch.cat([torch.arange(n) for n in LENGTHS])[None],
        use_cache=False,
        **{find_cache_keyword(decoder): kept},
        **attention.make_packing_arguments(packing, x.device),
        **asked,
    ).last_hidden_state


@dataclass(frozen=True)
class _RecordingCache:
    """A cache that only looks on."""

    seen: list[Tensor] = field(default_factory=list)
    __repr__ = format_by_shape

    def update(self, k: Tensor, v: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.seen.extend((k, v))
        return k, v


@contextmanager
def _record_row_counts(layer: nn.Module) -> Iterator[list[int]]:
    """How many rows each part of a layer is given, but for what keys and values are made of."""
    met: list[int] = []
    parts = [part for name, part in layer.named_children() if name not in ("input_layernorm", "self_attn")]
    handles = [part.register_forward_pre_hook(lambda _, args: met.append(args[0].shape[-2])) for part in parts]
    try:
        yield met
    finally:
        for handle in handles:
            handle.remove()
