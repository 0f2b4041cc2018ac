"""What computing a sample takes, in seconds, as four rates: per view, per token, per attention pair, per label."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmblocks.data.planning.measure import SampleSizes
from mmblocks.errors import ConfigError
from mmblocks.model.budget import count_prefill_flops
from mmblocks.model.checks.composition import DryBuild, dry_build
from mmblocks.model.spec import PARTS, ModelSpec
from mmblocks.storage import write_json

ASSUMED_FLOPS = 790e12
"""Dense bf16 FLOP/s that an H200 was measured to reach."""
ENCODER_SHARE, BACKBONE_SHARE, ATTENTION_SHARE = 0.60, 0.65, 0.40
"""Of that, what each kind of work is assumed to reach."""
PROBE_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class SampleCost:
    """Seconds per view, token, pair of tokens of one sequence (squared length), and label."""

    view: float
    token: float
    pair: float
    label: float

    def estimate_seconds(self, sizes: SampleSizes) -> np.ndarray:
        """(n,) float64 seconds."""
        return sizes.views * self.view + sizes.tokens * self.token + sizes.pairs * self.pair + sizes.labels * self.label

    @classmethod
    def from_model(
        cls,
        model: ModelSpec | Mapping[str, Any] | DryBuild,
        learning: Collection[str] = PARTS,
        *,
        gradient_checkpointing: bool = False,
        flops_per_s: float = ASSUMED_FLOPS,
    ) -> SampleCost:
        """From the FLOPs of a composition, without running it: the same on every machine.

        learning: the parts that learn ("lora" too). A part costs its forward pass; as much again for the gradient of
        what comes in, if it or a part before it learns; as much again for the gradient of its weights, if it learns;
        and its forward pass a second time with `gradient_checkpointing`. Where torch cannot count a part's FLOPs (mixtures of
        experts), two per weight are taken. Raises `ConfigError` for a composition that cannot work.
        """
        seen = model if isinstance(model, DryBuild) else dry_build(model)
        seen.require_no_faults()
        work, times = _ForwardFlops.from_dry_build(seen), _PassCounts.from_learning(learning, gradient_checkpointing)
        vision = work.encoder * times.encoder + work.projector * times.projector
        return cls(
            view=vision / (ENCODER_SHARE * flops_per_s),
            token=work.token * times.backbone / (BACKBONE_SHARE * flops_per_s),
            pair=work.pair * times.attention / (ATTENTION_SHARE * flops_per_s),
            label=work.label * times.head / (BACKBONE_SHARE * flops_per_s),
        )

    def save(self, path: str | Path) -> Path:
        """Write the rates as json."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(self))
        return path

    @classmethod
    def load(cls, path: str | Path) -> SampleCost:
        """Read what `save` wrote. Raises `ConfigError` for anything else."""
        try:
            raw = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(**{name: float(raw[name]) for name in ("view", "token", "pair", "label")})
        except (OSError, ValueError, KeyError, TypeError) as cause:
            raise ConfigError(f"{path}: this is no saved cost ({cause!r}); measure one with `calibrate`.") from cause


@dataclass(frozen=True, slots=True)
class _ForwardFlops:
    """FLOPs of the forward pass: of a view in encoder and projector, of a token, a pair and a label in the backbone."""

    encoder: float
    projector: float
    token: float
    pair: float
    label: float

    @classmethod
    def from_dry_build(cls, seen: DryBuild) -> _ForwardFlops:
        flops, _ = count_prefill_flops(seen, 1, PROBE_TOKENS)
        attention = flops.get("attention") or 0
        backbone = flops["backbone"]
        weights = 2 * (seen.count_parameters("backbone") or 0)
        return cls(
            encoder=_replace_none(
                flops["encoder"], 2 * (seen.count_parameters("encoder") or 0) * seen.encoder.grid.area
            ),
            projector=_replace_none(
                flops["projector"], 2 * (seen.count_parameters("projector") or 0) * seen.encoder.grid.area
            ),
            token=weights if backbone is None else (backbone - attention) / PROBE_TOKENS,
            pair=attention / PROBE_TOKENS**2 / 2,  # a token attends to those before it: half of all pairs
            label=_replace_none(flops["head"], 2 * seen.backbone.dim * seen.backbone.vocab_size),
        )


def _replace_none(flops: int | None, otherwise: float) -> float:
    return otherwise if flops is None else flops


@dataclass(frozen=True, slots=True)
class _PassCounts:
    """How many forward passes' work each part has in a training step."""

    encoder: float
    projector: float
    backbone: float
    attention: float
    head: float

    @classmethod
    def from_learning(cls, learning: Collection[str], gradient_checkpointing: bool) -> _PassCounts:
        encoder = "encoder" in learning
        projector = encoder or "projector" in learning
        reached = projector or "learned_tokens" in learning or "backbone" in learning or "lora" in learning

        def count_passes(reached: bool, learns: bool, again: bool = gradient_checkpointing) -> float:
            return 1.0 + reached + learns + (reached and again)

        return cls(
            encoder=count_passes(encoder, encoder),
            projector=count_passes(projector, "projector" in learning, False),
            backbone=count_passes(reached, "backbone" in learning),
            attention=count_passes(reached, reached),  # all its factors are activations
            head=count_passes(reached, "backbone" in learning, False),
        )
