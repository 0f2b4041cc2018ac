from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mmblocks.batch import Batch
from mmblocks.errors import ConfigError, DataError
from mmblocks.model.modes import use_evaluation_mode
from mmblocks.model.onevision import LossOutput, OneVision
from mmblocks.model.trainable import list_adapters
from mmblocks.train.adapters.lora import disable_lora
from mmblocks.train.objectives import FrozenModelLoader, objectives


@objectives.register("dpo", source="https://arxiv.org/abs/2305.18290")
class DPO:
    """Direct preference optimisation: the preferred answer becomes likelier than the other, against the starting model.

    Per pair, with logits = log-odds of the two answers under the model minus under the reference:
    alpha * loss(beta * logits) + gamma * mean cross entropy of the preferred answer's tokens. These are LLaVA-NeXT's
    `dpo_alpha` and `gamma`, and its defaults. label_smoothing: share of pairs whose order is taken to be wrong
    (conservative DPO). loss: "hinge" is that of https://arxiv.org/abs/2305.10425.

    A batch is [chosen, rejected, chosen, rejected, ...]. The reference is a frozen copy of the starting model. Where only
    adapters are trained, it is the model itself with its adapters off. It runs in evaluation mode.
    """

    needs_pairs: ClassVar[bool] = True
    model_methods: ClassVar[Sequence[str]] = ("compute_row_losses",)

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
                "it needs beta > 0, alpha and gamma not negative and not both 0, label_smoothing from 0 to below 0.5.",
                settings=["beta", "alpha", "gamma", "label_smoothing"],
            )
        if loss == "hinge" and label_smoothing:
            raise ConfigError("objective 'dpo': loss=hinge has no label_smoothing; leave it out, or use loss=sigmoid.")
        self.beta, self.alpha, self.gamma, self.label_smoothing = beta, alpha, gamma, label_smoothing
        self.loss = loss
        self.reference: OneVision | None = None

    def needs_reference(self, model: OneVision) -> bool:
        """Not where only adapters are trained: without them the model is the one that it started from."""
        adapters = {id(p) for adapter in list_adapters(model) for p in adapter.parameters()}
        return not adapters or any(p.requires_grad and id(p) not in adapters for p in model.parameters())

    def prepare_model(self, model: OneVision, load_frozen: FrozenModelLoader) -> None:
        """Load the starting model a second time where it is needed."""
        self.reference = load_frozen() if self.needs_reference(model) else None

    def count_loss_terms(self, batch: Batch) -> int:
        """Pairs; none in a batch without targets."""
        return len(batch.packing.lengths) // 2 if batch.num_labelled else 0

    def __call__(self, model: OneVision, batch: Batch) -> LossOutput:
        sizes = list(batch.target_rows.counts)
        if len(sizes) % 2:
            raise DataError(
                f"objective 'dpo': a batch of {len(sizes)} sequences; it compares pairs, so both answers of a pair must be "
                "in one batch, the preferred one first."
            )
        reference, policy = self.compute_reference_losses(model, batch), model.compute_row_losses(batch)
        if not batch.num_labelled:  # nothing to compare, and still the same forward passes (see `Batch.make_empty`)
            return LossOutput(policy.sum(), 0)
        if 0 in sizes:
            raise DataError(
                f"objective 'dpo': sequence {sizes.index(0)} of the batch has no labelled token to compare."
            )
        return self.compute_loss(_sum_log_probs(policy, sizes), _sum_log_probs(reference, sizes), sizes)

    def compute_loss(self, policy: Tensor, reference: Tensor, sizes: list[int]) -> LossOutput:
        """The loss of answers' log probabilities (2 * pairs,) under the model and the reference; metrics have TRL's names.

        sizes: labelled tokens of each answer.
        """
        log_probs = policy.detach()
        rewards = self.beta * (policy - reference).detach()
        chosen, rejected = policy[0::2], policy[1::2]
        logits = self.beta * ((chosen - rejected) - (reference[0::2] - reference[1::2]))
        if self.loss == "hinge":
            preference = F.relu(1 - logits)
        else:
            kept, swapped = 1 - self.label_smoothing, self.label_smoothing
            preference = -kept * F.logsigmoid(logits) - swapped * F.logsigmoid(-logits)
        answer_loss = -chosen / torch.stack([chosen.new_full((), size) for size in sizes[0::2]])
        metrics = {
            "rewards/chosen": rewards[0::2].sum(),
            "rewards/rejected": rewards[1::2].sum(),
            "rewards/margins": (rewards[0::2] - rewards[1::2]).sum(),
            "rewards/accuracies": (rewards[0::2] > rewards[1::2]).float().sum(),
            "logps/chosen": log_probs[0::2].sum(),
            "logps/rejected": log_probs[1::2].sum(),
        }
        return LossOutput((self.alpha * preference + self.gamma * answer_loss).sum(), len(logits), metrics)

    @torch.no_grad()
    def compute_reference_losses(self, model: OneVision, batch: Batch) -> Tensor:
        """(labelled rows,): cross entropies under the reference."""
        if self.reference is not None:
            return self.reference.compute_row_losses(batch)
        if not list_adapters(model):
            raise ConfigError("objective 'dpo' has no reference: call prepare_model with the starting model first.")
        with disable_lora(model), use_evaluation_mode(model):
            return model.compute_row_losses(batch)


def _sum_log_probs(row_losses: Tensor, sizes: list[int]) -> Tensor:
    """(answers,): the sum of each answer's log probabilities."""
    return torch.stack([-rows.sum() for rows in row_losses.split(sizes)])
