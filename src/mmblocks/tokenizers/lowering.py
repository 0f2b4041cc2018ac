"""Plans in integers: the cells that every visual token is made of, so that one gather makes the tokens of a whole batch.

Only poolings calculate. Everything else that a tokenizer does moves rows, and may as well move codes: a code stands in the
place of a feature vector and holds what it is made of, [numbers of k cells | their k weights], in float64. So the code
that arranges features also arranges codes, and is written once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmblocks.components import LowerableTokenizer, Pooling
from mmblocks.reprs import format_by_shape
from mmblocks.shapes import Size, VisualPlan

MOST_CELLS = 64
"""A pooling that reads more cells for one new cell is not lowered: its table would be larger than the features."""

LearnedTokens = Mapping[str, Tensor]


class GridTokenizer(Protocol):
    """A visual tokenizer that keeps the grid of a view, which ours do."""

    @property
    def grid(self) -> Size: ...

    @property
    def learned_tokens(self) -> tuple[str, ...]: ...

    def assemble(self, x: Tensor, plan: Any, learned_tokens: LearnedTokens) -> Tensor: ...


class PoolingTokenizer(GridTokenizer, Protocol):
    """One that pools views."""

    @property
    def pooling(self) -> Pooling: ...


@dataclass(frozen=True, slots=True, eq=False)
class LoweredPlan:
    """The tokens of an image or video out of its cells: token i is the sum over j of weights[i, j] * cells[rows[i, j]].

    rows: int64 (num_tokens, k), the cell's number view * area + row * columns + column, or -1 - m for the m-th of the
    tokenizer's learned tokens. weights: (num_tokens, k), those of a token sum to one; with weight 0 nothing is read.
    before_projector: whether the cells are the encoder's, summed before they are projected, or the projector's.
    """

    rows: Tensor
    weights: Tensor
    before_projector: bool = False
    __repr__ = format_by_shape

    @classmethod
    def from_codes(cls, codes: Tensor) -> LoweredPlan:
        """Read from codes (num_tokens, 2k)."""
        numbers, weights = codes.chunk(2, dim=1)
        return cls(numbers.to(torch.int64), weights)

    @classmethod
    def from_parts(cls, parts: Sequence[LoweredPlan]) -> LoweredPlan:
        """Tokens one after the other, each of as many cells as any of them needs."""
        k = max(part.rows.shape[1] for part in parts)
        rows, weights = zip(*(pad_to_k(part.rows, part.weights, k) for part in parts), strict=True)
        return cls(torch.cat(rows), torch.cat(weights), parts[0].before_projector)


def pad_to_k(rows: Tensor, weights: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Rows and weights (n, fewer than k) as (n, k): the first cell of each is repeated with weight 0."""
    missing = k - rows.shape[1]
    if not missing:
        return rows, weights
    return torch.cat([rows, rows[:, :1].expand(-1, missing)], dim=1), F.pad(weights, (0, missing))


@dataclass(frozen=True, slots=True, eq=False)
class Stencil:
    """Which cells of a map each cell of a smaller map is made of, the same for every map.

    cells: the size of the smaller map. rows int64, weights float64: (cells.area, k), filled up as by `pad_to_k`.
    They are arrays because stencils are cached: tensors would keep the device or inference mode they were made under.
    """

    cells: Size
    rows: np.ndarray
    weights: np.ndarray

    @classmethod
    def from_matrix(cls, matrix: np.ndarray, cells: Size) -> Stencil:
        """matrix: (cells.area, cells of the larger map), the weights of the old cells in each new one."""
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
        """The same with k cells for each new one, those added of weight 0."""
        padding = ((0, 0), (0, k - self.reads_per_cell))
        return Stencil(self.cells, np.pad(self.rows, padding, "edge"), np.pad(self.weights, padding))

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
    """Codes of a tokenizer's learned tokens, as long as those of k cells."""
    unused = [0.0] * (k - 1)
    return {
        name: torch.tensor([-1.0 - m, *unused, 1.0, *unused], dtype=torch.float64, device="cpu")
        for m, name in enumerate(names)
    }


# Lowering -----------------------------------------------------------------------------------------------------------


def lower_tokenizer_plan(tokenizer: object, plan: VisualPlan) -> LoweredPlan | None:
    """A plan in integers, where its tokenizer is a `LowerableTokenizer` and `lower_plan` stands for its own `assemble`."""
    if isinstance(tokenizer, LowerableTokenizer) and tokenizer.lowerable_assemble == getattr(
        tokenizer, "assemble", None
    ):
        return tokenizer.lower_plan(plan)
    return None


def lower_permutation(tokenizer: GridTokenizer, plan: VisualPlan) -> LoweredPlan:
    """For tokenizers whose `assemble` only moves rows: the same `assemble`, of codes."""
    cells = make_cell_codes(len(plan.views), tokenizer.grid)
    return LoweredPlan.from_codes(tokenizer.assemble(cells, plan, make_learned_token_codes(tokenizer.learned_tokens)))


def lower_pooling(
    tokenizer: PoolingTokenizer, plan: VisualPlan, arrange: Callable[[Tensor, LearnedTokens], Tensor]
) -> LoweredPlan | None:
    """For tokenizers that pool every view by `pooling` and then only move cells, by `arrange`. None for other poolings."""
    stencil = find_stencil(tokenizer.pooling, tokenizer.grid)
    if stencil is None:
        return None
    cells = stencil(make_cell_codes(len(plan.views), tokenizer.grid))
    return LoweredPlan.from_codes(
        arrange(cells, make_learned_token_codes(tokenizer.learned_tokens, stencil.reads_per_cell))
    )


# Stencils -----------------------------------------------------------------------------------------------------------


def find_stencil(pooling: Pooling, grid: Size) -> Stencil | None:
    """The cells that a pooling reads, found by pooling an identity; None when it is not linear or reads too many.

    A pooling whose weights do not sum to one has none: it does not commute with the projector's bias.
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
    """The cells that scaling maps of `old` cells to `new` cells reads, for a `scale` that is separable in rows and columns."""
    down, across = _make_line_stencil(scale, old.height, new.height), _make_line_stencil(scale, old.width, new.width)
    rows = down.rows[:, None, :, None] * old.width + across.rows[:, None]
    weights = down.weights[:, None, :, None] * across.weights[:, None]
    return Stencil(new, rows.reshape(new.area, -1), weights.reshape(new.area, -1))


@lru_cache(maxsize=256)
def _make_line_stencil(scale: Callable[[Tensor, Size], Tensor], old: int, new: int) -> Stencil:
    """A single column of `old` cells scaled to `new`: found in one dimension, because the identity of a map is large."""
    with torch.no_grad():
        one_hot = torch.eye(old, dtype=torch.float64, device="cpu").view(1, old, 1, old)
        return Stencil.from_matrix(scale(one_hot, Size(new, 1)).flatten(0, 2).numpy(), Size(new, 1))
