"""Trial run that shows whether a language model of transformers can be run on packed sequences.

Families differ in what they do with the keywords that carry a packing: some drop them, some mix tokens in other ways
than attention, some compute scores that a common attention function does not know. Five rows show all of it, in a small
model of the same config.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmblocks.backbones.family_config import count_experts
from mmblocks.backbones.narrow_models import draw_weights, select_first_layers, shrink_config, shrink_vocabulary
from mmblocks.batch import Packing
from mmblocks.compat import suppress_warning_errors
from mmblocks.errors import ConfigError, MMBlocksError
from mmblocks.ops import attention
from mmblocks.ops.choice import REFERENCE, use_backends
from mmblocks.reprs import format_by_shape
from mmblocks.tensors import leave_weights_empty

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from mmblocks.backbones.causal_lm import CausalLM

LENGTHS = (2, 3)
PACKING_FAILURE = "does not run on packed embeddings"
TOLERANCE = 1e-4
"""Of logits, in parts of the largest: kernels of two code paths sum float32 in different orders."""
NOT_COMPUTED_WITH = ("dtype", "architectures", "transformers_version", "_name_or_path")
"""Entries of a config that change nothing in what a family's code does."""
_CHECKED_CONFIGS: set[str] = set()
"""Configs that were found right in this process."""


@torch.no_grad()
def require_packing(backbone: CausalLM, lm: PreTrainedModel) -> None:
    """Raise `ConfigError` unless packed sequences do not see each other and logits are those of transformers' forward.

    `backbone` runs `lm`, whose first layers are run for their shapes. The numbers are those of a small model of its config.
    """
    entries = {name: value for name, value in lm.config.to_dict().items() if name not in NOT_COMPUTED_WITH}
    key = f"{type(lm)} {json.dumps(entries, sort_keys=True, default=str)}"
    if key not in _CHECKED_CONFIGS:
        _require_fitting_shapes(backbone, lm)
        _require_packed_numbers(backbone, lm)
        _CHECKED_CONFIGS.add(key)


def _require_packed_numbers(backbone: CausalLM, lm: PreTrainedModel) -> None:
    family = lm.config.model_type
    with raise_as_config_error(family, PACKING_FAILURE):
        try:
            numbers = _run_small_model(backbone, lm, select_first_layers(shrink_config(lm.config), 8))
        except Exception:  # sizes of this family depend on each other in some way of its own
            numbers = _run_small_model(backbone, lm, select_first_layers(shrink_vocabulary(lm.config), 2))
    influence = (numbers.packed - numbers.changed_before).abs().max().item()
    # Exact for dense models. Experts get another number of rows with every text, which rounds otherwise.
    allowed = (
        32 * torch.finfo(torch.float32).eps * numbers.packed.abs().max().item() if count_experts(lm.config) else 0.0
    )
    if influence > allowed:
        raise ConfigError(
            f"backbone family {family!r}: packed sequences see each other (difference {influence:.2g}); "
            "its transformers code drops the packing keywords, so it cannot be trained on packed batches."
        )
    difference = (numbers.logits - numbers.eager_logits).abs().max().item()
    if not difference <= TOLERANCE * numbers.eager_logits.abs().max().item():
        raise ConfigError(
            f"backbone family {family!r}: packed attention does not compute what its transformers code computes "
            f"(logits differ by {difference:.2g}), so it cannot be a backbone."
        )


@dataclass(frozen=True, slots=True)
class _Numbers:
    """What a small model computes. packed, changed_before: hidden states of the second of two sequences (rows, dim), the
    latter after another first one. logits, eager_logits: of one sequence (rows, vocabulary), ours and transformers'.
    """

    packed: Tensor
    changed_before: Tensor
    logits: Tensor
    eager_logits: Tensor
    __repr__ = format_by_shape


def _run_small_model(backbone: CausalLM, lm: PreTrainedModel, config: PreTrainedConfig) -> _Numbers:
    with torch.device("cpu"), use_backends(REFERENCE):
        with leave_weights_empty():
            small = type(lm)._from_config(config, attn_implementation=attention.register(), dtype=torch.float32).eval()
        draw_weights(small, 0.1, torch.float32)
        small.tie_weights()
        x = torch.linspace(-1, 1, sum(LENGTHS) * config.hidden_size).view(sum(LENGTHS), config.hidden_size)
        first = LENGTHS[0]
        changed = torch.cat([x[:first].flip(0), x[first:]])
        with _use_language_model(backbone, small):
            packed, after = (_run_backbone(backbone, rows, LENGTHS)[first:] for rows in (x, changed))
            logits = backbone.compute_logits(_run_backbone(backbone, x, (len(x),)))
        return _Numbers(packed, after, logits, _compute_eager_logits(small, x))


@contextmanager
def _use_language_model(backbone: CausalLM, lm: PreTrainedModel) -> Iterator[None]:
    before, backbone.lm = backbone.lm, lm
    try:
        yield
    finally:
        backbone.lm = before


def _require_fitting_shapes(backbone: CausalLM, lm: PreTrainedModel) -> None:
    """Run two layers, which may be on meta, to see that one's output fits into the next."""
    parameter = next(lm.parameters())
    x = torch.zeros(sum(LENGTHS), backbone.dim, device=parameter.device, dtype=parameter.dtype)
    depth = getattr(lm.config, "num_hidden_layers", None)
    try:
        if isinstance(depth, int):
            lm.config.num_hidden_layers = min(depth, 2)  # for families whose code reads the depth there
        with _use_evaluation_mode(lm), raise_as_config_error(lm.config.model_type, PACKING_FAILURE):
            with _ignore_limits_of_meta():
                backbone.compute_logits(_run_backbone(backbone, x, LENGTHS))
            with _ignore_limits_of_meta():
                _compute_eager_logits(lm, x)
    finally:
        if isinstance(depth, int):
            lm.config.num_hidden_layers = depth


@contextmanager
def _ignore_limits_of_meta() -> Iterator[None]:
    """Ignore what only the meta device cannot run; the real model will show it.

    Some families look at numbers, as experts are chosen by them; the oldest torch lacks some kernels on meta.
    """
    try:
        yield
    except NotImplementedError:
        pass
    except RuntimeError as cause:
        if not any(word in str(cause) for word in ("meta", "BF16 type")):
            raise


def _run_backbone(backbone: CausalLM, x: Tensor, lengths: tuple[int, ...]) -> Tensor:
    positions = torch.cat([torch.arange(n, device=x.device) for n in lengths])
    return backbone.compute_hidden_states(x, positions, Packing.from_lengths(list(lengths)).to(x.device))


def _compute_eager_logits(lm: PreTrainedModel, x: Tensor) -> Tensor:
    """What transformers computes on one sequence with the attention that is written in the model's file."""
    lm.set_attn_implementation("eager")
    try:
        return lm(inputs_embeds=x.unsqueeze(0), use_cache=False).logits.squeeze(0)
    finally:
        lm.set_attn_implementation(attention.register())


@contextmanager
def _use_evaluation_mode(lm: PreTrainedModel) -> Iterator[None]:
    was_training = lm.training
    lm.eval()
    try:
        yield
    finally:
        lm.train(was_training)


@contextmanager
def raise_as_config_error(family: str, what: str) -> Iterator[None]:
    """Raise whatever a family's code raises as `ConfigError`; warnings stay warnings."""
    try:
        with suppress_warning_errors():
            yield
    except MMBlocksError:
        raise
    except Exception as cause:
        raise ConfigError(
            f"backbone family {family!r}: its transformers code {what} ({type(cause).__name__}: {cause})."
        ) from cause
