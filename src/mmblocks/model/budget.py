"""What a composition costs for given images and videos: tokens, FLOPs and memory, before any weight is read."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from mmblocks.errors import ConfigError
from mmblocks.model.checks.composition import DryBuild, dry_build
from mmblocks.model.checks.limits import count_kv_bytes_per_token, find_local_tokenizer
from mmblocks.model.costs.flops import count_prefill_flops
from mmblocks.model.costs.state import STORED_BYTES
from mmblocks.model.spec import PARTS, ModelSpec
from mmblocks.settings import format_value, is_of_type
from mmblocks.shapes import Scenario, Size, VisualKind, VisualPlan, VisualShape

DEFAULT_FPS = 30.0
MAX_SIDE_PX, MAX_FRAMES, MAX_TEXT_TOKENS = 1_000_000, 10**9, 10**9
"""Pixels a side, frames (a year at 30 per second) and tokens of text: far beyond what is of use, and planned at once."""
CHARACTERS_PER_TOKEN = 2
"""Characters per token of inline text, which is mostly digits, where the text tokenizer is not on this machine."""
VISUAL_PATTERN = re.compile(r"(image|video)=(\d+)x(\d+)(?:@([\d.]+)s)?(?:@([\d.]+)fps)?")


@dataclass(frozen=True, slots=True)
class VisualBudget:
    """What one visual takes: `views` images through the encoder, `tokens` in the sequence, `inline_text_tokens` of text
    that its tokenizer puts around these (time stamps and the like).
    """

    kind: VisualKind
    size: Size
    num_frames: int
    scenario: Scenario
    views: int
    tokens: int
    inline_text_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Budget:
    """The costs of one conversation. Plain values: `dataclasses.asdict` gives what json takes.

    flops: of the prefill by part (see `count_prefill_flops`): the projector and the last layer count for all cells and rows
    although fewer may be needed, and the head runs on the last row only. None for a part whose work depends on its weights.
    weight_bytes, kv_cache_bytes: in bfloat16.
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
    notes: tuple[str, ...] = field(default=())

    @property
    def is_within_limit(self) -> bool:
        return self.sequence_tokens <= self.max_tokens

    @property
    def views(self) -> int:
        return sum(visual.views for visual in self.visuals)

    @property
    def inline_text_tokens(self) -> int:
        return sum(visual.inline_text_tokens for visual in self.visuals)

    def to_dict(self) -> dict[str, object]:
        """Values that json takes, totals included."""
        visuals = [{**asdict(v), "size": v.size._asdict()} for v in self.visuals]
        return {
            **asdict(self),
            "visuals": visuals,
            "notes": list(self.notes),
            "views": self.views,
            "fits": self.is_within_limit,
        }


def estimate_budget(
    model: ModelSpec | Mapping[str, object] | DryBuild, media: Sequence[VisualShape], *, text_tokens: int = 64
) -> Budget:
    """The budget of one conversation with these visuals, in their order, and `text_tokens` of text.

    Raises `ConfigError` with every reason why the composition cannot work.
    """
    if not is_of_type(int, text_tokens) or not 0 <= text_tokens <= MAX_TEXT_TOKENS:
        raise ConfigError(
            f"text_tokens={format_value(text_tokens)}; a conversation has 0 or more tokens of text, {MAX_TEXT_TOKENS} at most."
        )
    for shape in media:
        _require_possible_visual(shape, format_value(shape))
    seen = model if isinstance(model, DryBuild) else dry_build(model)
    seen.require_no_faults()
    routed = seen.router.plan(media)
    inline_tokens, inline_notes = _count_inline_text_tokens([r.plan for r in routed], seen)
    visuals = tuple(
        VisualBudget(shape.kind, shape.size, shape.num_frames, r.scenario, len(r.plan.views), r.plan.num_tokens, words)
        for shape, r, words in zip(media, routed, inline_tokens, strict=True)
    )
    visual_tokens = sum(visual.tokens for visual in visuals)
    sequence = visual_tokens + sum(inline_tokens) + text_tokens
    parameters = {part: seen.count_parameters(part) or 0 for part in PARTS}
    flops, notes = count_prefill_flops(seen, sum(visual.views for visual in visuals), sequence)
    per_token = count_kv_bytes_per_token(getattr(seen.backbone, "config", None), STORED_BYTES)
    return Budget(
        visuals=visuals,
        text_tokens=text_tokens,
        visual_tokens=visual_tokens,
        sequence_tokens=sequence,
        max_tokens=seen.backbone.max_tokens,
        parameters=parameters,
        flops=flops,
        weight_bytes=STORED_BYTES * sum(parameters.values()),
        kv_cache_bytes=None if per_token is None else per_token * sequence,
        notes=(*inline_notes, *notes),
    )


def _count_inline_text_tokens(plans: Sequence[VisualPlan], seen: DryBuild) -> tuple[list[int], tuple[str, ...]]:
    """Tokens of the inline text of each plan, each text by itself, and a note where they are guessed."""
    texts = [[text for _, text in plan.inline_texts] for plan in plans]
    if not any(texts):
        return [0] * len(texts), ()
    if find_local_tokenizer(seen.backbone) is not None:
        tokenizer = seen.backbone.text_tokenizer
        return [sum(len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in ts) for ts in texts], ()
    guessed = [sum(-(-len(t) // CHARACTERS_PER_TOKEN) for t in ts) for ts in texts]
    return guessed, (f"text between visual rows is guessed at a token per {CHARACTERS_PER_TOKEN} characters",)


# Visuals as text ----------------------------------------------------------------------------------------------------


def parse_visual_shape(text: str) -> VisualShape:
    """A visual from text: image=WIDTHxHEIGHT, video=WIDTHxHEIGHT@SECONDSs or video=...@SECONDSs@FPSfps (30 by default)."""
    match, name = VISUAL_PATTERN.fullmatch(text), format_value(text)
    cure = (
        "write image=WIDTHxHEIGHT or video=WIDTHxHEIGHT@SECONDSs, such as image=1000x700 or video=1280x720@30s@25fps."
    )
    if match is None:
        raise ConfigError(f"{name} is no image or video; {cure}")
    kind, width, height, seconds, rate = match.groups()
    if (kind == "video") != (seconds is not None) or (kind == "image" and rate is not None):
        raise ConfigError(f"{name}: a video has seconds and an image has none; {cure}")
    if max(len(width), len(height)) > len(str(MAX_SIDE_PX)):  # Python reads no number of thousands of digits
        raise ConfigError(f"{name}: a side has {MAX_SIDE_PX} pixels at most; write fewer.")
    size = Size(int(height), int(width))
    if min(size) < 1:
        raise ConfigError(f"{name} has no pixels; {cure}")
    shape = VisualShape("image", size)
    if kind == "video":
        try:
            duration_s, fps = float(seconds), float(rate) if rate else DEFAULT_FPS
        except ValueError as cause:
            raise ConfigError(f"{name}: seconds and frames per second are numbers such as 30 or 29.97.") from cause
        if duration_s <= 0 or fps <= 0:
            raise ConfigError(f"{name}: a video lasts longer than 0 seconds, at more than 0 frames per second.")
        shape = VisualShape("video", size, max(1, round(min(duration_s * fps, MAX_FRAMES + 1))), fps)
    _require_possible_visual(shape, name)
    return shape


def _require_possible_visual(shape: VisualShape, name: str) -> None:
    """Refuse an image or video that cannot be, or is larger than any."""
    if not all(is_of_type(int, side) and 1 <= side <= MAX_SIDE_PX for side in shape.size):
        raise ConfigError(f"{name}: each side has 1 to {MAX_SIDE_PX} pixels.")
    if not is_of_type(int, shape.num_frames) or not 1 <= shape.num_frames <= MAX_FRAMES:
        raise ConfigError(f"{name}: a video has 1 to {MAX_FRAMES} frames; write fewer seconds or frames per second.")
    if not is_of_type(float, shape.fps) or not 0 < shape.fps < math.inf:
        raise ConfigError(f"{name}: a video shows more than 0 frames per second, and finitely many.")
