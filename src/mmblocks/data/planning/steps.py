"""Which samples make which step: fixed by the draws, the settings and a seed, whatever the number of processes.

A step consists of packs, each a row of samples for one forward pass; a step's packs, or the samples of its only pack,
are then shared out among ranks. Both are pure functions, so resuming needs the number of the step, no state.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from mmblocks.data.planning.balance import deal_in_turn, deal_longest_first
from mmblocks.data.planning.cost import SampleCost
from mmblocks.data.planning.measure import SampleSizes
from mmblocks.data.planning.packing import OPEN_PACKS, pack_best_fit
from mmblocks.errors import ConfigError

WINDOW = 16
"""Steps whose packs are sorted by cost together (see `plan_by_tokens`)."""
PACKS_TO_BALANCE = 4
"""With so many packs per rank, dealing them out levels the ranks by itself."""


@dataclass(frozen=True, slots=True, eq=False)
class StepPlan:
    """Numbers of draws by pack and packs by step.

    numbers: (draws,) int64, pack after pack. pack_ends: (packs + 1,), where packs begin and end in `numbers`.
    step_ends: (steps + 1,), where steps begin and end among packs. divisible: a step is one pack, without caps, whose
    samples may be shared out; otherwise packs stay whole. sizes: what the draws hold, where it was measured.
    """

    numbers: np.ndarray
    pack_ends: np.ndarray
    step_ends: np.ndarray
    divisible: bool
    sizes: SampleSizes | None = None

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.step_ends) - 1

    @property
    def num_packs(self) -> int:
        return len(self.pack_ends) - 1

    def list_packs(self, step: int) -> list[list[int]]:
        """Numbers of the draws of a step, by pack."""
        ends = self.pack_ends[self.step_ends[step] : self.step_ends[step + 1] + 1].tolist()
        return [self.numbers[begin:end].tolist() for begin, end in pairwise(ends)]

    def list_rank_packs(self, step: int, rank: int, world: int, cost: SampleCost | None = None) -> list[list[int]]:
        """The packs of a rank: equally many on every rank, an empty one where a rank has to fill in.

        Balanced by `cost`, by tokens without one, and dealt in turn where nothing was measured.
        """
        return self.share_packs(step, world, cost)[rank]

    def share_packs(self, step: int, world: int, cost: SampleCost | None = None) -> list[list[list[int]]]:
        """`list_rank_packs` of every rank."""
        packs = self.list_packs(step)
        if self.divisible:
            samples = [number for pack in packs for number in pack]
            dealt = self._deal_pieces([[number] for number in samples], world, cost, even=False)
            return [[[samples[i] for i in mine]] for mine in dealt]
        dealt = self._deal_pieces(packs, world, cost, even=True)
        most = max(map(len, dealt))
        return [[packs[i] for i in mine] + [[] for _ in range(most - len(mine))] for mine in dealt]

    def _deal_pieces(
        self, pieces: list[list[int]], world: int, cost: SampleCost | None, *, even: bool
    ) -> list[list[int]]:
        if self.sizes is None:
            return deal_in_turn(len(pieces), world)
        return deal_longest_first(_compute_costs(pieces, self.sizes, cost), world, even=even)

    def keep_first_steps(self, steps: int) -> StepPlan:
        """The plan of the first `steps` steps alone."""
        packs = int(self.step_ends[steps])
        return replace(
            self,
            numbers=self.numbers[: self.pack_ends[packs]],
            pack_ends=self.pack_ends[: packs + 1],
            step_ends=self.step_ends[: steps + 1],
        )


def plan_by_count(
    size: int,
    global_batch_size: int,
    *,
    sizes: SampleSizes | None = None,
    max_tokens: int | None = None,
    max_views: int | None = None,
    open_packs: int = OPEN_PACKS,
) -> StepPlan:
    """Steps of `global_batch_size` consecutive draws of `size`; the last one holds what is left.

    With `max_tokens` or `max_views` the samples of a step are packed under these caps, which needs their `sizes`.
    Without, a step is one pack that ranks share.
    """
    starts = range(0, size, global_batch_size)
    if max_tokens is None and max_views is None:
        return _make_plan(
            [[list(range(i, min(i + global_batch_size, size)))] for i in starts], divisible=True, sizes=sizes
        )
    if sizes is None:
        raise ConfigError(f"packs of at most {max_tokens} tokens need the sizes of the samples; measure them first.")
    caps = {"max_tokens": max_tokens, "max_views": max_views, "open_packs": open_packs}
    steps = []
    for i in starts:
        part = slice(i, min(i + global_batch_size, size))
        names = [f"draw {number}" for number in range(*part.indices(size))]
        packs = pack_best_fit(sizes.tokens[part], sizes.views[part], names=names, **caps)
        steps.append([[i + number for number in pack] for pack in packs])
    return _make_plan(steps, divisible=False, sizes=sizes)


def plan_by_tokens(
    sizes: SampleSizes,
    step_tokens: int,
    pack_tokens: int,
    pack_views: int | None = None,
    *,
    seed: Sequence[int] = (0,),
    cost: SampleCost | None = None,
    window: int = WINDOW,
    open_packs: int = OPEN_PACKS,
) -> StepPlan:
    """Packs over the whole order of draws, `step_tokens // pack_tokens` of them per step; the last step holds what is left.

    window: packs of so many steps are sorted by cost, cut into steps of like cost, and these steps are shuffled by
    `seed`; 1 leaves packs in their order. Ranks with few packs per step then wait less for each other. `cost` and
    `window` decide the order of the data: a resumed run needs the same ones.
    """
    if step_tokens < pack_tokens:
        raise ConfigError(
            f"step_tokens={step_tokens} is less than pack_tokens={pack_tokens}; a step is at least a pack."
        )
    per_step = step_tokens // pack_tokens
    packs = pack_best_fit(
        sizes.tokens, sizes.views, max_tokens=pack_tokens, max_views=pack_views, open_packs=open_packs
    )
    whole = len(packs) // per_step * per_step
    costs = _compute_costs(packs, sizes, cost)
    steps: list[list[list[int]]] = []
    for number, begin in enumerate(range(0, whole, per_step * window)):
        part = np.arange(begin, min(begin + per_step * window, whole))
        groups = part[None]
        if window > 1:
            by_cost = part[np.argsort(costs[part], kind="stable")].reshape(-1, per_step)
            shuffled = by_cost[np.random.default_rng((*seed, number)).permutation(len(by_cost))]
            groups = np.sort(shuffled, axis=1)
        steps += [[packs[i] for i in group] for group in groups.tolist()]
    if whole < len(packs):
        steps.append(packs[whole:])
    return _make_plan(steps, divisible=False, sizes=sizes)


def choose_window(per_step: int, world: int) -> int:
    """The window that helps: none where every rank has enough packs per step to be balanced by dealing them out."""
    return 1 if per_step >= PACKS_TO_BALANCE * world else WINDOW


def _compute_costs(pieces: Sequence[Sequence[int]], sizes: SampleSizes, cost: SampleCost | None) -> np.ndarray:
    """What each piece of work, none of them empty, costs: in seconds, or in tokens where no cost is given."""
    here = sizes.select_rows(np.array([number for piece in pieces for number in piece], dtype=np.int64))
    each = here.tokens.astype(np.float64) if cost is None else cost.estimate_seconds(here)
    return np.add.reduceat(each, _compute_ends(map(len, pieces))[:-1]) if len(pieces) else each


def _make_plan(steps: Sequence[Sequence[Sequence[int]]], *, divisible: bool, sizes: SampleSizes | None) -> StepPlan:
    packs = [pack for step in steps for pack in step]
    numbers = np.array([number for pack in packs for number in pack], dtype=np.int64)
    return StepPlan(numbers, _compute_ends(map(len, packs)), _compute_ends(map(len, steps)), divisible, sizes)


def _compute_ends(lengths: Iterable[int]) -> np.ndarray:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.fromiter(lengths, dtype=np.int64))])
