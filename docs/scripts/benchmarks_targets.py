"""What the optimized core was to reach, and which measured rows say whether it does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.suites.rows import Row


@dataclass(frozen=True, slots=True)
class Target:
    """At least `least`, of `ratio` or of `floor_share`, in every row that fits; patterns fit whole texts.

    device: where it is measured. size, scenario, quantity, settings: regular expressions.
    """

    says: str
    least: float
    suite: str
    device: str
    size: str = ".*"
    scenario: str = ".*"
    quantity: str = ".*"
    setting: str = ".*"
    settings: str = ".*"
    of: str = "ratio"

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """Those that it is about."""
        return [row for row in rows if self._fits(row) and getattr(row, self.of) is not None]

    def _fits(self, row: Row) -> bool:
        texts = (
            (self.size, row.size),
            (self.scenario, row.scenario),
            (self.quantity, row.quantity),
            (self.setting, row.peer_setting),
            (self.settings, row.settings),
        )
        own = (row.suite, row.device) == (self.suite, self.device)
        return own and all(re.fullmatch(pattern, text) for pattern, text in texts)


SHIPPED, BEST, NAIVE = "as shipped", "best", "naive"
SHOWN = "video|anyres|images"
PLAIN, RECOMPUTED = "(?!.*checkpointing).*", ".*checkpointing"

# 729 (1152 + D) over 729 * 1152 + 196 D, that is 1.4703 and 2.2386, and no more: it is arithmetic.
COUNTERS = (
    Target("projector FLOPs on a video, 0.5B's width", 1.47, "counters", "cpu", scenario=".*896", quantity="projector"),
    Target("projector FLOPs on a video, 7B's width", 2.238, "counters", "cpu", scenario=".*3584", quantity="projector"),
)
TIMES = (
    Target("prefill, small, as shipped", 1.1, "prefill", "cpu", "small", SHOWN, setting=SHIPPED),
    Target("prefill, small, at its best", 1.05, "prefill", "cpu", "small", SHOWN, setting=BEST),
    Target("prefill, tiny, as shipped", 1.8, "prefill", "cpu", "tiny", SHOWN, setting=SHIPPED),
    Target("prefill, tiny, at its best", 1.2, "prefill", "cpu", "tiny", SHOWN, setting=BEST),
    Target("training step, small, as shipped", 3, "train", "cpu", "small", setting=SHIPPED),
    Target("training step, tiny, as shipped", 5, "train", "cpu", "tiny", setting=SHIPPED),
    Target(
        "projector and pooling forward and backward, 7B's width",
        2,
        "pool",
        "cpu",
        scenario=".*3584",
        quantity="forward and backward",
    ),
    Target("second question about a video, as shipped", 10, "second_question", "cpu", setting=SHIPPED),
)
EVALUATION = (
    Target("answers to 200 documents, one at a time", 1.5, "evaluation", "cpu", quantity=".*tokens each"),
    Target("multiple choice of 200 documents by log-likelihood", 3, "evaluation", "cpu", quantity=".*choices each"),
)
MEMORY = (
    Target(
        "peak of a step at 16k tokens, both without gradient checkpointing",
        3,
        "memory",
        "meta",
        "0_5b|7b",
        quantity="peak of a step",
        setting=SHIPPED,
    ),
    Target(
        "peak of a step at 16k tokens, both with gradient checkpointing",
        3,
        "memory",
        "meta",
        "0_5b|7b",
        quantity="peak of a step, blocks recomputed",
        setting=SHIPPED,
    ),
)
GPU = (
    Target("pooling kernel, share of its floor", 0.8, "pool_kernel", "cuda", quantity="forward", of="floor_share"),
    Target("encode 32 tiles, as shipped", 1.15, "vit", "cuda", scenario="32 tiles", setting=SHIPPED),
    Target(
        "encode 32 tiles, share of the matmul ceiling",
        0.6,
        "vit",
        "cuda",
        scenario="32 tiles",
        setting=SHIPPED,
        of="floor_share",
    ),
    Target("prefill of a base image, 0.5B, as shipped", 3, "prefill", "cuda", "0_5b", "base", setting=SHIPPED),
    Target(
        "prefill of AnyRes and 12 images, 0.5B, as shipped",
        1.4,
        "prefill",
        "cuda",
        "0_5b",
        "anyres|images",
        setting=SHIPPED,
    ),
    Target(
        "prefill of AnyRes and 12 images, 0.5B, at its best",
        1.2,
        "prefill",
        "cuda",
        "0_5b",
        "anyres|images",
        setting=BEST,
    ),
    Target("prefill, 7B, as shipped", 1.25, "prefill", "cuda", "7b", "base|anyres|images|video", setting=SHIPPED),
    Target("prefill, 7B, at its best", 1.15, "prefill", "cuda", "7b", "base|anyres|images|video", setting=BEST),
    Target("decode, one sequence, 0.5B, as shipped", 10, "decode", "cuda", "0_5b", "batch 1 .*", setting=SHIPPED),
    Target("decode, one sequence, 7B, as shipped", 2, "decode", "cuda", "7b", "batch 1 .*", setting=SHIPPED),
    Target("second question about a video, as shipped", 20, "second_question", "cuda", setting=SHIPPED),
    Target(
        "training step, 0.5B, peer without gradient checkpointing",
        1.5,
        "train",
        "cuda",
        "0_5b",
        setting=SHIPPED,
        settings=PLAIN,
    ),
    Target(
        "training step, 0.5B, peer with gradient checkpointing",
        1.9,
        "train",
        "cuda",
        "0_5b",
        setting=SHIPPED,
        settings=RECOMPUTED,
    ),
    Target("training step, 0.5B, share of the matmul ceiling", 0.5, "train", "cuda", "0_5b", of="floor_share"),
    Target(
        "training step, 7B, peer without gradient checkpointing",
        1.3,
        "train",
        "cuda",
        "7b",
        setting=SHIPPED,
        settings=PLAIN,
    ),
    Target(
        "training step, 7B, peer with gradient checkpointing",
        1.7,
        "train",
        "cuda",
        "7b",
        setting=SHIPPED,
        settings=RECOMPUTED,
    ),
    Target("training step, 7B, share of the matmul ceiling", 0.65, "train", "cuda", "7b", of="floor_share"),
    Target(
        "peak of a step at 16k tokens, both without gradient checkpointing",
        3,
        "memory",
        "cuda",
        quantity="peak of a step",
        setting=SHIPPED,
    ),
)

STARTUP_AIMS = {
    "check tiny/onevision": 1.5,
    "plan onevision/7b": 1.5,
    "chat, one question": 3.0,
    "train, first step": 3.0,
}
"""Seconds of processor time at most, beyond importing torch and transformers."""
