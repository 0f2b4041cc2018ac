"""An objective of somebody else: distillation needs whole logits of a second model, also where both are sharded."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor
from mmblocks.data.sources import sources
from mmblocks.model.onevision import LossOutput
from mmblocks.train.estimates.memory import estimate_stage_memory
from mmblocks.train.objectives import objectives
from mmblocks.train.stages import Stage


class Distillation:
    """Knowledge distillation: the student's predictions of labelled rows approach the teacher's, at a temperature."""

    needs_pairs = False
    model_methods = ("compute_logits",)

    def __init__(self, teacher: str | None = None, temperature: float = 2.0, share: float = 0.5) -> None:
        self.folder = None if teacher is None else Path(teacher)
        self.temperature, self.share = temperature, share

    def needs_reference(self, model):
        return True

    def prepare_model(self, model, load_frozen):
        self.teacher = load_frozen(self.folder)

    def count_loss_terms(self, batch):
        return batch.num_labelled

    def __call__(self, model, batch):
        rows = batch.target_rows.index
        with torch.no_grad():
            teacher = self.teacher.compute_logits(batch)[rows].float() / self.temperature
        logits = model.compute_logits(batch)[rows].float()
        student = F.log_softmax(logits / self.temperature, dim=-1)
        divergence = F.kl_div(student, teacher.log_softmax(-1), reduction="sum", log_target=True)
        answers = F.cross_entropy(logits, batch.targets[rows], reduction="sum")
        total = self.share * self.temperature**2 * divergence + (1 - self.share) * answers
        return LossOutput(total, len(rows), {"divergence": divergence.detach()})


@pytest.fixture(scope="module", autouse=True)
def plugin():
    """The objective under its name, as an installed package registers it; processes of a test are forked with it."""
    objectives.register("distillation", source="https://arxiv.org/abs/1503.02531")(Distillation)
    yield
    del objectives._entries["distillation"]


def rows_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("train", "settings"),
    [
        ({"projector": 1e-3, "backbone": 1e-3}, {"global_batch_size": 3}),
        ({"projector": 1e-3, "backbone": 1e-3}, {"global_batch_size": 1}),  # one process has no sample
        ({"projector": 1e-3, "lora": {"lr": 1e-3, "rank": 4, "dropout": 0.0}}, {"global_batch_size": 3}),
    ],
    ids=["all", "fewer samples than processes", "adapters"],
)
def test_two_processes_distil_as_one_does(recipe, undisturbed, weights, train, settings):
    teacher = undisturbed(recipe) / "model"
    stage = {**recipe["stages"][0], "name": "distil", "train": train, "steps": 3, **settings}
    stage["objective"] = {"name": "distillation", "teacher": str(teacher)}
    recipe = {**recipe, "stages": [stage], "log_every": 1}
    alone, both = undisturbed(recipe), undisturbed(recipe, ranks=2)
    for one, other in zip(rows_of(alone), rows_of(both), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)
        # A difference of log probabilities near 1e-3, so that their rounding in float32 is seen.
        assert other["divergence"] == pytest.approx(one["divergence"], abs=1e-6)
        assert one["divergence"] > 0
    assert weights(alone / "model").keys() == weights(both / "model").keys()
    for name, weight in weights(alone / "model").items():
        # Adam divides by the root of squared gradients, which magnifies sums in another order where gradients are near 0.
        torch.testing.assert_close(weights(both / "model")[name], weight, rtol=0, atol=1e-5, msg=name)


def test_the_teacher_is_by_default_the_model_that_the_stage_starts_from(tiny_model):
    folders = []

    def load_frozen(folder=None):
        folders.append(folder)
        return deepcopy(tiny_model).eval().requires_grad_(False)

    objective = objectives.build("distillation")
    objective.prepare_model(tiny_model, load_frozen)
    batch = collate(
        [Processor.from_model(tiny_model).make_training_sample(sources.build("tinyworld", task="single")[0])]
    )
    loss = objective(tiny_model.eval(), batch)
    assert folders == [None]
    assert loss.metrics["divergence"].item() == pytest.approx(0, abs=1e-5)
    assert loss.total.item() == pytest.approx(0.5 * tiny_model(batch).total.item(), rel=1e-4)


def test_its_copy_is_part_of_a_stages_memory(tiny_spec):
    def copies(objective, train):
        stage = Stage("a", [], train, steps=1, global_batch_size=1, pack_tokens=200, objective=objective)
        return estimate_stage_memory(tiny_spec, stage, [1])[0].copies

    lora = {"lora": {"lr": 1e-3, "rank": 4}}
    assert copies("answers", {"projector": 1e-3}) == 0
    assert copies("distillation", {"projector": 1e-3}) == copies("dpo", {"projector": 1e-3}) > 0
    assert copies("dpo", lora) == 0
    assert copies("dpo", {"projector": 1e-3, **lora}) > 0
