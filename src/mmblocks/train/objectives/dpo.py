from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mmblocks.batch import IGNORE, Batch
from mmblocks.errors import ConfigError, DataError
from mmblocks.model.modes import use_evaluation_mode
from mmblocks.model.onevision import LossOutput, OneVision
from mmblocks.model.trainable import list_adapters
from mmblocks.train.adapters.lora import disable_lora
from mmblocks.train.objectives import objectives


@objectives.register("dpo", source="https://arxiv.org/abs/2305.18290")
class DPO:
    """Direct preference optimisation: the preferred answer becomes likelier than the other, against the starting model.

    Per pair, with logits = log-odds of the two answers under the model minus under the reference:
    alpha * loss(beta * logits) + gamma * mean cross entropy of the preferred answer's tokens. These are LLaVA-NeXT's
    `dpo_alpha` and `gamma`, and its defaults. label_smoothing is the share of pairs that are taken to be swapped
    (conservative DPO). loss: "hinge" is that of https://arxiv.org/abs/2305.10425.

    A batch is [chosen, rejected, chosen, rejected, ...]. The reference is a frozen copy of the model, or, where
    adapters learn and nothing else of the model does, the model with its adapters off. It runs in evaluation mode.
    """

    pairs: ClassVar[bool] = True

    def __init__(
        self,
        beta: float = 0.1,
        alpha: float = 1.0,
        gamma: float = 0.0,
        label_smoothing: float = 0.0,
        loss: Literal["sigmoid", "hinge"] = "sigmoid",
    ) -> None:
        if beta <= 0 or not 0 <= label_smoothing < 0.5 or min(alpha, gamma) < 0 or alpha + gamma == 0:
            raise ConfigError(
                f"objective 'dpo': beta={beta}, alpha={alpha}, gamma={gamma}, label_smoothing={label_smoothing}; "
                "it needs beta > 0, alpha and gamma not negative and not both 0, label_smoothing from 0 to below 0.5."
            )
        if loss == "hinge" and label_smoothing:
            raise ConfigError(
                "objective 'dpo': loss=hinge knows no label_smoothing; leave it out, or use loss=sigmoid."
            )
        self.beta, self.alpha, self.gamma, self.label_smoothing = beta, alpha, gamma, label_smoothing
        self.loss = loss
        self.reference: OneVision | None = None

    def prepare_model(self, model: OneVision, another: Callable[[], OneVision]) -> None:
        """Keep the starting model a second time, frozen, unless taking its adapters off gives it back."""
        others = [p for p in model.parameters() if p.requires_grad and id(p) not in _of_adapters(model)]
        if list_adapters(model) and not others:
            return
        self.reference = another().eval().requires_grad_(False)

    def count_loss_terms(self, batch: Batch) -> int:
        """Pairs; none in a batch without targets."""
        return len(batch.packing.lengths) // 2 if batch.num_labelled else 0

    def __call__(self, model: OneVision, batch: Batch) -> LossOutput:
        _require_pairs(batch)
        reference, policy = (
            self._compute_compute_compute_reference_losses(model, batch),
            model.compute_row_losses(batch),
        )
        if not batch.num_labelled:  # nothing to compare, and still the same forward passes (see `Batch.empty`)
            return LossOutput(policy.sum(), 0)
        sizes = _labelled_rows(batch)
        return self.compute_loss(_sum_log_probs(policy, sizes), _sum_log_probs(reference, sizes), sizes)

    def compute_loss(self, policy: Tensor, reference: Tensor, sizes: list[int]) -> LossOutput:
        """The loss of answers' log probabilities (2 * pairs,) under the model and the reference.

        sizes: labelled tokens of each answer.
        """
        rewards = self.beta * (policy - reference).detach()
        chosen, rejected = policy[0::2], policy[1::2]
        logits = self.beta * ((chosen - rejected) - (reference[0::2] - reference[1::2]))
        written = -chosen / torch.tensor(sizes[0::2], device=policy.device)
        total = (self.alpha * self._preference(logits) + self.gamma * written).sum()
        return LossOutput(total, len(logits), _metrics(rewards[0::2], rewards[1::2], policy.detach()))

    def _preference(self, logits: Tensor) -> Tensor:
        if self.loss == "hinge":
            return F.relu(1 - logits)
        kept, swapped = 1 - self.label_smoothing, self.label_smoothing
        return -kept * F.logsigmoid(logits) - swapped * F.logsigmoid(-logits)

    @torch.no_grad()
    def _compute_compute_compute_reference_losses(self, model: OneVision, batch: Batch) -> Tensor:
        if self.reference is not None:
            return self.reference.compute_row_losses(batch)
        if not list_adapters(model):
            raise ConfigError("objective 'dpo' has no reference: call start(model) with the starting model first.")
        with disable_lora(model), use_evaluation_mode(model):
            return model.compute_row_losses(batch)


def _of_adapters(model: OneVision) -> set[int]:
    return {id(p) for adapter in list_adapters(model) for p in adapter.parameters()}


def _require_pairs(batch: Batch) -> None:
    if len(batch.packing.lengths) % 2:
        raise DataError(
            f"objective 'dpo': a batch of {len(batch.packing.lengths)} sequences; it compares pairs, so both answers of a "
            "pair must be in one batch, the preferred one first."
        )


def _labelled_rows(batch: Batch) -> list[int]:
    """Labelled rows of each sequence."""
    sizes = [int(part.sum()) for part in (batch.targets != IGNORE).split(batch.packing.lengths)]
    if 0 in sizes:
        raise DataError(f"objective 'dpo': sequence {sizes.index(0)} of the batch has no labelled token to compare.")
    return sizes


def _sum_log_probs(row_losses: Tensor, sizes: list[int]) -> Tensor:
    """(answers,): the sum of each answer's log probabilities."""
    return torch.stack([-rows.sum() for rows in row_losses.split(sizes)])


def _metrics(chosen: Tensor, rejected: Tensor, log_probs: Tensor) -> dict[str, Tensor]:
    """Sums over pairs, under TRL's names."""
    return {
        "rewards/chosen": chosen.sum(),
        "rewards/rejected": rejected.sum(),
        "rewards/margins": (chosen - rejected).sum(),
        "rewards/accuracies": (chosen > rejected).float().sum(),
        "logps/chosen": log_probs[0::2].sum(),
        "logps/rejected": log_probs[1::2].sum(),
    }
