"""What a composition costs for given pictures and clips: tokens, FLOPs and memory, before any weight is read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmblocks.batch import Packing, Rows
from mmblocks.compat import warnings_not_raised
from mmblocks.errors import ConfigError
from mmblocks.model.checks.composition import Examination, examine
from mmblocks.model.checks.limits import kv_bytes_per_token, local_tokenizer
from mmblocks.model.flops import count_flops
from mmblocks.model.spec import PARTS, ModelSpec
from mmblocks.settings import accepts, shown
from mmblocks.shapes import Scenario, Size, VisualKind, VisualPlan, VisualShape

BYTES_STORED = 2
"""Weights and cache in bf16."""
BYTES_TRAINED = 16
"""Weight, gradient and Adam's two moments in fp32; as much as bf16 weight and gradient, fp32 copy and moments."""
DEFAULT_FPS = 30.0
MOST_PX, MOST_FRAMES, MOST_TEXT = 1_000_000, 10**9, 10**9
"""Pixels a side, frames (a year at 30 per second) and tokens of text: far beyond what is of use, and planned at once."""
GUESSED_CHARACTERS = 2
"""Characters per token of told texts, which are mostly digits, where the text tokenizer is not on this machine."""
MEDIA_WORD = re.compile(r"(image|video)=(\d+)x(\d+)(?:@([\d.]+)s)?(?:@([\d.]+)fps)?")


@dataclass(frozen=True, slots=True)
class VisualBudget:
    """What one visual takes: `views` pictures through the encoder, `tokens` in the sequence, `told_tokens` of text that
    its tokenizer puts around these (time stamps and the like).
    """

    kind: VisualKind
    size: Size
    num_frames: int
    scenario: Scenario
    views: int
    tokens: int
    told_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Budget:
    """The costs of one conversation. Plain values: `dataclasses.asdict` gives what json takes.

    flops: of the prefill by part; a multiplication and an addition are two, attention counts in full although causal
    kernels may skip half ("attention" is its share of "backbone"), the projector and the last layer count for all cells
    and rows although fewer may be needed, and the head runs on the last row only. None for a
    part whose work depends on its weights.
    training_bytes: by stage, what weights, gradients and Adam's moments take, activations apart.
    """

    visuals: tuple[VisualBudget, ...]
    text_tokens: int
    visual_tokens: int
    sequence_tokens: int
    max_tokens: int
    parameters: dict[str, int]
    flops: dict[str, int | None]
    weight_bytes: int
    kv_cache_bytes: int | None
    training_bytes: dict[str, int]
    notes: tuple[str, ...] = field(default=())

    @property
    def fits(self) -> bool:
        return self.sequence_tokens <= self.max_tokens

    @property
    def views(self) -> int:
        return sum(visual.views for visual in self.visuals)

    @property
    def told_tokens(self) -> int:
        return sum(visual.told_tokens for visual in self.visuals)

    def plain(self) -> dict[str, Any]:
        """Values that json takes, totals included."""
        visuals = [{**asdict(v), "size": v.size._asdict()} for v in self.visuals]
        return {**asdict(self), "visuals": visuals, "notes": list(self.notes), "views": self.views, "fits": self.fits}


def plan(
    spec: ModelSpec | Mapping[str, Any],
    media: Sequence[VisualShape],
    *,
    text_tokens: int = 64,
    stages: Mapping[str, Sequence[str]] | None = None,
) -> Budget:
    """The budget of one conversation with these visuals, in their order, and `text_tokens` of text.

    `stages` names the parts that learn in each stage, all of them by default. Raises `ConfigError` with every reason
    why the composition cannot work.
    """
    if not accepts(int, text_tokens) or not 0 <= text_tokens <= MOST_TEXT:
        raise ConfigError(
            f"text_tokens={shown(text_tokens)}; a conversation has 0 or more tokens of text, {MOST_TEXT} at most."
        )
    for shape in media:
        _require_possible(shape, shown(shape))
    seen = examine(spec)
    seen.require()
    routed = seen.router.plan(media)
    told, told_notes = _told_tokens([r.plan for r in routed], seen.backbone)
    visuals = tuple(
        VisualBudget(shape.kind, shape.size, shape.num_frames, r.scenario, len(r.plan.views), r.plan.num_tokens, words)
        for shape, r, words in zip(media, routed, told, strict=True)
    )
    visual_tokens = sum(visual.tokens for visual in visuals)
    sequence = visual_tokens + sum(told) + text_tokens
    parameters = {part: seen.parameters(part) or 0 for part in PARTS}
    flops, notes = prefill_flops(seen, sum(visual.views for visual in visuals), sequence)
    per_token = kv_bytes_per_token(getattr(seen.backbone, "config", None), BYTES_STORED)
    return Budget(
        visuals=visuals,
        text_tokens=text_tokens,
        visual_tokens=visual_tokens,
        sequence_tokens=sequence,
        max_tokens=seen.backbone.max_tokens,
        parameters=parameters,
        flops=flops,
        weight_bytes=BYTES_STORED * sum(parameters.values()),
        kv_cache_bytes=None if per_token is None else per_token * sequence,
        training_bytes={
            name: training_bytes(parameters, parts) for name, parts in (stages or {"all parts": PARTS}).items()
        },
        notes=(*told_notes, *notes),
    )


def _told_tokens(plans: Sequence[VisualPlan], backbone: Any) -> tuple[list[int], tuple[str, ...]]:
    """Tokens of the text that each plan tells, each text by itself, and a note where they had to be guessed."""
    texts = [[text for _, text in plan.told] for plan in plans]
    if not any(texts):
        return [0] * len(texts), ()
    if local_tokenizer(backbone) is not None:
        tokenizer = backbone.text_tokenizer
        return [sum(len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in ts) for ts in texts], ()
    guessed = [sum(-(-len(t) // GUESSED_CHARACTERS) for t in ts) for ts in texts]
    return guessed, (f"text between visual rows is guessed at a token per {GUESSED_CHARACTERS} characters",)


def training_bytes(parameters: Mapping[str, int], learning: Sequence[str]) -> int:
    """Memory of the training state: frozen parts are only stored."""
    return sum(n * (BYTES_TRAINED if part in learning else BYTES_STORED) for part, n in parameters.items())


# FLOPs --------------------------------------------------------------------------------------------------------------


def prefill_flops(seen: Examination, views: int, tokens: int) -> tuple[dict[str, int | None], tuple[str, ...]]:
    """FLOPs by part, counted by torch on meta tensors; and a note for each part that cannot be traced so."""
    encoder, backbone = seen.encoder, seen.backbone
    runs: dict[str, tuple[int, Callable[[], Any]]] = {
        "encoder": (views, lambda: encoder(torch.empty(1, 3, *encoder.view_px))),
        "projector": (views, lambda: seen.projector(torch.empty(1, *encoder.grid, encoder.dim))),
        "backbone": (1, lambda: _prefill(backbone, tokens)),
        "head": (1, lambda: backbone.logits(torch.empty(1, backbone.dim))),
    }
    flops: dict[str, int | None] = {}
    notes = []
    for part, (times, run) in runs.items():
        try:
            total, attention = _counted(run) if times else (0, 0)
        except Exception as cause:  # any operator may refuse meta tensors, e.g. the routing of a mixture of experts
            flops[part] = None
            notes.append(f"FLOPs of the {part} depend on its weights ({type(cause).__name__}: {cause})")
            continue
        flops[part] = times * total
        if part == "backbone":
            flops["attention"] = attention
    return flops, tuple(notes)


def last_row_flops(backbone: Any, tokens: int) -> tuple[int, int]:
    """FLOPs of a sequence of which only the last row's hidden states are asked for, and attention's share of them."""
    last = Rows(torch.empty(1, dtype=torch.int64, device="meta"), (1,), (tokens - 1,), (0, tokens))
    return _counted(lambda: _prefill(backbone, tokens, last))


def _prefill(backbone: Any, tokens: int, rows: Rows | None = None) -> Tensor:
    packing = Packing(torch.tensor([0, tokens], dtype=torch.int32, device="cpu"), tokens)
    return backbone.hidden(torch.empty(tokens, backbone.dim), torch.arange(tokens), packing, rows)


@warnings_not_raised()
def _counted(run: Callable[[], Any]) -> tuple[int, int]:
    """FLOPs of a run on the meta device, and how many of them are products of activations (attention)."""
    by_operator = count_flops(run)
    return by_operator.total(), sum(n for name, n in by_operator.items() if "bmm" in name or "attention" in name)


# Media as words -----------------------------------------------------------------------------------------------------


def visual_shape(word: str) -> VisualShape:
    """A visual from a word: image=WIDTHxHEIGHT, video=WIDTHxHEIGHT@SECONDSs or video=...@SECONDSs@FPSfps (30 by default)."""
    match = MEDIA_WORD.fullmatch(word)
    cure = (
        "write image=WIDTHxHEIGHT or video=WIDTHxHEIGHT@SECONDSs, such as image=1000x700 or video=1280x720@30s@25fps."
    )
    if match is None:
        raise ConfigError(f"{shown(word)} is no picture or clip; {cure}")
    kind, width, height, seconds, rate = match.groups()
    if (kind == "video") != (seconds is not None) or (kind == "image" and rate is not None):
        raise ConfigError(f"{shown(word)}: a clip has seconds and a picture has none; {cure}")
    size = Size(*(_pixels(word, side) for side in (height, width)))
    if min(size) < 1:
        raise ConfigError(f"{shown(word)} shows nothing; {cure}")
    shape = VisualShape("image", size) if kind == "image" else _clip(word, size, seconds, rate)
    _require_possible(shape, shown(word))
    return shape


def _pixels(word: str, digits: str) -> int:
    if len(digits) > len(str(MOST_PX)):  # Python reads no number of thousands of digits
        raise ConfigError(f"{shown(word)}: a side has {MOST_PX} pixels at most; write fewer.")
    return int(digits)


def _require_possible(shape: VisualShape, name: str) -> None:
    """Refuse a picture or clip that cannot be, or is larger than any."""
    if not all(accepts(int, side) and 1 <= side <= MOST_PX for side in shape.size):
        raise ConfigError(f"{name} shows nothing, or too much; each side has 1 to {MOST_PX} pixels.")
    if not accepts(int, shape.num_frames) or not 1 <= shape.num_frames <= MOST_FRAMES:
        raise ConfigError(f"{name}: a clip has 1 to {MOST_FRAMES} frames; write fewer seconds or frames per second.")
    if not accepts(float, shape.fps) or not 0 < shape.fps < math.inf:
        raise ConfigError(f"{name}: a clip shows more than 0 frames per second, and finitely many.")


def _clip(word: str, size: Size, seconds: str, rate: str | None) -> VisualShape:
    try:
        duration_s, fps = float(seconds), float(rate) if rate else DEFAULT_FPS
    except ValueError as cause:
        raise ConfigError(f"{shown(word)}: seconds and frames per second are numbers such as 30 or 29.97.") from cause
    if duration_s <= 0 or fps <= 0:
        raise ConfigError(f"{shown(word)}: a clip lasts longer than 0 seconds, at more than 0 frames per second.")
    frames = max(1, round(min(duration_s * fps, MOST_FRAMES + 1)))
    return VisualShape("video", size, frames, fps)
