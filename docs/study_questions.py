"""What docs/study.py asks: questions as data, each with what was published, the arms that answer it, what is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mmblocks.data.sample.visual_placement import VisualOrder
from mmblocks.data.tinyworld import Task

Value = tuple[str, str]
"""Names of an arm and of a measure."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A share of exact answers to held-out questions of one of TinyWorld's tasks.

    kinds: question types that count, by default all. changes: parts exchanged for measuring alone, as `mmblocks swap`
    takes them. arms: those it is taken of, by default all of the question.
    """

    name: str
    task: Task
    kinds: tuple[str, ...] = ()
    visuals: VisualOrder = "as_written"
    changes: Mapping[str, Any] = field(default_factory=dict)
    arms: tuple[str, ...] = ()

    def concerns(self, arm: str) -> bool:
        return not self.arms or arm in self.arms


@dataclass(frozen=True, slots=True)
class Arm:
    """A model of the base run, or what a short training made of it.

    start: folder below the base run's stages/. changes: parts that are exchanged first (`mmblocks swap`). overrides: of
    the recipe tiny/study; None measures the start as it is. seeds: trained so often, with seeds 0, 1, ...
    """

    name: str
    what: str
    start: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] | None = ()
    seeds: int = 1


@dataclass(frozen=True, slots=True)
class Claim:
    """Something published, as a comparison of two values: `value` is to be more, no less, or alike. `than` may be a share."""

    says: str
    source: str
    value: Value
    expected: Literal["more", "no less", "alike"]
    than: Value | float


@dataclass(frozen=True, slots=True)
class Question:
    """visual: a picture or clip whose tokens are counted (see `mmblocks.model.budget.visual_shape`)."""

    name: str
    asks: str
    how: str
    arms: tuple[Arm, ...]
    measures: tuple[Measure, ...]
    claims: tuple[Claim, ...]
    visual: str | None = None

    def __post_init__(self) -> None:
        known = {(arm.name, m.name) for arm in self.arms for m in self.measures if m.concerns(arm.name)}
        for claim in self.claims:
            named = {claim.value} | ({claim.than} if isinstance(claim.than, tuple) else set())
            assert named <= known, f"{self.name}: {named - known}"


ONEVISION = "LLaVA-OneVision, https://arxiv.org/abs/2408.03326"
INTERLEAVE = "LLaVA-NeXT-Interleave, https://arxiv.org/abs/2407.07895"
NEXT = "LLaVA-NeXT, https://llava-vl.github.io/blog/2024-01-30-llava-next/"
NEXT_VIDEO = "LLaVA-NeXT-Video, https://llava-vl.github.io/blog/2024-04-30-llava-next-video/"
LLAVA_1_5 = "LLaVA-1.5, https://arxiv.org/abs/2310.03744"
HONEYBEE = "Honeybee, https://arxiv.org/abs/2312.06742"

SINGLE_IMAGE, ONEVISION_STAGE, LAST = "3-single_image", "4-onevision", "5-onevision_again"
SINGLE = Measure("single", "single")
MULTI = Measure("multi", "multi")
VIDEO = Measure("video", "video")


def data(*sources: str) -> str:
    """The override that gives a stage these sources, each written "task, setting: value, ..."."""
    return f"stages.0.data=[{','.join(f'{{name: tinyworld, task: {source}}}' for source in sources)}]"


STAGES = Question(
    "stages",
    "What does each stage add?",
    "The curriculum itself (`tiny/onevision`, one run), asked after every stage.",
    arms=(
        Arm("align", "after `align`: captions, projector only", "1-align", overrides=None),
        Arm("knowledge", "after `knowledge`: where things are", "2-knowledge", overrides=None),
        Arm("single_image", "after `single_image`: questions about single pictures", SINGLE_IMAGE, overrides=None),
        Arm("onevision", "after `onevision`: single, several, clips", ONEVISION_STAGE, overrides=None),
        Arm("onevision_again", "after `onevision_again`: the same once more", LAST, overrides=None),
    ),
    measures=(SINGLE, MULTI, VIDEO),
    claims=(
        Claim(
            "the OneVision stage adds several pictures",
            ONEVISION,
            ("onevision_again", "multi"),
            "more",
            ("single_image", "multi"),
        ),
        Claim("and it adds clips", ONEVISION, ("onevision_again", "video"), "more", ("single_image", "video")),
        Claim(
            "single pictures do not suffer from it",
            ONEVISION,
            ("onevision_again", "single"),
            "no less",
            ("single_image", "single"),
        ),
    ),
)

TRANSFER = Question(
    "transfer",
    "Do clips come from pictures alone?",
    "The `onevision` stage (1000 steps) once as it is and once without any clip in its data. Guessing among the four "
    "directions is right in 25 %.",
    arms=(
        Arm("single_image", "single pictures only", SINGLE_IMAGE, overrides=None),
        Arm(
            "without_clips",
            "single and several pictures, no clip",
            SINGLE_IMAGE,
            overrides=(
                data(
                    "single, turns: 3, weight: 0.15",
                    "by_shape, turns: 4, weight: 0.05",
                    "multi, kinds: [which], turns: 4, weight: 0.3",
                    "multi, turns: 4, weight: 0.3",
                ),
                "stages.0.steps=1000",
                "stages.0.train={encoder: 3.0e-4, projector: 1.5e-3, learned_tokens: 1.5e-3, backbone: 1.5e-3}",
            ),
        ),
        Arm("with_clips", "single and several pictures, clips", ONEVISION_STAGE, overrides=None),
    ),
    measures=(
        VIDEO,
        Measure("what moves", "video", kinds=("mover",)),
        Measure("which way", "video", kinds=("direction",)),
        MULTI,
        SINGLE,
    ),
    claims=(
        Claim(
            "trained on pictures alone, a model answers about clips: above the guess",
            NEXT_VIDEO,
            ("without_clips", "which way"),
            "more",
            0.25,
        ),
        Claim(
            "several pictures help with clips",
            INTERLEAVE,
            ("without_clips", "video"),
            "more",
            ("single_image", "video"),
        ),
        Claim("clips in the data help further", ONEVISION, ("with_clips", "video"), "more", ("without_clips", "video")),
        Claim(
            "with clips, several pictures are answered no worse",
            ONEVISION,
            ("with_clips", "multi"),
            "no less",
            ("without_clips", "multi"),
        ),
    ),
)

FOUR_FRAMES = {"tokenizer.video": {"name": "frames", "max_frames": 4}}
EIGHT_FRAMES = {"tokenizer.video": "frames_8"}
MEANS = {"pooling": {"name": "adaptive_average", "rows": 2, "columns": 2}}

POOLING = Question(
    "pooling",
    "How should the tokens of a clip be spent?",
    "From the single-image stage, which has seen no clip: 200 steps on clips (three quarters) and single pictures. A frame "
    "has 3x3 cells; clips have eight frames.",
    arms=(
        Arm("bilinear_8", "8 frames, bilinear to 2x2", SINGLE_IMAGE, seeds=3),
        Arm("means_8", "8 frames, means to 2x2", SINGLE_IMAGE, MEANS),
        Arm("average_8", "8 frames, whole 2x2 windows: 1x1", SINGLE_IMAGE, {"pooling": "average"}),
        Arm("none_8", "8 frames, every cell", SINGLE_IMAGE, {"pooling": "none"}),
        Arm("none_4", "4 frames, every cell", SINGLE_IMAGE, {"pooling": "none", **FOUR_FRAMES}),
        Arm("bilinear_4", "4 frames, bilinear to 2x2", SINGLE_IMAGE, FOUR_FRAMES),
    ),
    measures=(
        VIDEO,
        Measure("video, shown 8 frames", "video", changes=EIGHT_FRAMES, arms=("none_4", "bilinear_4")),
    ),
    claims=(
        Claim(
            "the choice of interpolation, which keeps all cells of an odd grid (27 to 14), over windows, which drop the last (13)",
            ONEVISION,
            ("bilinear_8", "video"),
            "more",
            ("average_8", "video"),
        ),
        Claim(
            "for like tokens (33 and 37), more frames that are pooled instead of fewer that are not",
            ONEVISION,
            ("bilinear_8", "video"),
            "more",
            ("none_4", "video"),
        ),
        Claim(
            "for like frames, no pooling at all is better",
            INTERLEAVE,
            ("none_8", "video"),
            "more",
            ("bilinear_8", "video"),
        ),
        Claim(
            "without pooling, more frames than in training help",
            INTERLEAVE,
            ("none_4", "video, shown 8 frames"),
            "more",
            ("none_4", "video"),
        ),
    ),
    visual="video=48x48@2s@4fps",
)

SMALL_DATA = (data("small, turns: 3, weight: 0.8", "single, turns: 3, weight: 0.2"), "stages.0.steps=400")

ANYRES = Question(
    "anyres",
    "Do tiles help where things are small?",
    "From the single-image stage: 400 steps, four fifths of them on shapes two fifths as large in pictures of 80 to 96 pixels "
    "(task `small`): ten pixels in the tiles, five in the base view. This is the second design tried: with still smaller shapes "
    "and 200 steps tiles made no difference (53 and 54 % right).",
    arms=(
        Arm("anyres", "base view and tiles", SINGLE_IMAGE, overrides=SMALL_DATA, seeds=2),
        Arm(
            "base_view",
            "base view alone",
            SINGLE_IMAGE,
            {"tokenizer.image": "square"},
            overrides=SMALL_DATA,
        ),
    ),
    measures=(Measure("small", "small"), Measure("small: shape", "small", kinds=("shape",)), SINGLE),
    claims=(
        Claim("tiles show small things", NEXT, ("anyres", "small"), "more", ("base_view", "small")),
        Claim("their shapes above all", NEXT, ("anyres", "small: shape"), "more", ("base_view", "small: shape")),
    ),
    visual="image=96x96",
)

MULTI_DATA = (data("multi, turns: 4"), "stages.0.steps=200")

POSITIONS = Question(
    "positions",
    "Where should several pictures stand?",
    "From the `onevision` stage, which has always seen pictures where they are written: 200 steps on several pictures, asked "
    "with the pictures among the text and with all of them in front of it.",
    arms=(
        Arm("before", "no further training", ONEVISION_STAGE, overrides=None),
        Arm("interleaved", "trained among the text", ONEVISION_STAGE, overrides=MULTI_DATA, seeds=2),
        Arm("front", "trained in front", ONEVISION_STAGE, overrides=(*MULTI_DATA, "stages.0.visuals=front")),
        Arm(
            "mixed",
            "trained half and half",
            ONEVISION_STAGE,
            overrides=(*MULTI_DATA, "stages.0.visuals=mixed"),
        ),
    ),
    measures=(Measure("among the text", "multi"), Measure("in front", "multi", visuals="front")),
    claims=(
        Claim(
            "trained on both, in front is answered better than trained among the text only",
            INTERLEAVE,
            ("mixed", "in front"),
            "more",
            ("interleaved", "in front"),
        ),
        Claim(
            "trained on both, among the text is answered better than trained in front only",
            INTERLEAVE,
            ("mixed", "among the text"),
            "more",
            ("front", "among the text"),
        ),
        Claim(
            "trained on both, among the text loses nothing",
            INTERLEAVE,
            ("mixed", "among the text"),
            "no less",
            ("interleaved", "among the text"),
        ),
    ),
)

ANEW = ("first_stage=projector_only", "last_stage=projector_only")

PROJECTORS = Question(
    "projectors",
    "Does the kind of projector matter?",
    "From the single-image stage, with a projector drawn anew and trained alone (250 steps on captions and questions about "
    "single pictures); encoder and language model stay frozen. Rate and steps were chosen on mlp alone. The perceiver also "
    "needs flat tiles and no pooling.",
    arms=(
        Arm("mlp", "two linear layers", SINGLE_IMAGE, {"projector": "mlp"}, ANEW, seeds=2),
        Arm("linear", "one linear layer", SINGLE_IMAGE, {"projector": "linear"}, ANEW),
        Arm("gated", "SwiGLU", SINGLE_IMAGE, {"projector": "gated"}, ANEW),
        Arm(
            "c_abstractor",
            "C-Abstractor to 3x3 cells",
            SINGLE_IMAGE,
            {"projector": {"name": "c_abstractor", "queries": 9, "dim": 64, "depth": 1}},
            ANEW,
        ),
        Arm(
            "perceiver",
            "perceiver resampler, 9 queries",
            SINGLE_IMAGE,
            {
                "projector": {"name": "perceiver", "queries": 9, "depth": 2, "heads": 4, "head_dim": 32, "ff_mult": 2},
                "tokenizer.image": {"name": "anyres", "pinpoints": "(1x1),...,(2x2)", "merge": "flat"},
                "pooling": "none",
            },
            ANEW,
        ),
    ),
    measures=(SINGLE, Measure("where", "single", kinds=("where",)), Measure("shape", "single", kinds=("shape",))),
    claims=(
        Claim("two layers instead of one", LLAVA_1_5, ("mlp", "single"), "more", ("linear", "single")),
        Claim(
            "a projector that keeps the grid instead of a resampler that does not, most of all for places",
            HONEYBEE,
            ("mlp", "where"),
            "more",
            ("perceiver", "where"),
        ),
        Claim(
            "among resamplers, the one that keeps neighbours together",
            HONEYBEE,
            ("c_abstractor", "where"),
            "more",
            ("perceiver", "where"),
        ),
    ),
    visual="image=96x96",
)

QUESTIONS = (STAGES, TRANSFER, POOLING, ANYRES, POSITIONS, PROJECTORS)
