"""`mmblocks plan data=...`: lengths of samples, packing, and the balance of work between ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmblocks.cli.stage_data import SOURCE_WORDS, list_stages, make_stage_processor, read_source_words
from mmblocks.cli.tables import align_columns
from mmblocks.errors import ConfigError

if TYPE_CHECKING:
    from mmblocks.data.planning.report import BatchingReport
    from mmblocks.train.stages import Stage

WORDS = ("data=", "ranks=", "stage=", *SOURCE_WORDS, "cost=", "samples=")
RECIPE_DATA = "recipe"
RANKS = 8
SAMPLES = 10_000
MAX_FAULTS_LISTED = 3


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What the command line asks for: which data, for which stage, on how many ranks.

    data: files, or "recipe" for the data of the stages themselves. source_settings: media folders and ignored keys of the
    files. samples: how many are measured at most. cost: a saved calibration.
    """

    data: tuple[str, ...]
    ranks: int = RANKS
    stage: str | None = None
    source_settings: tuple[tuple[str, Any], ...] = ()
    samples: int = SAMPLES
    cost: str | None = None

    @classmethod
    def from_words(cls, words: Sequence[str]) -> PlanRequest:
        """Read data=..., ranks=..., stage=..., images=..., videos=..., ignore=..., cost=..., samples=...."""
        pairs = [(key, value) for key, _, value in (word.partition("=") for word in words)]
        last = dict(pairs)
        return cls(
            data=tuple(value for key, value in pairs if key == "data"),
            ranks=_read_count("ranks", last.get("ranks", str(RANKS))),
            stage=last.get("stage"),
            source_settings=tuple(read_source_words(last).items()),
            samples=_read_count("samples", last.get("samples", str(SAMPLES))),
            cost=last.get("cost"),
        )


def _read_count(key: str, value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise ConfigError(f"{key}={value!r} is no number; write a whole number above 0, such as {key}=64.")
    return int(value)


# Measuring ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StageFigures:
    """The figures of one stage. records: conversations in its sources; cut: how many of those measured lose the end of their
    last answer to the limit, and how many tokens; steps: of the stage, or of one epoch.
    """

    stage: str
    records: int
    measured: int
    broken: tuple[str, ...]
    cut: tuple[int, int]
    steps: int
    report: BatchingReport

    def to_dict(self) -> dict[str, Any]:
        """Values that json takes."""
        own = {"stage": self.stage, "records": self.records, "measured": self.measured, "steps": self.steps}
        cut = dict(zip(("records", "tokens"), self.cut, strict=True))
        return {**own, "broken": list(self.broken), "cut": cut, **self.report.to_dict()}


def plan_stages(raw: Mapping[str, Any], request: PlanRequest) -> Iterator[StageFigures]:
    """Measure the data of the requested stages: of all, or of the last one for data of files. No weight is read.

    Raises `ConfigError` for an unknown stage, and where nothing can be read.
    """
    is_recipe_data = request.data == (RECIPE_DATA,)
    stages = list_stages(raw, request.stage, () if is_recipe_data else request.data, dict(request.source_settings))
    for stage in stages if is_recipe_data else stages[-1:]:
        yield _plan_stage(raw, stage, request)


def _plan_stage(raw: Mapping[str, Any], stage: Stage, request: PlanRequest) -> StageFigures:
    from mmblocks.data.mixing.mixture import Mixture
    from mmblocks.data.planning.cost import SampleCost
    from mmblocks.data.planning.measure import measure_draws
    from mmblocks.data.planning.report import report_batching
    from mmblocks.model.missing import find_missing_tokenizers
    from mmblocks.train.plan import order_draws, plan_steps

    seed = (int(raw.get("seed", 0)),)
    mixture = Mixture.from_entries(stage.data)
    most = min(request.samples, len(mixture))
    # What the stage reads first: by weight, or in the order of an epoch.
    by_weight = stage.steps is not None
    draws = mixture.draw_by_weight(most, seed) if by_weight else mixture.draw_epochs(most / len(mixture), seed)
    draws = order_draws(mixture, draws, stage, seed, "skip")
    if missing := find_missing_tokenizers(raw["model"]):
        listed = "\n".join(f"  {fault}" for fault in missing)
        raise ConfigError(f"texts are measured in tokens, and nothing is fetched for a plan:\n{listed}")
    processor, title = make_stage_processor(raw, stage), f"{stage.name}: headers"
    measured = measure_draws(mixture, draws, processor, stage.targets, policy="skip", title=title)
    if not len(measured.readable):
        raise ConfigError(f"{stage.name}: none of {len(draws)} records can be used; {measured.broken[0].reason}")
    sizes = measured.sizes.select_rows(measured.readable)
    if request.cost is not None:
        cost = SampleCost.load(request.cost)
    else:
        gradient_checkpointing = bool(raw.get("gradient_checkpointing", False))
        cost = SampleCost.from_model(raw["model"], tuple(stage.train), gradient_checkpointing=gradient_checkpointing)
    plan = plan_steps(sizes, stage, seed, cost)
    return StageFigures(
        stage=stage.name,
        records=len(mixture),
        measured=len(sizes),
        broken=tuple(broken.reason for broken in measured.broken),
        cut=(int((measured.cut > 0).sum()), int(measured.cut.sum())),
        # Of the stage if it counts them, else of one epoch, estimated from the measured samples.
        steps=stage.steps or max(1, round(len(plan) * len(mixture) / len(sizes))),
        report=report_batching(
            sizes,
            cost,
            request.ranks,
            pack_tokens=stage.pack_tokens,
            pack_views=stage.pack_views,
            plan=plan,
            seed=seed[0],
        ),
    )


# Tables -------------------------------------------------------------------------------------------------------------


def format_stage(stage: StageFigures) -> Iterator[str]:
    """The figures of a stage as aligned tables."""
    figures = stage.report
    yield f"{stage.stage}: {stage.records} records, {stage.measured} measured, {stage.steps} steps"
    if stage.broken:
        yield f"{len(stage.broken)} cannot be used:"
        yield from (f"  {reason}" for reason in stage.broken[:MAX_FAULTS_LISTED])
    if stage.cut[0]:
        yield f"{stage.cut[0]} are cut at the end of their last answer, {stage.cut[1]} tokens in all"
    yield ""
    spreads = (("tokens", figures.tokens), ("views", figures.views), ("labels", figures.labels))
    rows = [(name, *(f"{v:.0f}" for v in (s.p5, s.p50, s.p95, s.max)), f"{s.mean:.1f}") for name, s in spreads]
    yield from align_columns([("per sample", "5 %", "50 %", "95 %", "most", "mean"), *rows])
    yield f"labels are {figures.labels_share:.1%} of all tokens"
    yield ""
    waste = [(name, f"{ratio:.3f}") for name, ratio in figures.waste.items()]
    yield from align_columns([("rows of one shape", "tokens computed / real"), *waste])
    yield f"{figures.packs} packs; as one sequence each they would take {figures.pairs[MERGED]:.1f} times the attention"
    yield ""
    busy = [(name, "too few" if share is None else f"{share:.3f}") for name, share in figures.efficiency.items()]
    yield from align_columns([(f"work on {figures.ranks} ranks", "busy"), *busy])


MERGED = "packs seen as one sequence"
