"""Plans in integers: which cells every token of a visual is made of, so that one gather makes the tokens of a whole batch.

Only poolings calculate; what tokenizers do beside them moves rows, and moves codes as well as features. A code stands in
the place of a feature vector and says what it is made of: [numbers of k cells | their k weights], in float64. So the
code that arranges features arranges codes, and nothing is written twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmblocks.components import Pooling
from mmblocks.reprs import format_by_shape
from mmblocks.shapes import Size, VisualPlan

MOST_CELLS = 64
"""A pooling that reads more cells for one of its own is not lowered: its table would be larger than the features."""

LearnedTokens = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class LoweredPlan:
    """The tokens of a visual out of its cells: token i is the sum over j of weights[i, j] * cells[rows[i, j]].

    rows: int64 (num_tokens, k), cell number view * area + row * columns + column, or -1 - m alone for the tokenizer's
    mark m. weights: (num_tokens, k), those of a token sum to one; with weight 0 nothing is read.
    early: the cells are the encoder's and are summed before the projector; else they are the projector's.
    """

    rows: Tensor
    weights: Tensor
    early: bool = False
    __repr__ = format_by_shape

    @classmethod
    def from_codes(cls, codes: Tensor) -> LoweredPlan:
        """What (num_tokens, 2k) codes say."""
        numbers, weights = codes.chunk(2, dim=1)
        return cls(numbers.to(torch.int64), weights)

    @classmethod
    def from_parts(cls, parts: Sequence[LoweredPlan]) -> LoweredPlan:
        """Tokens one after the other, of as many cells as any of them needs."""
        k = max(part.rows.shape[1] for part in parts)
        rows, weights = zip(*(pad_to_k(part.rows, part.weights, k) for part in parts), strict=True)
        return cls(torch.cat(rows), torch.cat(weights), parts[0].early)


def pad_to_k(rows: Tensor, weights: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same (n, k) rows and weights with room for more: cells that are read anyway, with weight 0."""
    more = k - rows.shape[1]
    return (
        (torch.cat([rows, rows[:, :1].expand(-1, more)], dim=1), F.pad(weights, (0, more))) if more else (rows, weights)
    )


@dataclass(frozen=True, slots=True, eq=False)
class Stencil:
    """Which cells of a map each cell of a smaller one is made of, the same for every map.

    cells: the size of the smaller one. rows int64, weights float64: (cells.area, k), filled up as by `widened`.
    They are arrays because stencils are kept: tensors would remember the device or inference mode they were made under.
    """

    cells: Size
    rows: np.ndarray
    weights: np.ndarray

    @classmethod
    def from_matrix(cls, matrix: np.ndarray, cells: Size) -> Stencil:
        """matrix: (cells.area, cells of the larger map), every new cell as weights of old ones."""
        new, old = np.nonzero(matrix)
        counts = np.bincount(new, minlength=len(matrix))
        starts = np.cumsum(counts) - counts
        nth = np.arange(len(new)) - starts[new]
        rows = np.repeat(old[starts][:, None], max(1, counts.max(initial=0)), axis=1)
        weights = np.zeros(rows.shape)
        rows[new, nth], weights[new, nth] = old, matrix[new, old]
        return cls(cells, rows, weights)

    @property
    def reads_per_cell(self) -> int:
        return self.rows.shape[1]

    def pad_to_k(self, k: int) -> Stencil:
        """The same with room for k cells."""
        more = ((0, 0), (0, k - self.reads_per_cell))
        return Stencil(self.cells, np.pad(self.rows, more, "edge"), np.pad(self.weights, more))

    def __call__(self, x: Tensor) -> Tensor:
        """Codes of single cells (n, h, w, 2) to those of the smaller maps, (n, *cells, 2k)."""
        numbers = x[..., 0].flatten(1)[:, torch.from_numpy(self.rows)]
        weights = torch.from_numpy(self.weights).expand_as(numbers)
        return torch.cat([numbers, weights], dim=-1).unflatten(1, tuple(self.cells))


# Codes --------------------------------------------------------------------------------------------------------------


def make_cell_codes(views: int, grid: Size) -> Tensor:
    """(views, *grid, 2): codes of the cells of views, each made of itself."""
    codes = torch.ones(views * grid.area, 2, dtype=torch.float64, device="cpu")
    codes[:, 0] = torch.arange(len(codes), device="cpu")
    return codes.view(views, *grid, 2)


def make_learned_token_codes(names: Sequence[str], k: int = 1) -> dict[str, Tensor]:
    """A tokenizer's marks as codes beside those of k cells."""
    rest = [0.0] * (k - 1)
    return {
        name: torch.tensor([-1.0 - m, *rest, 1.0, *rest], dtype=torch.float64, device="cpu")
        for m, name in enumerate(names)
    }


# Lowering -----------------------------------------------------------------------------------------------------------


def lower_tokenizer_plan(tokenizer: Any, plan: VisualPlan) -> LoweredPlan | None:
    """A tokenizer's plan in integers; None where it cannot say.

    A `lower_plan` that is inherited beside an `assemble` that is not may say something else, and is not asked.
    """
    for kind in type(tokenizer).__mro__:
        if "lower_plan" in vars(kind):
            return tokenizer.lower_plan(plan)
        if "assemble" in vars(kind):
            return None
    return None


def lower_permutation(tokenizer: Any, plan: VisualPlan) -> LoweredPlan:
    """For plans whose `assemble` only moves rows: the same `assemble`, of codes."""
    cells = make_cell_codes(len(plan.views), tokenizer.grid)
    return LoweredPlan.from_codes(tokenizer.assemble(cells, plan, make_learned_token_codes(tokenizer.learned_tokens)))


def lower_pooling(
    tokenizer: Any, plan: VisualPlan, arrange: Callable[[Tensor, LearnedTokens], Tensor]
) -> LoweredPlan | None:
    """For plans whose views are all pooled by `tokenizer.pooling` and then only moved, by `arrange`."""
    stencil = find_stencil(tokenizer.pooling, tokenizer.grid)
    if stencil is None:
        return None
    cells = stencil(make_cell_codes(len(plan.views), tokenizer.grid))
    return LoweredPlan.from_codes(
        arrange(cells, make_learned_token_codes(tokenizer.learned_tokens, stencil.reads_per_cell))
    )


# Stencils -----------------------------------------------------------------------------------------------------------


def find_stencil(pooling: Pooling, grid: Size) -> Stencil | None:
    """What a pooling reads, learned from pooling an identity; None when it is not linear or reads too much.

    Nor is one lowered whose weights do not sum to one: it would not change places with a projector's bias.
    """
    try:
        hash(pooling)
    except TypeError:  # a third party's dataclass that is not frozen
        return _make_stencil(pooling, grid)
    return _make_stencil_cached(pooling, grid)


def _make_stencil(pooling: Pooling, grid: Size) -> Stencil | None:
    if not pooling.linear:
        return None
    with torch.no_grad():
        one_hot = torch.eye(grid.area, dtype=torch.float64, device="cpu").view(1, *grid, grid.area)
        matrix = pooling(one_hot).flatten(0, 2).numpy()
    if (matrix != 0).sum(1).max() > MOST_CELLS or not np.allclose(matrix.sum(1), 1):
        return None
    return Stencil.from_matrix(matrix, pooling.out_grid(grid))


_make_stencil_cached = lru_cache(maxsize=64)(_make_stencil)


def make_separable_stencil(scale: Callable[[Tensor, Size], Tensor], old: Size, new: Size) -> Stencil:
    """What scaling maps of `old` cells to `new` ones reads, for a `scale` that treats lines and columns apart."""
    down, across = _make_line_stencil(scale, old.height, new.height), _make_line_stencil(scale, old.width, new.width)
    rows = down.rows[:, None, :, None] * old.width + across.rows[:, None]
    weights = down.weights[:, None, :, None] * across.weights[:, None]
    return Stencil(new, rows.reshape(new.area, -1), weights.reshape(new.area, -1))


@lru_cache(maxsize=256)
def _make_line_stencil(scale: Callable[[Tensor, Size], Tensor], old: int, new: int) -> Stencil:
    """A single column of `old` cells scaled to `new`: learned in one dimension, for large maps have large identities."""
    with torch.no_grad():
        one_hot = torch.eye(old, dtype=torch.float64, device="cpu").view(1, old, 1, old)
        return Stencil.from_matrix(scale(one_hot, Size(new, 1)).flatten(0, 2).numpy(), Size(new, 1))
