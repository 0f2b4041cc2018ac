from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from mmblocks.components import projectors
from mmblocks.errors import ConfigError
from mmblocks.projectors.mlp import PerToken, make_linear_layers

Mode = Literal["fixed", "range", "cls_only"]


@dataclass(frozen=True)
class RowChoice:
    """Which rows of a view are kept: a share drawn from lower..upper at random places, or the first row alone."""

    lower: float
    upper: float
    first_only: bool
    skip: float

    def draw_kept_rows(self, views: int, rows: int, device: torch.device) -> Tensor:
        """(views, rows) of bool; drawn from torch's generator, as nn.Dropout draws."""
        whole = torch.rand(views, 1, device=device) < self.skip
        if self.first_only:
            return whole | (torch.arange(rows, device=device) == 0)
        share = self.lower + (self.upper - self.lower) * torch.rand(views, 1, device=device)
        count = (rows * share).long().clamp(min=1)
        places = torch.rand(views, rows, device=device).argsort(dim=1).argsort(dim=1)
        return whole | (places < count)


class MaskedLayers(nn.Sequential):
    """Layers that see zeros instead of the dropped rows while training."""

    def __init__(self, choice: RowChoice, layers: nn.Sequential) -> None:
        super().__init__(*layers)
        self.choice = choice

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            views, height, width, _ = input.shape
            kept = self.choice.draw_kept_rows(views, height * width, input.device)
            input = input * rearrange(kept, "n (h w) -> n h w 1", h=height).to(input.dtype)
        return super().forward(input)


@projectors.register(
    "masked_drop",
    source="https://github.com/LLaVA-VL/LLaVA-NeXT",
    verified_against="LLaVA-NeXT (golden modules) in evaluation",
)
class MaskedDrop(PerToken):
    """An MLP that in training sees only some rows of each view's features: LLaVA-NeXT's resampler masked_drop.

    Keeps int(rows * ratio) random rows ("fixed"), a share drawn for each view from ratio_lower..ratio_upper ("range"),
    or the first ("cls_only", for encoders that give CLS); at least one. A view is left whole with probability `skip`.
    The original takes the dropped rows out; here zeros stand in their places, because tokens are counted before
    features exist. In evaluation, and in its weights, it is the projector `mlp`.
    """

    per_token = False  # places are drawn among all cells of a view

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        depth: int = 2,
        mode: Mode = "fixed",
        ratio: float = 0.25,
        ratio_lower: float | None = None,
        ratio_upper: float | None = None,
        skip: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= skip <= 1:
            raise ConfigError(
                f"projector 'masked_drop': skip={skip} is no probability; write 0 to 1.", settings=["skip"]
            )
        lower, upper = require_kept_range(ratio_lower, ratio_upper) if mode == "range" else (ratio, ratio)
        if not 0 < lower <= upper <= 1:
            shares = f"ratio_lower={lower} and ratio_upper={upper}" if mode == "range" else f"ratio={ratio}"
            raise ConfigError(
                f"projector 'masked_drop': {shares}; a share of rows is above 0 and at most 1, lower first.",
                settings=["ratio_lower", "ratio_upper"] if mode == "range" else ["ratio"],
            )
        layers, self.head = make_linear_layers("masked_drop", in_dim, out_dim, depth)
        self.body = MaskedLayers(RowChoice(lower, upper, mode == "cls_only", skip), layers)


def require_kept_range(lower: float | None, upper: float | None) -> tuple[float, float]:
    """Both ends of the range, which the mode "range" needs."""
    if lower is None or upper is None:
        raise ConfigError(
            f"projector 'masked_drop': mode='range' with ratio_lower={lower} and ratio_upper={upper}; write both.",
            settings=["ratio_lower", "ratio_upper", "mode"],
        )
    return lower, upper
