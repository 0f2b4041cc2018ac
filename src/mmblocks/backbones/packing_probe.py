"""Trial run that shows whether a language model of transformers can be run on packed sequences.

Families differ in what they do with the keywords that carry a packing: some drop them, some mix tokens in other ways
than attention, some compute scores that a common attention function does not know. Five rows show all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmblocks.backbones.family_config import count_experts
from mmblocks.batch import Packing
from mmblocks.compat import suppress_warning_errors
from mmblocks.components import Backbone
from mmblocks.errors import ConfigError, MMBlocksError
from mmblocks.ops import attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LENGTHS = (2, 3)
PACKING_FAILURE = "does not run on packed embeddings"
_CHECKED_CONFIGS: set[str] = set()
"""Configs whose layers fit each other."""


@torch.no_grad()
def require_packing(backbone: Backbone, lm: PreTrainedModel) -> None:
    """Raise `ConfigError` unless packed sequences do not see each other and logits are those of transformers' forward.

    `backbone` runs `lm`. On the meta device there are only shapes to check: two layers are run for these.
    """
    parameter = next(lm.parameters())
    if parameter.is_meta:
        _require_fitting_shapes(backbone, lm, parameter.dtype)
        return
    family, first = lm.config.model_type, LENGTHS[0]
    rows = torch.linspace(-1, 1, sum(LENGTHS) * backbone.dim, device=parameter.device, dtype=parameter.dtype)
    x = rows.view(sum(LENGTHS), backbone.dim)
    changed = torch.cat([x[:first].flip(0), x[first:]])
    with _use_evaluation_mode(lm), raise_as_config_error(family, PACKING_FAILURE):
        packed, packed_changed = _run_backbone(backbone, x, LENGTHS), _run_backbone(backbone, changed, LENGTHS)
        ours = backbone.compute_logits(_run_backbone(backbone, x, (len(x),)))
        theirs = _compute_eager_logits(lm, x)
    influence = (packed[first:] - packed_changed[first:]).abs().max().item()
    # Exact for dense models. Experts get another number of rows with every text, which rounds otherwise.
    allowed = 32 * torch.finfo(packed.dtype).eps * packed.abs().max().item() if count_experts(lm.config) else 0.0
    if influence > allowed:
        raise ConfigError(
            f"backbone family {family!r}: packed sequences see each other (difference {influence:.2g}); "
            "its transformers code drops the packing keywords, so it cannot be trained on packed batches."
        )
    tolerance = 1e-4 if ours.dtype in (torch.float32, torch.float64) else 0.1  # deep models drift in half precision
    difference = (ours - theirs).abs().max().item()
    if not difference <= tolerance * theirs.abs().max().item():
        raise ConfigError(
            f"backbone family {family!r}: packed attention does not compute what its transformers code computes "
            f"(logits differ by {difference:.2g}), so it cannot be a backbone."
        )


def _require_fitting_shapes(backbone: Backbone, lm: PreTrainedModel, dtype: torch.dtype) -> None:
    """Check on meta that one layer's output fits into the next. Done once for each config."""
    key = f"{type(lm)} {lm.config.to_json_string(use_diff=False)}"
    if key in _CHECKED_CONFIGS:
        return
    x = torch.empty(sum(LENGTHS), backbone.dim, device="meta", dtype=dtype)
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
    _CHECKED_CONFIGS.add(key)


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


def _run_backbone(backbone: Backbone, x: Tensor, lengths: tuple[int, ...]) -> Tensor:
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
