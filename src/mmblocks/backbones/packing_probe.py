"""Proof by trial that a language model of transformers can be run on packed sequences.

Families differ in what they do with the keywords that carry a packing: some drop them, some mix tokens in other ways
than attention, some compute scores that a common attention function does not know. Five rows show all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmblocks.batch import Packing
from mmblocks.compat import suppress_warning_errors
from mmblocks.errors import ConfigError, MMBlocksError
from mmblocks.ops import attention

if TYPE_CHECKING:
    from mmblocks.backbones.causal_lm import CausalLM

LENGTHS = (2, 3)
PACKING_FAILURE = "does not run on packed embeddings"
_CHECKED_CONFIGS: set[str] = set()
"""Configs whose layers fit each other."""


@torch.no_grad()
def require_packing(backbone: CausalLM) -> None:
    """Raise `ConfigError` unless packed sequences are strangers and logits are those of transformers' own forward.

    On the meta device shapes are all there is: two layers are run for these.
    """
    parameter = next(backbone.lm.parameters())
    if parameter.is_meta:
        _require_fitting_shapes(backbone, parameter)
        return
    rows = torch.linspace(-1, 1, sum(LENGTHS) * backbone.dim, device=parameter.device, dtype=parameter.dtype)
    x = rows.view(sum(LENGTHS), backbone.dim)
    with _use_evaluation_mode(backbone.lm), raise_as_config_error(backbone.config.model_type, PACKING_FAILURE):
        packed, seen = _run_backbone(backbone, x, LENGTHS), _noticed(backbone, x)
        single, theirs = (
            backbone.compute_logits(_run_backbone(backbone, x, (len(x),))),
            _compute_eager_logits(backbone.lm, x),
        )
    _require_isolation(backbone.config, seen, packed)
    _require_agreement(backbone.config.model_type, single, theirs)


def _require_fitting_shapes(backbone: CausalLM, parameter: Tensor) -> None:
    """What no tensor of numbers is needed for: that one layer's output fits into the next. Tried once for a config."""
    tried = f"{type(backbone.lm)} {backbone.config.to_json_string(use_diff=False)}"
    if tried in _CHECKED_CONFIGS:
        return
    x = torch.empty(sum(LENGTHS), backbone.dim, device="meta", dtype=parameter.dtype)
    with (
        _use_evaluation_mode(backbone.lm),
        _limit_layers(backbone.config),
        raise_as_config_error(backbone.config.model_type, PACKING_FAILURE),
    ):
        for run in (
            lambda: backbone.compute_logits(_run_backbone(backbone, x, LENGTHS)),
            lambda: _compute_eager_logits(backbone.lm, x),
        ):
            try:
                run()
            except (NotImplementedError, RuntimeError) as cause:
                # A family that looks at numbers, as experts are chosen by them, or whose kernel the oldest torch does not
                # know on meta in this dtype: the real model will show.
                if isinstance(cause, NotImplementedError) or any(word in str(cause) for word in ("meta", "BF16 type")):
                    continue
                raise
    _CHECKED_CONFIGS.add(tried)


@contextmanager
def _limit_layers(config: Any) -> Iterator[None]:
    """Two layers instead of all, where the family's code asks the config how many there are."""
    depth = getattr(config, "num_hidden_layers", None)
    if not isinstance(depth, int):
        yield
        return
    config.num_hidden_layers = min(depth, 2)
    try:
        yield
    finally:
        config.num_hidden_layers = depth


def _run_backbone(backbone: CausalLM, x: Tensor, lengths: tuple[int, ...]) -> Tensor:
    positions = torch.cat([torch.arange(n, device=x.device) for n in lengths])
    return backbone.compute_hidden_states(x, positions, Packing.from_lengths(list(lengths)).to(x.device))


def _noticed(backbone: CausalLM, x: Tensor) -> float:
    """How much the second sequence changes with the first."""
    first = LENGTHS[0]
    other = torch.cat([x[:first].flip(0), x[first:]])
    return (
        (_run_backbone(backbone, x, LENGTHS)[first:] - _run_backbone(backbone, other, LENGTHS)[first:])
        .abs()
        .max()
        .item()
    )


def _compute_eager_logits(lm: Any, x: Tensor) -> Tensor:
    """What transformers computes on one sequence with the attention that is written in the model's file."""
    lm.set_attn_implementation("eager")
    try:
        return lm(inputs_embeds=x.unsqueeze(0), use_cache=False).logits.squeeze(0)
    finally:
        lm.set_attn_implementation(attention.register())


def _require_isolation(config: Any, seen: float, hidden: Tensor) -> None:
    """Exact for dense models. Experts get another number of rows with every text, which rounds otherwise."""
    experts = max((getattr(config, n, None) or 0) for n in ("num_experts", "num_local_experts", "n_routed_experts"))
    allowed = 32 * torch.finfo(hidden.dtype).eps * hidden.abs().max().item() if experts else 0.0
    if seen > allowed:
        raise ConfigError(
            f"backbone family {config.model_type!r}: packed sequences see each other (difference {seen:.2g}); "
            "its transformers code drops the packing keywords, so it cannot be trained on packed batches."
        )


def _require_agreement(family: str, ours: Tensor, theirs: Tensor) -> None:
    """Within 1e-4 of the largest logit; a tenth of it in half precision, where deep models drift."""
    share = 1e-4 if ours.dtype in (torch.float32, torch.float64) else 0.1
    difference = (ours - theirs).abs().max().item()
    if not difference <= share * theirs.abs().max().item():
        raise ConfigError(
            f"backbone family {family!r}: packed attention does not compute what its transformers code computes "
            f"(logits differ by {difference:.2g}), so it cannot be a backbone."
        )


@contextmanager
def _use_evaluation_mode(lm: Any) -> Iterator[None]:
    was_training = lm.training
    lm.eval()
    try:
        yield
    finally:
        lm.train(was_training)


@contextmanager
def raise_as_config_error(family: str, what: str) -> Iterator[None]:
    """Whatever a family's code raises is a reason against it, but for warnings."""
    try:
        with suppress_warning_errors():
            yield
    except MMBlocksError:
        raise
    except Exception as cause:
        raise ConfigError(
            f"backbone family {family!r}: its transformers code {what} ({type(cause).__name__}: {cause})."
        ) from cause
