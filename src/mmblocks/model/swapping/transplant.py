"""Transfer of tensors from one model to another, and a report of every parameter of both."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
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
"""(name, old tensor, new shape) to the tensor in that shape, or None where it cannot be resized."""

POSITIONS = re.compile(r"pos(ition)?(al)?_?emb")
VOCABULARY = re.compile(r"(embed_tokens|lm_head|wte|embed_in|embed_out)\.(weight|bias)$")
MOST_EXTRA_TOKENS = 16


@dataclass(frozen=True, slots=True)
class TransferLine:
    """What became of one parameter; `before` and `after` are its shapes, None where that model does not have it."""

    part: str
    name: str
    fate: Fate
    before: tuple[int, ...] | None
    after: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class TransferReport:
    """Every parameter of the old and of the new model, each shared one once."""

    lines: tuple[TransferLine, ...]

    def count_parameters(self, fate: Fate, part: str | None = None) -> int:
        """Number of parameters of a fate: of dropped ones in the old model, of others in the new one."""
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

    def to_dict(self) -> dict[str, Any]:
        """The report as json: totals, then names with shapes by part and fate."""
        counts = {fate: self.count_parameters(fate) for fate in FATES}
        tensors: dict[str, dict[Fate, Any]] = {line.part: {} for line in self.lines}
        for fate in FATES:
            for line in self.lines:
                if line.fate == fate:
                    shapes = [list(shape) if shape is not None else None for shape in (line.before, line.after)]
                    tensors[line.part].setdefault(fate, {})[line.name] = shapes
        return {"parameters": {"before": self.before, "after": self.after, **counts}, "tensors": tensors}


def list_untouched(part: str, module: nn.Module) -> Iterator[TransferLine]:
    """A part that is the same object in both models."""
    for name, parameter in module.named_parameters():
        yield TransferLine(part, name, "kept", tuple(parameter.shape), tuple(parameter.shape))


def list_replaced(part: str, old: nn.Module, new: nn.Module) -> Iterator[TransferLine]:
    """A part of which no parameter is kept."""
    yield from (TransferLine(part, n, "dropped", tuple(p.shape), None) for n, p in old.named_parameters())
    yield from (TransferLine(part, n, "new", None, tuple(p.shape)) for n, p in new.named_parameters())


@torch.no_grad()
def fill_module(part: str, new: nn.Module, old: nn.Module, resize: Resize | None = None) -> list[TransferLine]:
    """Copy every tensor of `old` to the one of its name in `new`, where it has its shape or can be resized to it."""
    sources = old.state_dict()
    fates: dict[str, Fate] = {}
    for name, tensor in new.state_dict().items():
        source = sources.get(name)
        if source is not None and source.shape == tensor.shape:
            tensor.copy_(source)
            fates[name] = "kept"
        elif source is not None and resize and (resized := resize(name, source, tensor.shape)) is not None:
            tensor.copy_(resized)
            fates[name] = "resized"
    before, after = (
        {name: tuple(parameter.shape) for name, parameter in module.named_parameters()} for module in (old, new)
    )
    transferred = before.keys() & after.keys() & fates.keys()
    return [
        *(
            TransferLine(part, name, fates.get(name, "new"), before[name] if name in transferred else None, shape)
            for name, shape in after.items()
        ),
        *(
            TransferLine(part, name, "dropped", shape, None)
            for name, shape in before.items()
            if name not in transferred
        ),
    ]


# Tensors that can be resized ----------------------------------------------------------------------------------------


def make_position_resize(old: Size, new: Size) -> Resize:
    """Resizing of position tables from one grid to another: bicubic with antialiasing; rows before the patches are kept."""

    def resize_positions(name: str, table: Tensor, shape: Sequence[int]) -> Tensor | None:
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

    return resize_positions


def extend_vocabulary(name: str, table: Tensor, shape: Sequence[int]) -> Tensor | None:
    """Resizing of tables by token id to more tokens; each new row is the mean of the old ones."""
    if not VOCABULARY.search(name) or tuple(table.shape[1:]) != tuple(shape[1:]) or shape[0] < len(table):
        return None
    mean = table.float().mean(dim=0, keepdim=True).to(table.dtype)
    return torch.cat([table, mean.expand(shape[0] - len(table), *table.shape[1:])])
