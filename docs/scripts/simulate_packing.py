"""Write docs/benchmarks/packing.csv: padding and waiting of mixtures like LLaVA-OneVision's, by way of batching. Run from the root:

    python docs/scripts/simulate_packing.py

Nothing is trained and nothing measured: token counts are those of the model's own visual tokenizers, sizes of images and
lengths of texts are assumed below, costs are estimated from FLOPs. Deterministic.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmblocks.conf import compose_for_planning
from mmblocks.data.planning.cost import SampleCost
from mmblocks.data.planning.measure import SampleSizes
from mmblocks.data.planning.report import report_batching
from mmblocks.model.checks.composition import DryBuild, dry_build
from mmblocks.shapes import Size, VisualShape

TABLE = Path(__file__).parents[1] / "benchmarks/packing.csv"
SAMPLES = 20_000
LONGEST_TEXT = 2048
PACK_TOKENS = 16_384
MODELS = ("llava_onevision/qwen2_0_5b", "llava_onevision/qwen2_7b")
RANKS = (1, 2, 4, 8, 16, 32, 64)
PICTURES = (
    (224, 224, 0.1),
    (480, 640, 0.38),
    (640, 480, 0.16),
    (700, 1000, 0.2),
    (1200, 900, 0.08),
    (2200, 1700, 0.08),
)
"""Height, width and share of each size of image."""
KINDS = {
    "single_image": {"text": 0.14, "image": 0.86},
    "onevision": {"text": 0.05, "image": 0.44, "multi_image": 0.32, "video": 0.19},
}
"""Shares of what a conversation shows."""
ASKED = {"text": (110, 0.8), "image": (60, 0.8), "multi_image": (90, 0.7), "video": (50, 0.7)}
ANSWERED = {"text": (260, 0.7), "image": (90, 1.0), "multi_image": (60, 1.0), "video": (70, 1.0)}
"""Median and spread (of the logarithm) of text tokens."""
PICTURES_SHOWN = (2, 6)
CLIP = VisualShape("video", Size(720, 1280), num_frames=900, fps=30.0)


def sizes_of(seen: DryBuild, stage: str) -> SampleSizes:
    """What a stage's samples hold."""
    rng = np.random.default_rng(0)
    shares = KINDS[stage]
    kinds = rng.choice(list(shares), size=SAMPLES, p=list(shares.values()))
    return SampleSizes.from_rows(_row(seen, kind, rng) for kind in kinds)


def _row(seen: DryBuild, kind: str, rng: np.random.Generator) -> tuple[int, int, int, int]:
    plans = [routed.plan for routed in seen.router.plan(_shown(kind, rng))]
    asked, labels = (_text_tokens(rng, *spread[kind]) for spread in (ASKED, ANSWERED))
    tokens = asked + labels + sum(plan.num_tokens for plan in plans)
    return tokens, sum(len(plan.views) for plan in plans), labels, tokens**2


def _text_tokens(rng: np.random.Generator, median: float, spread: float) -> int:
    return int(np.clip(rng.lognormal(np.log(median), spread), 4, LONGEST_TEXT))


def _shown(kind: str, rng: np.random.Generator) -> list[VisualShape]:
    if kind == "video":
        return [CLIP]
    number = (
        {"text": 0, "image": 1}.get(kind)
        if kind != "multi_image"
        else int(rng.integers(*PICTURES_SHOWN, endpoint=True))
    )
    chosen = rng.choice(len(PICTURES), size=number, p=[share for *_, share in PICTURES])
    return [VisualShape("image", Size(*PICTURES[i][:2])) for i in chosen]


def rows() -> list[dict[str, Any]]:
    """The table: model, stage, ranks, what is measured, way of batching, value."""
    table = []
    for model in MODELS:
        seen = dry_build(compose_for_planning(model)["model"])
        cost = SampleCost.from_model(seen)
        for stage in KINDS:
            sizes = sizes_of(seen, stage)
            for ranks in RANKS:
                table += _figures(model, stage, sizes, cost, ranks)
    return table


def _figures(model: str, stage: str, sizes: SampleSizes, cost: SampleCost, ranks: int) -> list[dict[str, Any]]:
    found = report_batching(sizes, cost, ranks, pack_tokens=PACK_TOKENS)
    own = {"model": model, "stage": stage, "ranks": ranks}
    groups: dict[str, Mapping[str, float | None]] = {"efficiency": found.efficiency}
    if ranks == RANKS[0]:  # the others do not depend on the number of ranks
        spreads = ((name, found.to_dict()[name]) for name in ("tokens", "views", "labels"))
        spread = {f"{name} {k}": v for name, values in spreads for k, v in values.items()}
        groups = {"per sample": spread, "waste": found.waste, "pairs": found.pairs, **groups}
    return _lines(own, groups)


def _lines(own: Mapping[str, Any], groups: Mapping[str, Mapping[str, float | None]]) -> list[dict[str, Any]]:
    return [
        {**own, "figure": figure, "batching": name, "value": f"{value:.4g}"}
        for figure, values in groups.items()
        for name, value in values.items()
        if value is not None
    ]


def main() -> None:
    """Write the table."""
    table = rows()
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    main()
