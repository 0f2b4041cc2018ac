"""The data side of `mmblocks plan`: how long samples are, how well they pack, and how evenly they keep ranks busy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmblocks.cli.tables import aligned
from mmblocks.errors import ConfigError

if TYPE_CHECKING:
    from mmblocks.data.mixing.mixture import Draws, Mixture
    from mmblocks.data.planning.cost import Cost
    from mmblocks.data.planning.measure import Sizes
    from mmblocks.data.planning.report import Report
    from mmblocks.data.planning.steps import StepPlan
    from mmblocks.data.sample.processor import Processor
    from mmblocks.train.stages import Stage

WORDS = ("data=", "ranks=", "stage=", "images=", "videos=", "ignore=", "cost=", "samples=")
OF_THE_RECIPE = "recipe"
RANKS = 8
SAMPLES = 10_000
SHOWN_FAULTS = 3


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked on the command line: which data, for which stage, on how many ranks.

    data: files, or "recipe" for what the stages themselves read. roots: media folders and ignored keys of these files.
    samples: how many are measured at most. cost: a saved calibration.
    """

    data: tuple[str, ...]
    ranks: int = RANKS
    stage: str | None = None
    roots: tuple[tuple[str, Any], ...] = ()
    samples: int = SAMPLES
    cost: str | None = None

    @classmethod
    def of(cls, words: Sequence[str]) -> Question:
        """Read data=..., ranks=..., stage=..., images=..., videos=..., ignore=..., cost=..., samples=...."""
        given = [(key, value) for key, _, value in (word.partition("=") for word in words)]
        last = dict(given)
        roots = [(key, last[key]) for key in ("images", "videos") if key in last]
        roots += [("ignore", last["ignore"].split(","))] if "ignore" in last else []
        return cls(
            data=tuple(value for key, value in given if key == "data"),
            ranks=_count("ranks", last.get("ranks", str(RANKS))),
            stage=last.get("stage"),
            roots=tuple(roots),
            samples=_count("samples", last.get("samples", str(SAMPLES))),
            cost=last.get("cost"),
        )


def _count(key: str, value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise ConfigError(f"{key}={value!r} is no number; write a whole number above 0, such as {key}=64.")
    return int(value)


# Measuring ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Planned:
    """The figures of one stage. records: conversations in its sources; cut: how many of those measured lose the end of their
    last answer to the limit, and how many tokens; steps: of the stage, or of one epoch.
    """

    stage: str
    records: int
    measured: int
    broken: tuple[str, ...]
    cut: tuple[int, int]
    steps: int
    report: Report

    def plain(self) -> dict[str, Any]:
        """Values that json takes."""
        own = {"stage": self.stage, "records": self.records, "measured": self.measured, "steps": self.steps}
        cut = dict(zip(("records", "tokens"), self.cut, strict=True))
        return {**own, "broken": list(self.broken), "cut": cut, **self.report.plain()}


def planned(raw: Mapping[str, Any], question: Question) -> Iterator[Planned]:
    """Measure the data of each stage that was asked for. No weight is read.

    Raises `ConfigError` for a stage that is not there, and where nothing can be read.
    """
    for stage in _stages(raw, question):
        yield _planned(raw, stage, question)


def _stages(raw: Mapping[str, Any], question: Question) -> list[Stage]:
    """The stages as asked for: with a file's data the last one, with the recipe's own data all of them."""
    from mmblocks.settings import did_you_mean

    stages = list(_read(raw))
    if question.stage is not None:
        names = [stage.name for stage in stages]
        stages = [stage for stage in stages if stage.name == question.stage]
        if not stages:
            raise ConfigError(f"stage={question.stage}: no stage is called so.{did_you_mean(question.stage, names)}")
    if question.data == (OF_THE_RECIPE,):
        if not all(stage.data for stage in stages):
            raise ConfigError("data=recipe: a system has no data of its own; write data=FILE.")
        return stages
    return [_with_data(stage, question) for stage in (stages if question.stage else stages[-1:])]


def _read(raw: Mapping[str, Any]) -> Iterator[Stage]:
    """A recipe's stages; for a system, one in which everything learns."""
    from mmblocks.model.spec import PARTS
    from mmblocks.train.stages import Stage, read_run

    if "stages" in raw:
        yield from read_run(raw).stages
    else:
        yield Stage("all parts learn", (), dict.fromkeys(PARTS, 1e-5), epochs=1, batch_size=256)


def _with_data(stage: Stage, question: Question) -> Stage:
    from dataclasses import replace

    from mmblocks.data.sources.guess import sources_of

    return replace(stage, data=[{**source, **dict(question.roots)} for source in sources_of(question.data)])


def _planned(raw: Mapping[str, Any], stage: Stage, question: Question) -> Planned:
    from mmblocks.data.mixing.mixture import Mixture
    from mmblocks.data.planning.measure import measure
    from mmblocks.data.planning.report import report
    from mmblocks.train.plan import ordered, steps_over

    seed = int(raw.get("seed", 0))
    mixture = Mixture.of(stage.data)
    draws = ordered(mixture, _draws(mixture, stage, question.samples, seed), stage, (seed,), "skip")
    title = f"{stage.name}: headers"
    measured = measure(mixture, draws, _processor(raw, stage, seed), stage.targets, policy="skip", title=title)
    if not len(measured.readable):
        raise ConfigError(f"{stage.name}: none of {len(draws)} records can be used; {measured.broken[0].reason}")
    sizes = measured.sizes.take(measured.readable)
    cost = _cost(raw, stage, question)
    plan = steps_over(sizes, stage, (seed,), cost)
    figures = report(
        sizes, cost, question.ranks, pack_tokens=stage.pack_tokens, pack_views=stage.pack_views, plan=plan, seed=seed
    )
    faults = tuple(broken.reason for broken in measured.broken)
    cut = int((measured.cut > 0).sum()), int(measured.cut.sum())
    return Planned(stage.name, len(mixture), len(sizes), faults, cut, _steps(stage, mixture, plan, sizes), figures)


def _processor(raw: Mapping[str, Any], stage: Stage, seed: int) -> Processor:
    from mmblocks.data.sample.processor import Processor
    from mmblocks.model.missing import missing_tokenizers

    if missing := missing_tokenizers(raw["model"]):
        listed = "\n".join(f"  {one}" for one in missing)
        raise ConfigError(f"texts are measured in tokens, and nothing is fetched for a plan:\n{listed}")
    return Processor.planning(
        raw["model"],
        template=stage.template,
        tokenizer=stage.tokenizer,
        max_tokens=stage.max_tokens,
        visuals=stage.visuals,
        overlong=stage.overlong,
        seed=seed,
    )


def _draws(mixture: Mixture, stage: Stage, samples: int, seed: int) -> Draws:
    """What the stage reads first: by weight, or in the order of an epoch."""
    if stage.steps is not None:
        return mixture.drawn(samples if len(mixture) > samples else len(mixture), (seed,))
    return mixture.epochs(min(1.0, samples / len(mixture)), (seed,))


def _cost(raw: Mapping[str, Any], stage: Stage, question: Question) -> Cost:
    from mmblocks.data.planning.cost import Cost

    if question.cost is not None:
        return Cost.load(question.cost)
    return Cost.estimated(raw["model"], tuple(stage.train), recompute=bool(raw.get("recompute", False)))


def _steps(stage: Stage, mixture: Mixture, plan: StepPlan, sizes: Sizes) -> int:
    """Steps of the stage if it counts them, else of one epoch, estimated from what was measured."""
    return stage.steps or max(1, round(len(plan) * len(mixture) / len(sizes)))


# A page for people --------------------------------------------------------------------------------------------------


def page(found: Planned) -> Iterator[str]:
    """The figures of a stage as aligned tables."""
    figures = found.report
    yield f"{found.stage}: {found.records} records, {found.measured} measured, {found.steps} steps"
    if found.broken:
        yield f"{len(found.broken)} cannot be used:"
        yield from (f"  {reason}" for reason in found.broken[:SHOWN_FAULTS])
    if found.cut[0]:
        yield f"{found.cut[0]} are cut at the end of their last answer, {found.cut[1]} tokens in all"
    yield ""
    spreads = (("tokens", figures.tokens), ("views", figures.views), ("labels", figures.labels))
    rows = [(name, *(f"{v:.0f}" for v in (s.p5, s.p50, s.p95, s.max)), f"{s.mean:.1f}") for name, s in spreads]
    yield from aligned([("per sample", "5 %", "50 %", "95 %", "most", "mean"), *rows])
    yield f"labels are {figures.labels_share:.1%} of all tokens"
    yield ""
    waste = [(name, f"{ratio:.3f}") for name, ratio in figures.waste.items()]
    yield from aligned([("rows of one shape", "tokens computed / real"), *waste])
    yield f"{figures.packs} packs; seen as one sequence they would take {figures.pairs[MERGED]:.1f} times the attention"
    yield ""
    busy = [(name, "too few" if share is None else f"{share:.3f}") for name, share in figures.efficiency.items()]
    yield from aligned([(f"work on {figures.ranks} ranks", "busy"), *busy])


MERGED = "packs seen as one sequence"
