"""What docs/scripts/study.py asks: questions as data, each with what was published, the arms that answer it, what is measured."""

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
    """visual: an image or video whose tokens are counted (see `mmblocks.model.budget.visual_shape`)."""

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
    "The curriculum `tiny/onevision` itself (one run), evaluated after every stage.",
    arms=(
        Arm("align", "after `align`: captions, projector only", "1-align", overrides=None),
        Arm("knowledge", "after `knowledge`: places of objects", "2-knowledge", overrides=None),
        Arm("single_image", "after `single_image`: questions about single images", SINGLE_IMAGE, overrides=None),
        Arm("onevision", "after `onevision`: single images, several images, videos", ONEVISION_STAGE, overrides=None),
        Arm("onevision_again", "after `onevision_again`: the same again", LAST, overrides=None),
    ),
    measures=(SINGLE, MULTI, VIDEO),
    claims=(
        Claim(
            "the OneVision stage adds the ability to compare several images",
            ONEVISION,
            ("onevision_again", "multi"),
            "more",
            ("single_image", "multi"),
        ),
        Claim(
            "the OneVision stage adds the ability to answer about videos",
            ONEVISION,
            ("onevision_again", "video"),
            "more",
            ("single_image", "video"),
        ),
        Claim(
            "the OneVision stage does not reduce the score on single images",
            ONEVISION,
            ("onevision_again", "single"),
            "no less",
            ("single_image", "single"),
        ),
    ),
)

TRANSFER = Question(
    "transfer",
    "Can a model answer about videos after training on images only?",
    "The `onevision` stage (1000 steps), once unchanged and once without videos in its data. Guessing one of the four "
    "directions is correct in 25 %.",
    arms=(
        Arm("single_image", "single images only", SINGLE_IMAGE, overrides=None),
        Arm(
            "without_clips",
            "single and several images, no videos",
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
        Arm("with_clips", "single and several images, videos", ONEVISION_STAGE, overrides=None),
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
            "after training on images only, the direction of motion is answered better than by guessing",
            NEXT_VIDEO,
            ("without_clips", "which way"),
            "more",
            0.25,
        ),
        Claim(
            "training on several images improves the score on videos",
            INTERLEAVE,
            ("without_clips", "video"),
            "more",
            ("single_image", "video"),
        ),
        Claim(
            "videos in the data improve the score on videos further",
            ONEVISION,
            ("with_clips", "video"),
            "more",
            ("without_clips", "video"),
        ),
        Claim(
            "videos in the data do not reduce the score on several images",
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
    "More frames or more tokens per frame?",
    "From the single-image stage, which was trained without videos: 200 steps on videos (three quarters) and single "
    "images. A frame has 3x3 cells; videos have eight frames.",
    arms=(
        Arm("bilinear_8", "8 frames, bilinear to 2x2", SINGLE_IMAGE, seeds=3),
        Arm("means_8", "8 frames, adaptive average to 2x2", SINGLE_IMAGE, MEANS),
        Arm("average_8", "8 frames, average of whole 2x2 windows: 1x1", SINGLE_IMAGE, {"pooling": "average"}),
        Arm("none_8", "8 frames, every cell", SINGLE_IMAGE, {"pooling": "none"}),
        Arm("none_4", "4 frames, every cell", SINGLE_IMAGE, {"pooling": "none", **FOUR_FRAMES}),
        Arm("bilinear_4", "4 frames, bilinear to 2x2", SINGLE_IMAGE, FOUR_FRAMES),
    ),
    measures=(VIDEO, Measure("video, shown 8 frames", "video", changes=EIGHT_FRAMES, arms=("none_4", "bilinear_4"))),
    claims=(
        Claim(
            "bilinear interpolation, which uses all cells of an odd grid (27 to 14), is better than windows, which drop the last row (27 to 13)",
            ONEVISION,
            ("bilinear_8", "video"),
            "more",
            ("average_8", "video"),
        ),
        Claim(
            "at a similar number of tokens (33 and 37), more frames with pooling are better than fewer frames without",
            ONEVISION,
            ("bilinear_8", "video"),
            "more",
            ("none_4", "video"),
        ),
        Claim(
            "at the same number of frames, no pooling is better than pooling",
            INTERLEAVE,
            ("none_8", "video"),
            "more",
            ("bilinear_8", "video"),
        ),
        Claim(
            "without pooling, more frames than in training improve the score",
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
    "Do tiles help with small objects?",
    "From the single-image stage: 400 steps, 80 % of them on small shapes (2/5 of the usual size) in images of 80 to 96 pixels "
    "(task `small`). A shape has ten pixels in the tiles and five in the base view. This is the second design: with smaller "
    "shapes and 200 steps, tiles made no difference (53 % and 54 % correct).",
    arms=(
        Arm("anyres", "base view and tiles", SINGLE_IMAGE, overrides=SMALL_DATA, seeds=2),
        Arm("base_view", "base view only", SINGLE_IMAGE, {"tokenizer.image": "square"}, overrides=SMALL_DATA),
    ),
    measures=(Measure("small", "small"), Measure("small: shape", "small", kinds=("shape",)), SINGLE),
    claims=(
        Claim("tiles improve the score on small objects", NEXT, ("anyres", "small"), "more", ("base_view", "small")),
        Claim(
            "tiles improve the recognition of small shapes",
            NEXT,
            ("anyres", "small: shape"),
            "more",
            ("base_view", "small: shape"),
        ),
    ),
    visual="image=96x96",
)

MULTI_DATA = (data("multi, turns: 4"), "stages.0.steps=200")

POSITIONS = Question(
    "positions",
    "Where should several images be placed?",
    "From the `onevision` stage, which was trained with images where the text mentions them: 200 steps on several images. "
    "The model is evaluated with the images among the text, and with all images in front of it.",
    arms=(
        Arm("before", "no further training", ONEVISION_STAGE, overrides=None),
        Arm("interleaved", "trained with images among the text", ONEVISION_STAGE, overrides=MULTI_DATA, seeds=2),
        Arm(
            "front", "trained with images in front", ONEVISION_STAGE, overrides=(*MULTI_DATA, "stages.0.visuals=front")
        ),
        Arm("mixed", "trained with half of each", ONEVISION_STAGE, overrides=(*MULTI_DATA, "stages.0.visuals=mixed")),
    ),
    measures=(Measure("among the text", "multi"), Measure("in front", "multi", visuals="front")),
    claims=(
        Claim(
            "with images in front, training on both is better than training with images among the text",
            INTERLEAVE,
            ("mixed", "in front"),
            "more",
            ("interleaved", "in front"),
        ),
        Claim(
            "with images among the text, training on both is better than training with images in front",
            INTERLEAVE,
            ("mixed", "among the text"),
            "more",
            ("front", "among the text"),
        ),
        Claim(
            "with images among the text, training on both is no worse than training on these only",
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
    "From the single-image stage, with a newly initialised projector that is trained alone (250 steps on captions and questions "
    "about single images); encoder and language model are frozen. Learning rate and steps were tuned for mlp only. The "
    "perceiver also needs flat tiles and no pooling.",
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
        Claim("two layers are better than one", LLAVA_1_5, ("mlp", "single"), "more", ("linear", "single")),
        Claim(
            "for places, a projector that keeps the grid is better than a resampler that does not",
            HONEYBEE,
            ("mlp", "where"),
            "more",
            ("perceiver", "where"),
        ),
        Claim(
            "for places, a resampler that keeps neighbours together is better than one that does not",
            HONEYBEE,
            ("c_abstractor", "where"),
            "more",
            ("perceiver", "where"),
        ),
    ),
    visual="image=96x96",
)

QUESTIONS = (STAGES, TRANSFER, POOLING, ANYRES, POSITIONS, PROJECTORS)
