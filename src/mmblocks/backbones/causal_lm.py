from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from mmblocks.assets import resolve_source
from mmblocks.backbones.family_config import (
    SIZE_NAMES,
    disable_special_tokens,
    infer_kv_heads,
    make_rope_settings,
    read_config_sizes,
    require_moderate_sizes,
    require_possible_sizes,
    to_family_names,
    to_savable,
)
from mmblocks.backbones.last_layer import OUTPUT_ROWS_KEY, at_least_one_row, restrict_last_layer_to_rows
from mmblocks.backbones.packing_probe import raise_as_config_error, require_packing
from mmblocks.backbones.text_tokenizer import read_text_tokenizer
from mmblocks.backbones.vocabulary import add_vocabulary_rows
from mmblocks.batch import Packing, RowIndex
from mmblocks.compat import find_cache_keyword
from mmblocks.components import backbones
from mmblocks.errors import CheckpointError, ConfigError
from mmblocks.ops import attention
from mmblocks.ops.triton_backend import may_run_kernels
from mmblocks.pretrained import (
    list_loading_faults,
    locate_source,
    make_model,
    read_config,
    read_generation_config,
    read_model,
)
from mmblocks.tensors import StoredTensors, assign_tensors, has_safetensors, leave_weights_empty
from mmblocks.versions import warn_about_untested_versions

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from mmblocks.ops.attention.spans import SeenSpans, StepSpans

PROGRESS_BAR_MIN_PARAMETERS = 300_000_000  # smaller models are read and written in a moment


class KeyValueCache(Protocol):
    """Where decoder layers put new keys and values (1, kv_heads, tokens, head_dim); returns those to attend to."""

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]: ...


@backbones.register(
    "causal_lm",
    source="https://github.com/huggingface/transformers",
    tiny={"family": "qwen2", "vocab_size": 64, "dim": 32, "depth": 2, "heads": 4, "kv_heads": 2, "mlp_dim": 48},
    verified_against="the same transformers model with its own eager attention",
)
class CausalLM(nn.Module):
    """Any causal language model of transformers, over packed embeddings.

    With `family` (transformers' model_type) the sizes are the settings given here; without it they are read from the
    config.json of `checkpoint`, a hub id or a local folder; `vocab_size` may be larger than there. Weights are random until
    `load_pretrained`.
    `text_tokenizer` is a hub id or folder, by default that of `checkpoint`. `placeholder_id` stands in `input_ids`
    where visual tokens go; its embedding is never used. `kv_heads` defaults to `heads`; other settings default to the
    family's. `sliding_window=None` keeps the family's window, 0 switches it off. `further` holds entries of the family's
    transformers config under transformers' names (rope_parameters, experts).

    Building fails for a family in which packed sequences see each other, and for one whose logits on one sequence differ
    from those of transformers' own forward.
    """

    def __init__(
        self,
        family: str | None = None,
        checkpoint: str | None = None,
        text_tokenizer: str | None = None,
        vocab_size: int | None = None,
        dim: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        kv_heads: int | None = None,
        mlp_dim: int | None = None,
        head_dim: int | None = None,
        max_tokens: int | None = None,
        rope_theta: float | None = None,
        norm_eps: float | None = None,
        tie_embeddings: bool | None = None,
        sliding_window: int | None = None,
        placeholder_id: int = 0,
        further: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        warn_about_untested_versions()
        sizes = {
            "vocab_size": vocab_size,
            "dim": dim,
            "depth": depth,
            "heads": heads,
            "kv_heads": kv_heads,
            "mlp_dim": mlp_dim,
            "head_dim": head_dim,
            "max_tokens": max_tokens,
            "norm_eps": norm_eps,
            "tie_embeddings": tie_embeddings,
        }
        given = {SIZE_NAMES[name]: value for name, value in sizes.items() if value is not None}
        self._size_settings = given if family is None else to_family_names(family, given)
        self.checkpoint = checkpoint
        self.tokenizer_source = text_tokenizer or checkpoint
        config = self._make_config(family, rope_theta, sliding_window, further or {})
        self.dim, self.vocab_size, self.max_tokens = read_config_sizes(config)
        require_possible_sizes(config)
        self.placeholder_id = placeholder_id
        if not 0 <= placeholder_id < self.vocab_size:
            raise ConfigError(
                f"backbone: placeholder_id={placeholder_id} is outside the vocabulary of {self.vocab_size} tokens.",
                settings=["placeholder_id"],
            )
        from transformers import AutoModelForCausalLM

        with raise_as_config_error(config.model_type, "cannot be built with these settings"):
            self.lm: Any = make_model(AutoModelForCausalLM, config, attn_implementation=attention.register())
        self.lm.tie_weights()
        require_packing(self, self.lm)
        self._adapt_layers()
        self.devices: tuple[torch.device, ...] = ()
        """Where the layers are, if they are on several devices."""

    def _adapt_layers(self) -> None:
        """Change how the language model's layers compute, where trials show that the results stay the same."""
        restrict_last_layer_to_rows(self.lm)
        if may_run_kernels("rms_norm", "gated_product", "rotary"):
            from mmblocks.backbones.fused_layers import fuse_layers  # operators that only a GPU needs

            fuse_layers(self.lm)

    @property
    def config(self) -> PreTrainedConfig:
        """The transformers config of the language model."""
        return self.lm.config

    @cached_property
    def text_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the checkpoint. Raises `ConfigError` when none was named."""
        if self.tokenizer_source is None:
            raise ConfigError("backbone: no text tokenizer; set backbone.text_tokenizer to a hub id or a local folder.")
        return read_text_tokenizer(resolve_source(self.tokenizer_source))

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """(tokens,) to (tokens, dim)."""
        return self.lm.get_input_embeddings()(ids)

    def compute_hidden_states(
        self,
        x: Tensor,
        position_ids: Tensor,
        packing: Packing,
        rows: RowIndex | None = None,
        *,
        cache: KeyValueCache | None = None,
        keys: Packing | SeenSpans | StepSpans | None = None,
    ) -> Tensor:
        """(tokens, dim) to (tokens, dim), after the final norm; a token sees earlier tokens of its own sequence only.

        With `rows` to (len(rows.index), dim), these rows of the same: the last layer computes no others.
        `cache` gets the keys and values of all tokens in every layer and returns those to attend to, packed as `keys`
        says (default `packing`), or all slots of a pool, of which each sequence sees its span; the tokens of each sequence are
        the last of its keys. With spans, `rows` are the last tokens of some sequences.
        """
        output_rows = None if rows is None or len(rows.index) == len(x) else at_least_one_row(rows)
        decoder = self.lm.get_decoder()
        states = decoder(
            inputs_embeds=x.unsqueeze(0),
            position_ids=position_ids.unsqueeze(0),
            use_cache=False,
            **{find_cache_keyword(decoder): cache},
            **attention.make_packing_arguments(packing, x.device, keys),
            **({} if output_rows is None else {OUTPUT_ROWS_KEY: output_rows}),
        )
        hidden = states.last_hidden_state.squeeze(0).to(x.device)
        if output_rows is not None and len(hidden) != len(output_rows.index):  # this family's last layer computes all
            hidden = hidden[output_rows.index]
        return hidden if rows is None else hidden[: len(rows.index)]

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """(n, dim) to (n, vocab_size), scaled and capped as the family does."""
        logits = self.lm.get_output_embeddings()(hidden).to(hidden.device)
        if (factor := getattr(self.config, "logit_scale", None)) is not None:  # Cohere
            logits = logits * factor
        if (divisor := getattr(self.config, "logits_scaling", None)) is not None:  # Granite
            logits = logits / divisor
        if (cap := getattr(self.config, "final_logit_softcapping", None)) is not None:  # Gemma
            logits = torch.tanh(logits / cap) * cap
        return logits

    def load_pretrained(self, dtype: torch.dtype | None = None) -> None:
        """Read the weights of `checkpoint`; all of them must be there, and sizes must agree with the settings.

        A larger `vocab_size` adds rows to the embeddings, each the mean of those of the checkpoint.
        """
        if self.checkpoint is None:
            raise ConfigError(
                "backbone: there are no pretrained weights; set backbone.checkpoint to a hub id or folder."
            )
        source = resolve_source(self.checkpoint)
        sizes = {name: value for name, value in self._size_settings.items() if name != "vocab_size"}
        self._read_checkpoint(source, dtype, sizes)
        add_vocabulary_rows(self.lm, self._size_settings.get("vocab_size", 0))
        self._require_same_sizes(self.config, str(source), self._size_settings)

    def load_from(self, folder: Path | str, dtype: torch.dtype | None = None) -> None:
        """Read a transformers checkpoint strictly. Raises `CheckpointError` that lists missing and extra keys."""
        self._read_checkpoint(folder, dtype, self._size_settings)

    def _read_checkpoint(self, folder: Path | str, dtype: torch.dtype | None, sizes: Mapping[str, Any]) -> None:
        """sizes: what the checkpoint's config must say."""
        place = Path(locate_source(folder, weights=True))
        if not self._read_tensors_in_place(place, dtype or torch.get_default_dtype(), sizes):
            self._read_with_transformers(folder, dtype, sizes)

    def _read_tensors_in_place(self, folder: Path, dtype: torch.dtype, sizes: Mapping[str, Any]) -> bool:
        """Fill an empty model where the files' names and shapes are exactly its own; whether that could be done.

        transformers' own loader, which renames and fuses tensors, maps whole files until it ends: half as much memory again
        where the type changes.
        """
        if not has_safetensors(folder):
            return False
        config, stored = read_config(folder), StoredTensors.from_folder(folder)
        if config.model_type != self.config.model_type:
            return False
        self._require_same_sizes(config, str(folder), sizes)
        wanted = self._make_empty(config, dtype, torch.device("meta")).state_dict()
        if config.tie_word_embeddings:  # a head in the files may differ from the embeddings: not tied then
            wanted.pop("lm_head.weight", None)
        if {name: t.shape for name, t in wanted.items()} != {name: t.shape for name, t in stored.shapes.items()}:
            return False
        self.set_config(config, dtype)
        self.load_tensors(stored, dtype)
        self.load_generation_config(folder)
        return True

    def _read_with_transformers(self, folder: Path | str, dtype: torch.dtype | None, sizes: Mapping[str, Any]) -> None:
        from transformers import AutoModelForCausalLM

        options = {"dtype": dtype or torch.get_default_dtype(), "attn_implementation": attention.register()}
        with _limit_progress_bars(self.lm):
            lm, report = read_model(AutoModelForCausalLM, folder, output_loading_info=True, **options)
        if faults := list_loading_faults(report):
            raise CheckpointError(f"{folder}: the weights do not fit the model.\n  " + "\n  ".join(faults))
        self._require_same_sizes(lm.config, str(folder), sizes)
        require_packing(self, lm)
        self.lm = lm
        self.lm.generation_config = to_savable(self.lm.generation_config)
        self._adapt_layers()

    def set_config(self, config: PreTrainedConfig, dtype: torch.dtype) -> None:
        """Replace the language model by one of this config, of the family built here, whose weights are on meta."""
        require_packing(self, self._make_empty(config, dtype, torch.device("meta")))
        self.lm = self._make_empty(config, dtype, torch.get_default_device())

    def _make_empty(self, config: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
        with device, leave_weights_empty():
            lm = type(self.lm)._from_config(config, attn_implementation=attention.register(), dtype=dtype)
        lm.tie_weights()
        return lm

    def load_tensors(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        """Fill the language model with tensors whose names and shapes were compared; a tied language head may be missing."""
        assign_tensors(self.lm, tensors, dtype)
        self.lm.tie_weights()
        self.lm.generation_config = to_savable(self.lm.generation_config)
        self._adapt_layers()

    def load_generation_config(self, folder: Path) -> None:
        """Take end tokens and repetition penalties from a checkpoint's generation_config.json, where it has one."""
        if (folder / "generation_config.json").is_file():
            self.lm.generation_config = to_savable(read_generation_config(folder))

    def save_to(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write an ordinary transformers checkpoint, with the text tokenizer where one is known."""
        lm = self.lm if dtype is None else copy.deepcopy(self.lm).to(dtype)
        with _limit_progress_bars(lm):
            lm.save_pretrained(folder)
        if self.tokenizer_source is not None:
            self.text_tokenizer.save_pretrained(folder)

    def _make_config(
        self, family: str | None, rope_theta: float | None, sliding_window: int | None, further: Mapping[str, Any]
    ) -> PreTrainedConfig:
        from transformers import AutoConfig

        if family is None and self.checkpoint is None:
            raise ConfigError("backbone 'causal_lm' needs a family with sizes, or a checkpoint to read them from.")
        if family is None:
            config = read_config(resolve_source(str(self.checkpoint)))
            if (rows := self._size_settings.get("vocab_size", 0)) > getattr(config, "vocab_size", rows):
                config.vocab_size = rows
            self._require_same_sizes(config, str(self.checkpoint), self._size_settings)
            return config
        extra: dict[str, Any] = {} if sliding_window is None else {"sliding_window": sliding_window or None}
        if rope_theta is not None:
            extra["rope_parameters"] = make_rope_settings(family, rope_theta)
        settings = {
            **infer_kv_heads(family, {**self._size_settings, **further}),
            **self._size_settings,
            **extra,
            **further,
        }
        require_moderate_sizes(settings)
        if self.checkpoint is None:
            settings = {"eos_token_id": None, **settings}  # the family's own belongs to the family's text tokenizer
        with raise_as_config_error(family, "cannot be built with these settings"):
            return AutoConfig.for_model(family, **disable_special_tokens(family, settings), **settings)

    @staticmethod
    def _require_same_sizes(config: PreTrainedConfig, where: str, sizes: Mapping[str, Any]) -> None:
        wrong = [
            f"{name}: {where} has {getattr(config, name, None)}, the settings say {value}"
            for name, value in sizes.items()
            if getattr(config, name, None) != value
        ]
        if wrong:
            raise ConfigError("backbone: checkpoint and settings disagree.\n  " + "\n  ".join(wrong))


@contextmanager
def _limit_progress_bars(lm: nn.Module) -> Iterator[None]:
    """Show transformers' progress bars for models that take long to read or write, and only for these."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    if sum(p.numel() for p in lm.parameters()) < PROGRESS_BAR_MIN_PARAMETERS:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
