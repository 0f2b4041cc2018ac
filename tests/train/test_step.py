"""A step of learning does what the recipe's numbers say: against AdamW, the norm and the rates written out in float64."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from mmblocks.batch import Batch
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor
from mmblocks.data.sources import sources
from mmblocks.model.trainable import train_only
from mmblocks.train.batches import StepInput
from mmblocks.train.distributed import World
from mmblocks.train.encoder_pretraining import pretrain_encoder
from mmblocks.train.objectives import objectives
from mmblocks.train.optim import compute_lr_factor, make_optimizer
from mmblocks.train.reports.profiler import StepProfiler
from mmblocks.train.stages import EncoderPretraining, Stage
from mmblocks.train.step import Stepper

WORLD = [{"name": "tinyworld", "task": "single"}]
RATES = {"projector": 2e-3, "backbone": 5e-4}
STEPS, WARMUP, DECAY = 10, 0.5, 0.1
EPS = 1e-8
CLOSE = {"rtol": 2e-5, "atol": 1e-7}  # AdamW of torch computes in float32, as the weights are


def stage(max_grad_norm: float) -> Stage:
    numbers = {
        "steps": STEPS,
        "global_batch_size": 3,
        "warmup": WARMUP,
        "weight_decay": DECAY,
        "max_grad_norm": max_grad_norm,
    }
    return Stage("tune", WORLD, RATES, **numbers)


@pytest.fixture
def batch(tiny_model):
    source = sources.build("tinyworld", task="single")
    return collate([Processor.from_model(tiny_model).make_training_sample(source[i]) for i in range(3)])


def gradients(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Of the mean loss, in a copy of the model, in float64; zero where nothing was met."""
    model = copy.deepcopy(model)
    model(batch).loss.backward()
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {name: (torch.zeros_like(p) if p.grad is None else p.grad).double() for name, p in learning.items()}


def norm_of(gradients: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))


class WrittenOut:
    """AdamW (Loshchilov & Hutter 2019, algorithm 2) with clipping before and one rate per part, in float64."""

    def __init__(self, model: nn.Module, settings: Stage) -> None:
        self.model, self.settings, self.steps = model, settings, 0
        self.mean = {name: torch.zeros_like(p).double() for name, p in model.named_parameters() if p.requires_grad}
        self.square = {name: mean.clone() for name, mean in self.mean.items()}

    def step(self, gradients: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
        """The weights after a step with these gradients at `factor` times the rates."""
        self.steps += 1
        scale = min(1.0, self.settings.max_grad_norm / (norm_of(gradients) + 1e-6))
        weights = dict(self.model.named_parameters())
        return {
            name: self._stepped(name, weights[name].detach().double(), gradients[name] * scale, factor)
            for name in gradients
        }

    def _stepped(self, name: str, weight: Tensor, gradient: Tensor, factor: float) -> Tensor:
        rate = RATES[name.partition(".")[0]] * factor
        decay = self.settings.weight_decay if weight.ndim > 1 else 0.0
        beta1, beta2 = 0.9, self.settings.beta2
        self.mean[name] = beta1 * self.mean[name] + (1 - beta1) * gradient
        self.square[name] = beta2 * self.square[name] + (1 - beta2) * gradient.square()
        mean = self.mean[name] / (1 - beta1**self.steps)
        square = self.square[name] / (1 - beta2**self.steps)
        return weight * (1 - rate * decay) - rate * mean / (square.sqrt() + EPS)


def stepper_of(model, settings: Stage) -> Stepper:
    train_only(model, settings.train)
    nothing, alone = Batch.make_empty(model.encoder.view_px), World(0, 1, torch.device("cpu"))
    optimizer = make_optimizer(model, settings)
    return Stepper(model, objectives.build("answers"), optimizer, settings, alone, StepProfiler(model), nothing)


def require_weights(model: nn.Module, wanted: dict[str, Tensor]) -> None:
    weights = dict(model.named_parameters())
    for name, weight in wanted.items():
        torch.testing.assert_close(
            weights[name].detach().double(), weight, msg=lambda text, n=name: f"{n}: {text}", **CLOSE
        )


@pytest.mark.parametrize("max_grad_norm", [1e-7, 0.05, 1e6], ids=["all but nothing", "clipped", "never clipped"])
def test_steps_are_adamw_with_clipped_gradients_at_the_schedules_rates(tiny_model, batch, max_grad_norm):
    """Rates rise during these steps, so that the rate of the step before or of the optimizer's making would be seen."""
    settings = stage(max_grad_norm)
    step, reference = stepper_of(tiny_model, settings), WrittenOut(tiny_model, settings)
    for number in range(3):
        factor = compute_lr_factor(number, STEPS, WARMUP)
        found = gradients(tiny_model, batch)
        wanted = reference.step(found, factor)
        done = step(StepInput((batch,)), factor)
        assert float(done.norm) == pytest.approx(norm_of(found), rel=1e-4)  # the norm before clipping is what is told
        require_weights(tiny_model, wanted)


def test_gradients_beyond_the_largest_norm_are_scaled_to_it_and_others_are_not(tiny_model, batch):
    for max_grad_norm in (0.05, 1e6):
        step = stepper_of(tiny_model, stage(max_grad_norm))
        found = gradients(tiny_model, batch)
        step(StepInput((batch,)), 1e-9)
        applied = {str(i): p.grad.double() for i, p in enumerate(step.parameters)}
        assert norm_of(applied) == pytest.approx(min(max_grad_norm, norm_of(found)), rel=1e-4)


def test_the_first_step_learns_at_the_schedules_rate_of_step_0(tiny_model, batch):
    """Every weight with a gradient moves by its rate in AdamW's first step, whatever the gradient's size."""
    settings = Stage("tune", WORLD, RATES, steps=STEPS, global_batch_size=3, warmup=WARMUP, weight_decay=0.0)
    step = stepper_of(tiny_model, settings)
    before = {name: p.detach().clone() for name, p in tiny_model.named_parameters() if p.requires_grad}
    step(StepInput((batch,)), compute_lr_factor(0, STEPS, WARMUP))
    moved: dict[str, float] = {}
    for name, parameter in tiny_model.named_parameters():
        if name in before:
            part, by = name.partition(".")[0], float((parameter.detach() - before[name]).abs().max())
            moved[part] = max(moved.get(part, 0.0), by)
    assert moved == pytest.approx({part: rate / 5 for part, rate in RATES.items()}, rel=1e-2)  # step 1 of 5 to warm up


def test_the_encoders_pretraining_clips_and_begins_at_the_schedules_rate(tiny_model, tmp_path, monkeypatch):
    """One step of it, seen at the optimizer: the norm of what it is given, and the rate at which it is called."""
    seen: list[tuple[float, float]] = []

    class Recording(torch.optim.AdamW):
        def step(self, closure=None):
            group = self.param_groups[0]
            norm = torch.stack([p.grad.norm() for p in group["params"] if p.grad is not None]).norm()
            seen.append((float(norm), group["lr"]))
            return super().step(closure)

    monkeypatch.setattr("mmblocks.train.encoder_pretraining.AdamW", Recording)
    encoder_pretraining = EncoderPretraining(steps=4, global_batch_size=2, lr=1e-3, warmup=0.5, max_grad_norm=1e-3)
    pretrain_encoder(tiny_model, encoder_pretraining, budget=1.0, seed=0, metrics=tmp_path / "metrics.jsonl")
    assert [norm for norm, _ in seen] == pytest.approx([1e-3] * 4, rel=1e-2)
    assert [rate for _, rate in seen] == pytest.approx([1e-3 * compute_lr_factor(n, 4, 0.5) for n in range(4)])
