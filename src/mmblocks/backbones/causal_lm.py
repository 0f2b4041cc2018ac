from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmblocks.batch import Packing
from mmblocks.components import backbones
from mmblocks.errors import CheckpointError, ConfigError
from mmblocks.ops import attention

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

SHOWN_FROM = 300_000_000  # parameters; less than that is read and written in a moment
_SIZES = {  # our setting -> transformers' name
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "mlp_dim": "intermediate_size",
    "max_tokens": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}


@backbones.register(
    "causal_lm",
    source="https://github.com/huggingface/transformers",
    tiny={"family": "qwen2", "vocab_size": 64, "dim": 32, "depth": 2, "heads": 4, "kv_heads": 2, "mlp_dim": 48},
)
class CausalLM(nn.Module):
    """Any causal language model of transformers, over packed embeddings.

    With `family` (transformers' model_type) the sizes are the settings given here; without it they are read from the
    config.json of `checkpoint`, a hub id or a local folder. Weights are random until `load_pretrained`.
    `text_tokenizer` is a hub id or folder, by default that of `checkpoint`. `placeholder_id` stands in `input_ids`
    where visual tokens go; its embedding is never used. `sliding_window=None` keeps the family's own, 0 switches it off.

    A family in which packed sequences would see each other is refused when it is built.
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
        max_tokens: int | None = None,
        rope_theta: float | None = None,
        norm_eps: float | None = None,
        tie_embeddings: bool | None = None,
        sliding_window: int | None = None,
        placeholder_id: int = 0,
    ) -> None:
        super().__init__()
        sizes = {
            "vocab_size": vocab_size,
            "dim": dim,
            "depth": depth,
            "heads": heads,
            "kv_heads": kv_heads,
            "mlp_dim": mlp_dim,
            "max_tokens": max_tokens,
            "norm_eps": norm_eps,
            "tie_embeddings": tie_embeddings,
        }
        self._given = {_SIZES[name]: value for name, value in sizes.items() if value is not None}
        self.checkpoint = checkpoint
        self.tokenizer_source = text_tokenizer or checkpoint
        config = self._config(family, rope_theta, sliding_window)
        self.dim: int = config.hidden_size
        self.vocab_size: int = config.vocab_size
        self.max_tokens: int = config.max_position_embeddings
        self.placeholder_id = placeholder_id
        self._require_placeholder()
        from transformers import AutoModelForCausalLM

        self.lm = AutoModelForCausalLM.from_config(config, attn_implementation=attention.register())
        self._require_isolation()

    @property
    def config(self) -> PreTrainedConfig:
        """The transformers config of the language model."""
        return self.lm.config

    @cached_property
    def text_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the checkpoint. Raises `ConfigError` when none was named."""
        if self.tokenizer_source is None:
            raise ConfigError("backbone: no text tokenizer; set backbone.text_tokenizer to a hub id or a local folder.")
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(resolve_source(self.tokenizer_source))

    def embed(self, ids: Tensor) -> Tensor:
        """(tokens,) to (tokens, dim)."""
        return self.lm.get_input_embeddings()(ids)

    def hidden(self, x: Tensor, position_ids: Tensor, packing: Packing) -> Tensor:
        """(tokens, dim) to (tokens, dim), after the final norm; a token sees earlier tokens of its own sequence only."""
        states = self.lm.get_decoder()(
            inputs_embeds=x.unsqueeze(0),
            position_ids=position_ids.unsqueeze(0),
            use_cache=False,
            **attention.packing_arguments(packing, x.device),
        )
        return states.last_hidden_state.squeeze(0)

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, dim) to (n, vocab_size)."""
        return self.lm.get_output_embeddings()(hidden)

    def load_pretrained(self, dtype: torch.dtype | None = None) -> None:
        """Read the weights of `checkpoint`; all of them must be there, and sizes must agree with the settings."""
        if self.checkpoint is None:
            raise ConfigError(
                "backbone: pretrained weights were asked for, but backbone.checkpoint names no hub id or folder."
            )
        self.load_from(resolve_source(self.checkpoint), dtype)

    def load_from(self, folder: Path | str, dtype: torch.dtype | None = None) -> None:
        """Read a transformers checkpoint strictly. Raises `CheckpointError` that lists missing and extra keys."""
        from transformers import AutoModelForCausalLM

        kind: Any = AutoModelForCausalLM
        with _reading(str(folder)), _bars(self.lm):
            lm, report = kind.from_pretrained(folder, use_safetensors=True, **_loading(dtype))
        self._take(lm, report, str(folder))

    def load_tensors(
        self, config: PreTrainedConfig, tensors: Mapping[str, Tensor], where: str, dtype: torch.dtype | None = None
    ) -> None:
        """Become the language model of `config`, of the family built here, with exactly these tensors.

        `where` says in errors where the tensors come from.
        """
        kind: Any = type(self.lm)
        with _bars(self.lm):
            lm, report = kind.from_pretrained(None, config=config, state_dict=dict(tensors), **_loading(dtype))
        self._take(lm, report, where)

    def _take(self, lm: Any, report: dict[str, Any], where: str) -> None:
        _require_complete(where, report)
        self._require_sizes(lm.config, where)
        self.lm = lm
        self._require_isolation()

    def save_to(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write an ordinary transformers checkpoint, with the text tokenizer where one is known."""
        lm = self.lm if dtype is None else copy.deepcopy(self.lm).to(dtype)
        with _bars(lm):
            lm.save_pretrained(folder)
        if self.tokenizer_source is not None:
            self.text_tokenizer.save_pretrained(folder)

    def _config(self, family: str | None, rope_theta: float | None, sliding_window: int | None) -> PreTrainedConfig:
        from transformers import AutoConfig

        if family is None and self.checkpoint is None:
            raise ConfigError("backbone 'causal_lm' needs a family with sizes, or a checkpoint to read them from.")
        if family is None:
            config = AutoConfig.from_pretrained(resolve_source(str(self.checkpoint)))
            self._require_sizes(config, str(self.checkpoint))
            return config
        extra: dict[str, Any] = {} if sliding_window is None else {"sliding_window": sliding_window or None}
        if rope_theta is not None:
            extra["rope_parameters"] = {"rope_type": "default", "rope_theta": rope_theta}
        return AutoConfig.for_model(family, **self._given, **extra)

    def _require_sizes(self, config: PreTrainedConfig, where: str) -> None:
        wrong = [
            f"{name}: {where} has {getattr(config, name, None)}, the settings say {value}"
            for name, value in self._given.items()
            if getattr(config, name, None) != value
        ]
        if wrong:
            raise ConfigError("backbone: checkpoint and settings disagree.\n  " + "\n  ".join(wrong))

    def _require_placeholder(self) -> None:
        if not 0 <= self.placeholder_id < self.vocab_size:
            raise ConfigError(
                f"backbone: placeholder_id={self.placeholder_id} is outside the vocabulary of {self.vocab_size} tokens."
            )

    @torch.no_grad()
    def _require_isolation(self) -> None:
        """Run two packed sequences and refuse a model in which the second notices what the first says."""
        parameter = next(self.lm.parameters())
        if parameter.is_meta:
            return
        x = torch.linspace(-1, 1, 5 * self.dim, device=parameter.device, dtype=parameter.dtype).view(5, self.dim)
        positions = torch.tensor([0, 1, 0, 1, 2], device=parameter.device)
        packing = Packing.of([2, 3]).to(parameter.device)
        other = torch.cat([x[:2].flip(0), x[2:]])
        was_training = self.lm.training
        self.lm.eval()
        seen = (self.hidden(x, positions, packing)[2:] - self.hidden(other, positions, packing)[2:]).abs().max().item()
        self.lm.train(was_training)
        if seen != 0:
            raise ConfigError(
                f"backbone family {self.config.model_type!r}: packed sequences see each other (difference {seen:.2g}); "
                "its transformers code drops the packing keywords, so it cannot be trained on packed batches."
            )


def resolve_source(source: str) -> str:
    """A hub id or folder as transformers takes it; "mmblocks:NAME" is a folder that ships with the package."""
    if source.startswith("mmblocks:"):
        return str(Path(__file__).parents[1] / "assets" / source.removeprefix("mmblocks:"))
    return source


def _loading(dtype: torch.dtype | None) -> dict[str, Any]:
    return {
        "dtype": dtype or torch.get_default_dtype(),
        "attn_implementation": attention.register(),
        "output_loading_info": True,
    }


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Name the folder in what goes wrong while transformers reads it."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as cause:
        raise CheckpointError(f"{where}: a weights file cannot be read ({cause}); it is cut or damaged.") from cause
    except OSError as cause:
        raise CheckpointError(f"{where}: no whole language model can be read there ({cause}).") from cause


@contextmanager
def _bars(lm: nn.Module) -> Iterator[None]:
    """transformers' progress bars for models that take long to read or write, and only for these."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    if sum(p.numel() for p in lm.parameters()) < SHOWN_FROM:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _require_complete(where: str, report: dict[str, Any]) -> None:
    faults = [
        f"{kind}: {', '.join(sorted(map(str, report[kind])))}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if report.get(kind)
    ]
    if faults:
        raise CheckpointError(f"{where}: the weights do not fit the model.\n  " + "\n  ".join(faults))
