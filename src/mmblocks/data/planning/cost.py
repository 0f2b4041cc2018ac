"""What computing a sample takes, in seconds, as four rates: per view, per token, per attention pair, per label."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mmblocks.data.planning.measure import SampleSizes
from mmblocks.errors import ConfigError
from mmblocks.model.checks.composition import DryBuild, dry_build
from mmblocks.model.costs.devices import H200
from mmblocks.model.costs.flops import CAUSAL_SHARE, ForwardFlops, PassCounts
from mmblocks.model.spec import PARTS, ModelSpec
from mmblocks.storage import write_json

ASSUMED_FLOPS = H200.reached_flops or H200.peak_flops
ENCODER_SHARE, BACKBONE_SHARE, ATTENTION_SHARE = 0.60, 0.65, 0.40
"""Of the assumed FLOPs per second, what each kind of work is assumed to reach."""


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
        model: ModelSpec | Mapping[str, object] | DryBuild,
        learning: Collection[str] = PARTS,
        *,
        gradient_checkpointing: bool = False,
        flops_per_s: float = ASSUMED_FLOPS,
    ) -> SampleCost:
        """From the FLOPs of a composition, without running it: the same on every machine.

        learning: the parts that learn ("lora" too), whose backward passes count as `PassCounts` says. Raises `ConfigError`
        for a composition that cannot work.
        """
        seen = model if isinstance(model, DryBuild) else dry_build(model)
        seen.require_no_faults()
        forward = ForwardFlops.from_dry_build(seen)
        passes = PassCounts.from_learning(dict.fromkeys(learning, 1.0), gradient_checkpointing=gradient_checkpointing)
        vision = forward.encoder * passes.encoder + forward.projector * passes.projector
        return cls(
            view=vision / (ENCODER_SHARE * flops_per_s),
            token=forward.token * passes.backbone / (BACKBONE_SHARE * flops_per_s),
            pair=CAUSAL_SHARE * forward.pair * passes.attention / (ATTENTION_SHARE * flops_per_s),
            label=forward.label * passes.head / (BACKBONE_SHARE * flops_per_s),
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
            raise ConfigError(
                f"{path}: this is no saved cost ({cause!r}); measure one with `calibrate_cost`."
            ) from cause
