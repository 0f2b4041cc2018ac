"""Tensors of one model put into another part by part, and a ledger in which every parameter of both is found."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmblocks.shapes import Size

Fate = Literal["kept", "resized", "new", "dropped"]
FATES: tuple[Fate, ...] = ("kept", "resized", "new", "dropped")
Resize = Callable[[str, Tensor, Sequence[int]], Tensor | None]
"""(name, old tensor, new shape) to the tensor in that shape, or None where it cannot be said."""

POSITIONS = re.compile(r"pos(ition)?(al)?_?emb")
VOCABULARY = re.compile(r"(embed_tokens|lm_head|wte|embed_in|embed_out)\.(weight|bias)$")
MOST_EXTRA_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Line:
    """What became of one parameter; `before` and `after` are its shapes, None where that model does not have it."""

    part: str
    name: str
    fate: Fate
    before: tuple[int, ...] | None
    after: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Ledger:
    """Every parameter of the old and of the new model, each shared one once."""

    lines: tuple[Line, ...]

    def count(self, fate: Fate, part: str | None = None) -> int:
        """Parameters of a fate: as they are in the new model, or, of the dropped ones, as they were."""
        return sum(
            math.prod(line.before if fate == "dropped" else line.after)  # type: ignore[arg-type]
            for line in self.lines
            if line.fate == fate and part in (None, line.part)
        )

    @property
    def before(self) -> int:
        """Parameters of the old model: kept, resized from, or dropped."""
        return sum(math.prod(line.before) for line in self.lines if line.before is not None)

    @property
    def after(self) -> int:
        """Parameters of the new model: kept, resized to, or new."""
        return sum(math.prod(line.after) for line in self.lines if line.after is not None)

    def plain(self) -> dict[str, Any]:
        """The ledger as json knows it: totals, then names with shapes by part and fate."""
        parts = dict.fromkeys(line.part for line in self.lines)
        return {
            "parameters": {"before": self.before, "after": self.after, **{f: self.count(f) for f in FATES}},
            "tensors": {part: {f: self._named(part, f) for f in FATES if self._named(part, f)} for part in parts},
        }

    def _named(self, part: str, fate: Fate) -> dict[str, list[list[int] | None]]:
        return {
            line.name: [list(shape) if shape is not None else None for shape in (line.before, line.after)]
            for line in self.lines
            if (line.part, line.fate) == (part, fate)
        }


def never(name: str, old: Tensor, shape: Sequence[int]) -> None:
    """Resize nothing."""


def untouched(part: str, module: nn.Module) -> Iterator[Line]:
    """A part that is the same object in both models."""
    for name, parameter in module.named_parameters():
        yield Line(part, name, "kept", tuple(parameter.shape), tuple(parameter.shape))


def replaced(part: str, old: nn.Module, new: nn.Module) -> Iterator[Line]:
    """A part of which nothing is kept."""
    yield from (Line(part, n, "dropped", tuple(p.shape), None) for n, p in old.named_parameters())
    yield from (Line(part, n, "new", None, tuple(p.shape)) for n, p in new.named_parameters())


@torch.no_grad()
def fill(part: str, new: nn.Module, old: nn.Module, resize: Resize = never) -> Iterator[Line]:
    """Give a module every tensor of another that has its name and shape, or can be resized to it."""
    given, wanted = old.state_dict(), new.state_dict()
    fates: dict[str, Fate] = {}
    for name, tensor in wanted.items():
        source = given.get(name)
        if source is not None and source.shape == tensor.shape:
            tensor.copy_(source)
            fates[name] = "kept"
        elif source is not None and (fitted := resize(name, source, tensor.shape)) is not None:
            tensor.copy_(fitted)
            fates[name] = "resized"
    return _lines(part, dict(old.named_parameters()), dict(new.named_parameters()), fates)


def _lines(
    part: str, old: Mapping[str, Tensor], new: Mapping[str, Tensor], fates: Mapping[str, Fate]
) -> Iterator[Line]:
    for name, parameter in new.items():
        taken = name in fates and name in old
        yield Line(
            part, name, fates.get(name, "new"), tuple(old[name].shape) if taken else None, tuple(parameter.shape)
        )
    for name, parameter in old.items():
        if not (name in fates and name in new):
            yield Line(part, name, "dropped", tuple(parameter.shape), None)


# Tensors that can be brought to another shape -----------------------------------------------------------------------


def positions_between(old: Size, new: Size) -> Resize:
    """Position tables of square or other grids: bicubic with antialiasing; rows in front of the patches are kept."""

    def resize(name: str, table: Tensor, shape: Sequence[int]) -> Tensor | None:
        if not POSITIONS.search(name) or table.ndim != len(shape) or table.ndim not in (2, 3):
            return None
        rows = table.reshape(-1, table.shape[-1])
        extra = len(rows) - old.area
        if (
            not 0 <= extra <= MOST_EXTRA_TOKENS
            or math.prod(shape[:-1]) != extra + new.area
            or shape[-1] != rows.shape[-1]
        ):
            return None
        grid = rearrange(rows[extra:].float(), "(h w) d -> 1 d h w", h=old.height)
        scaled = F.interpolate(grid, size=tuple(new), mode="bicubic", antialias=True)
        patches = rearrange(scaled, "1 d h w -> (h w) d").to(table.dtype)
        return torch.cat([rows[:extra], patches]).reshape(*shape)

    return resize


def more_words(name: str, table: Tensor, shape: Sequence[int]) -> Tensor | None:
    """Tables by token id with rows for more tokens, each the mean of those that are there."""
    if not VOCABULARY.search(name) or tuple(table.shape[1:]) != tuple(shape[1:]) or shape[0] < len(table):
        return None
    mean = table.float().mean(dim=0, keepdim=True).to(table.dtype)
    return torch.cat([table, mean.expand(shape[0] - len(table), *table.shape[1:])])
