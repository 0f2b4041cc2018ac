"""A last decoder layer that computes the requested output rows only, with keys and values of all rows.

Two hooks on it do this, and the family's own code does the rest: the first computes keys and values of all rows as the
family does and hands the layer the output rows alone, the second has these few queries attend to all keys. A small
model of the same config shows whether the result is that of the whole layer; where it is not, there are no hooks.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmblocks.backbones.narrow_models import draw_weights, select_layers, shrink_config
from mmblocks.batch import Packing, RowIndex
from mmblocks.compat import find_cache_keyword, suppress_warning_errors
from mmblocks.ops import attention
from mmblocks.ops.choice import REFERENCE, use_backends
from mmblocks.pretrained import make_model
from mmblocks.reprs import format_by_shape
from mmblocks.tensors import leave_weights_empty

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

log = logging.getLogger(__name__)
OUTPUT_ROWS_KEY = "rows_of_last_layer"
"""The keyword that carries rows through a transformers model to its last layer; other layers ignore it."""
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
"""Families of transformers whose last layer computes output rows only, in every version that mmblocks is tested with."""
_KEYS_AND_VALUES_KEY = "keys_and_values_of_all_rows"
FUSED_PROJECTION = "qkv_proj"


def at_least_one_row(rows: RowIndex) -> RowIndex:
    """The rows, or the very first one where there are none: not every layer can be run on nothing."""
    if len(rows.index):
        return rows
    first = torch.zeros(1, dtype=torch.int64, device=rows.index.device)
    return RowIndex(first, (1, *[0] * (len(rows.counts) - 1)), (0,), rows.cu_seqlens_host)


def restrict_last_layer_to_rows(lm: PreTrainedModel) -> None:
    """Have the last layer of a language model compute output rows only, if a trial shows that nothing else changes.

    Otherwise it computes all rows, and the reason is logged once: as a warning for one of `FAMILIES`.
    """
    if (reason := find_reason_against(lm)) is None:
        _register_hooks(lm)
    else:
        _log_reason_once(lm.config.model_type, reason)


def find_reason_against(lm: PreTrainedModel) -> str | None:
    """Why the last layer of a language model must compute all rows; None where it need not."""
    self_attn: Any = getattr(_find_last_layer(lm), "self_attn", None)
    if not (hasattr(self_attn, "k_proj") and hasattr(self_attn, "v_proj")) and not hasattr(self_attn, FUSED_PROJECTION):
        return f"its attention has neither k_proj and v_proj nor {FUSED_PROJECTION}"
    if _find_rotary_function(self_attn) is None:
        return "its code has no apply_rotary_pos_emb"
    narrow = shrink_config(lm.config)
    key = f"{type(lm).__qualname__} {narrow.to_json_string(use_diff=False)}"
    if key not in _reasons_by_config:
        _reasons_by_config[key] = _compare_with_whole_layer(lm, narrow)
    return _reasons_by_config[key]


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

    config = AutoConfig.for_model(family, num_hidden_layers=2)
    with torch.device("meta"), suppress_warning_errors():
        lm = make_model(AutoModelForCausalLM, config, attn_implementation=attention.register())
    return find_reason_against(lm)


# The hooks ----------------------------------------------------------------------------------------------------------


def _register_hooks(lm: PreTrainedModel) -> None:
    layer = _find_last_layer(lm)
    self_attn = layer.self_attn
    layer.register_forward_pre_hook(
        _LayerInputHook(_find_rotary_function(self_attn), find_cache_keyword(layer)), with_kwargs=True
    )
    self_attn.register_forward_pre_hook(_AttentionCacheHook(find_cache_keyword(self_attn)), with_kwargs=True)


def _find_last_layer(lm: PreTrainedModel) -> Any:
    layers = getattr(lm.get_decoder(), "layers", None)
    return layers[-1] if layers else None


def _find_rotary_function(self_attn: nn.Module) -> Any:
    return getattr(sys.modules[type(self_attn).__module__], "apply_rotary_pos_emb", None)


@dataclass(frozen=True)
class _LayerInputHook:
    """Before a layer: reduces its input to the output rows, and adds keys and values of all rows."""

    rotary: Callable[..., tuple[Tensor, Tensor]]
    cache: str

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        rows: RowIndex | None = kwargs.pop(OUTPUT_ROWS_KEY, None)
        if rows is None:
            return None
        x, *others = args
        k, v = self._compute_keys_and_values(layer, x, *kwargs["position_embeddings"])
        if (cache := kwargs.get(self.cache)) is not None:
            self_attn: Any = layer.self_attn
            k, v = cache.update(k, v, self_attn.layer_idx)
        key_rows, begins = rows, kwargs["cu_seq_lens_k"]
        if begins is not kwargs["cu_seq_lens_q"]:  # sequences end with their queries
            shifts = (begins - kwargs["cu_seq_lens_q"])[1:].to(rows.index)
            counts = torch.tensor(rows.counts, device=rows.index.device)
            index = rows.index + shifts.repeat_interleave(counts, output_size=len(rows.index))
            key_rows = RowIndex(index, rows.counts)
        changed = {
            _KEYS_AND_VALUES_KEY: (k, v),
            self.cache: None,
            "rows": key_rows,
            "cu_seq_lens_q": begins,
            "max_length_q": kwargs["max_length_k"],
            "position_embeddings": tuple(table[:, rows.index] for table in kwargs["position_embeddings"]),
        }
        if kwargs.get("position_ids") is not None:
            changed["position_ids"] = kwargs["position_ids"][:, rows.index]
        return (x[:, rows.index], *others), {**kwargs, **changed}

    def _compute_keys_and_values(self, layer: nn.Module, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """(1, rows, dim) to keys and values as they are attended to, (1, kv_heads, rows, head_dim) each."""
        self_attn: Any = layer.self_attn
        norm: Any = getattr(layer, "input_layernorm", None)
        k, v = _project_keys_and_values(self_attn, x if norm is None else norm(x))
        if (bound := getattr(self_attn.config, "clip_qkv", None)) is not None:  # OLMo
            k, v = k.clamp(-bound, bound), v.clamp(-bound, bound)
        k, v = _normalise_keys(self_attn, k).transpose(1, 2), v.unflatten(-1, (-1, self_attn.head_dim)).transpose(1, 2)
        if not getattr(self_attn, "use_rope", True):  # some layers of SmolLM3
            return k, v
        width = getattr(self_attn, "rotary_ndims", k.shape[-1])
        if width < k.shape[-1]:  # Phi
            return torch.cat([self._apply_rotary(k[..., :width], cos, sin), k[..., width:]], dim=-1), v
        return self._apply_rotary(k, cos, sin), v

    def _apply_rotary(self, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return self.rotary(k[:, :0], k, cos, sin)[1]  # without queries


def _project_keys_and_values(attn: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values, each (1, rows, kv_heads * head_dim)."""
    self_attn: Any = attn
    if not hasattr(self_attn, FUSED_PROJECTION):
        return self_attn.k_proj(x), self_attn.v_proj(x)
    width = self_attn.config.num_key_value_heads * self_attn.head_dim
    k, v = self_attn.qkv_proj(x)[..., -2 * width :].chunk(2, dim=-1)  # Phi-3: its queries are computed and unused
    return k, v


def _normalise_keys(attn: nn.Module, k: Tensor) -> Tensor:
    """Keys (1, rows, kv_heads * head_dim) by heads, with the family's norm over a head or over all of them (OLMo 2)."""
    self_attn: Any = attn
    norm = getattr(self_attn, "k_norm", None) or getattr(self_attn, "k_layernorm", None)
    if norm is not None and norm.weight.ndim == 1 and norm.weight.numel() == k.shape[-1]:
        k, norm = norm(k), None
    heads = k.unflatten(-1, (-1, self_attn.head_dim))
    return heads if norm is None else norm(heads)


@dataclass(frozen=True)
class _AttentionCacheHook:
    """Before a layer's attention: keys and values of all rows take the place of its cache.

    They arrive by a keyword, because a layer under gradient checkpointing takes no cache.
    """

    cache: str

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        keys_and_values = kwargs.pop(_KEYS_AND_VALUES_KEY, None)
        return None if keys_and_values is None else (args, {**kwargs, self.cache: _FixedCache(*keys_and_values)})


@dataclass(frozen=True)
class _FixedCache:
    """A cache that already holds all keys and values, those of the output rows among them."""

    k: Tensor
    v: Tensor
    __repr__ = format_by_shape

    def update(self, k: Tensor, v: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        return self.k, self.v


# The trial ----------------------------------------------------------------------------------------------------------

LENGTHS = (4, 3)
TRIAL_ROWS = RowIndex(torch.tensor([1, 3, 6], device="cpu"), (2, 1))  # on cpu also where the default device is meta


@suppress_warning_errors()
def _compare_with_whole_layer(lm: PreTrainedModel, narrow: PreTrainedConfig) -> str | None:
    """Run a narrow model of the last layer for all and for some rows; returns what the latter does wrong."""
    row_counts: list[int] = []  # rows that each part of the layer gets, but for those that keys and values need
    try:
        with torch.device("cpu"), torch.no_grad(), use_backends(REFERENCE):
            trial = _make_trial_model(lm, narrow)
            x = torch.arange(sum(LENGTHS) * narrow.hidden_size, dtype=torch.float64).sin().view(1, sum(LENGTHS), -1)
            cache_of_all, cache_of_some = _RecordingCache(), _RecordingCache()
            want = _run_decoder(trial, x, cache_of_all, {})[:, TRIAL_ROWS.index]
            _register_hooks(trial)
            for name, part in _find_last_layer(trial).named_children():
                if name not in ("input_layernorm", "self_attn"):
                    part.register_forward_pre_hook(lambda _, args: row_counts.append(args[0].shape[-2]))
            got = _run_decoder(trial, x, cache_of_some, {OUTPUT_ROWS_KEY: TRIAL_ROWS})
    except Exception as cause:  # whatever a family's code raises is a reason against it
        return f"{type(cause).__name__}: {cause}"
    if want.shape != got.shape or not row_counts or max(row_counts) > len(TRIAL_ROWS.index):
        return "it computes all rows all the same"
    pairs = zip([*cache_of_all.seen, want], [*cache_of_some.seen, got], strict=True)
    return None if all(torch.allclose(a, b, rtol=1e-6, atol=1e-6) for a, b in pairs) else "it computes something else"


def _make_trial_model(lm: PreTrainedModel, narrow: PreTrainedConfig) -> PreTrainedModel:
    """A model of the last layer, all of whose tensors are so large that norms, biases and bounds have an effect."""
    last = _find_last_layer(lm)
    with leave_weights_empty():
        trial = type(lm)._from_config(select_layers(narrow, slice(-1, None)), attn_implementation=attention.register())
        decoder: Any = trial.get_decoder()
        decoder.layers[0] = type(last)(narrow, last.self_attn.layer_idx)
    draw_weights(trial, 1.0, torch.float64)
    return trial.double().eval()


def _run_decoder(lm: PreTrainedModel, x: Tensor, cache: _RecordingCache, options: dict[str, Any]) -> Tensor:
    packing = Packing.from_lengths(LENGTHS)
    decoder: Any = lm.get_decoder()
    return decoder(
        inputs_embeds=x,
        position_ids=torch.cat([torch.arange(n) for n in LENGTHS])[None],
        use_cache=False,
        **{find_cache_keyword(decoder): cache},
        **attention.make_packing_arguments(packing, x.device),
        **options,
    ).last_hidden_state


@dataclass(frozen=True)
class _RecordingCache:
    """A cache that records what it is given and keeps nothing back."""

    seen: list[Tensor] = field(default_factory=list)
    __repr__ = format_by_shape

    def update(self, k: Tensor, v: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        self.seen.extend((k, v))
        return k, v
