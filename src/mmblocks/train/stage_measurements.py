"""What is measured of the model while a stage trains it; each result is a row of metrics.jsonl."""

from dataclasses import dataclass
from pathlib import Path

from mmblocks.batch import Batch
from mmblocks.data.sample.processor import Processor
from mmblocks.eval.task_settings import PlannedTask
from mmblocks.model.onevision import OneVision
from mmblocks.train.batches import StageBatches
from mmblocks.train.distributed import World
from mmblocks.train.reports.evaluation import evaluate_model
from mmblocks.train.reports.task_scores import measure_tasks
from mmblocks.train.reports.visual_ablation import measure_visual_ablation
from mmblocks.train.stage_model import gather_model
from mmblocks.train.stages import Curriculum, Stage
from mmblocks.train.step import make_autocast

ABLATION_SAMPLES = 32
"""Samples per process whose visuals are exchanged (see `reports.visual_ablation`); with fewer, chance decides too often."""


@dataclass(frozen=True, slots=True)
class StageMeasurements:
    """Measures a stage's model on its own samples and on held-out ones. Every process calls each method.

    before: folder of the model that the stage starts from. empty_batch: what runs where a process has no batch while others have
    one. needs_pairs: whether samples are pairs.
    """

    curriculum: Curriculum
    stage: Stage
    world: World
    before: Path | None
    model: OneVision
    processor: Processor
    batches: StageBatches
    empty_batch: Batch
    needs_pairs: bool

    def measure_visual_ablation(self, first: int) -> dict[str, float]:
        """Whether the visuals of the samples from step `first` on change the loss. Raises `ConfigError` where they do not."""
        batches: list[Batch | None] = []
        for step in range(first, len(self.batches)):
            batches += self.batches[step].batches
            own = sum(len(batch.packing.lengths) for batch in batches if batch is not None)
            if self.world.sum_over_processes(own)[0] >= ABLATION_SAMPLES * self.world.size:
                break
        sequences = 2 if self.needs_pairs else 1
        with make_autocast(self.stage, self.world):
            ablation = measure_visual_ablation(
                self.model, batches, self.world, sequences=sequences, nothing=self.empty_batch
            )
        ablation.raise_or_log()
        return ablation.to_metrics()

    def evaluate_held_out(self, done: int) -> dict[str, float]:
        """After `done` steps: the loss on held-out conversations, exact answers on TinyWorld, and the numbers of tasks."""
        with make_autocast(self.stage, self.world):
            measured = evaluate_model(self.model, self.curriculum, self.stage, self.processor, self.world)
            return measured | self._measure_tasks(done)

    def _measure_tasks(self, done: int) -> dict[str, float]:
        evaluate, run = self.curriculum.evaluate, self.curriculum.run
        if evaluate is None or not evaluate.tasks:
            return {}
        planned = list(map(PlannedTask.from_settings, evaluate.tasks))
        model = gather_model(self.model, run, self.stage, self.before, self.world)
        folder = Path(run.out) / "evaluation" / f"{self.stage.name}-{done}"
        about = {"stage": self.stage.name, "step": done}
        return measure_tasks(model, planned, folder, self.world, about, skips=run.broken == "skip")
