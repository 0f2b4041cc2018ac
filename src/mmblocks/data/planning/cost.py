"""What computing a sample takes, in seconds, as four rates: per view, per token, per attention pair, per label."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmblocks.data.planning.measure import Sizes
from mmblocks.errors import ConfigError
from mmblocks.model.budget import prefill_flops
from mmblocks.model.checks.composition import Examination, examine
from mmblocks.model.spec import PARTS, ModelSpec
from mmblocks.storage import write_json

ASSUMED_FLOPS = 790e12
"""Dense bf16 FLOP/s that an H200 was measured to reach."""
ENCODER_SHARE, BACKBONE_SHARE, ATTENTION_SHARE = 0.60, 0.65, 0.40
"""Of that, what each kind of work is assumed to reach."""
PROBE_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds per view, token, pair of tokens of one sequence (squared length), and label."""

    view: float
    token: float
    pair: float
    label: float

    def of(self, sizes: Sizes) -> np.ndarray:
        """(n,) float64 seconds."""
        return sizes.views * self.view + sizes.tokens * self.token + sizes.pairs * self.pair + sizes.labels * self.label

    @classmethod
    def estimated(
        cls,
        model: ModelSpec | Mapping[str, Any] | Examination,
        learning: Collection[str] = PARTS,
        *,
        recompute: bool = False,
        flops_per_s: float = ASSUMED_FLOPS,
    ) -> Cost:
        """From the FLOPs of a composition, without running it: the same on every machine.

        learning: the parts that learn ("lora" too). A part costs its forward pass; as much again for the gradient of
        what comes in, if it or a part before it learns; as much again for the gradient of its weights, if it learns;
        and its forward pass a second time with `recompute`. Where torch cannot count a part's FLOPs (mixtures of
        experts), two per weight are taken. Raises `ConfigError` for a composition that cannot work.
        """
        seen = model if isinstance(model, Examination) else examine(model)
        seen.require()
        work, times = _Work.of(seen), _Times.of(learning, recompute)
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
    def load(cls, path: str | Path) -> Cost:
        """Read what `save` wrote. Raises `ConfigError` for anything else."""
        try:
            raw = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(**{name: float(raw[name]) for name in ("view", "token", "pair", "label")})
        except (OSError, ValueError, KeyError, TypeError) as cause:
            raise ConfigError(f"{path}: this is no saved cost ({cause!r}); measure one with `calibrate`.") from cause


@dataclass(frozen=True, slots=True)
class _Work:
    """FLOPs of the forward pass: of a view in encoder and projector, of a token, a pair and a label in the backbone."""

    encoder: float
    projector: float
    token: float
    pair: float
    label: float

    @classmethod
    def of(cls, seen: Examination) -> _Work:
        flops, _ = prefill_flops(seen, 1, PROBE_TOKENS)
        attention = flops.get("attention") or 0
        backbone = flops["backbone"]
        weights = 2 * (seen.parameters("backbone") or 0)
        return cls(
            encoder=_known(flops["encoder"], 2 * (seen.parameters("encoder") or 0) * seen.encoder.grid.area),
            projector=_known(flops["projector"], 2 * (seen.parameters("projector") or 0) * seen.encoder.grid.area),
            token=weights if backbone is None else (backbone - attention) / PROBE_TOKENS,
            pair=attention / PROBE_TOKENS**2 / 2,  # a token attends to those before it: half of all pairs
            label=_known(flops["head"], 2 * seen.backbone.dim * seen.backbone.vocab_size),
        )


def _known(flops: int | None, otherwise: float) -> float:
    return otherwise if flops is None else flops


@dataclass(frozen=True, slots=True)
class _Times:
    """How many forward passes' work each part has in a training step."""

    encoder: float
    projector: float
    backbone: float
    attention: float
    head: float

    @classmethod
    def of(cls, learning: Collection[str], recompute: bool) -> _Times:
        encoder = "encoder" in learning
        projector = encoder or "projector" in learning
        reached = projector or "marks" in learning or "backbone" in learning or "lora" in learning

        def times(reached: bool, learns: bool, again: bool = recompute) -> float:
            return 1.0 + reached + learns + (reached and again)

        return cls(
            encoder=times(encoder, encoder),
            projector=times(projector, "projector" in learning, False),
            backbone=times(reached, "backbone" in learning),
            attention=times(reached, reached),  # all its factors are activations
            head=times(reached, "backbone" in learning, False),
        )
