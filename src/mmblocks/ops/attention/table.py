"""In which order ways are tried, by device and shape: measured rows first, then what is known from elsewhere.

`MMBLOCKS_ATTENTION_TABLE` names a json file of measured rows, a list of objects with the fields of `Row`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from mmblocks.errors import ConfigError

SETTING = "MMBLOCKS_ATTENTION_TABLE"
PACKED, FIXED = "attention", "fixed_attention"
BACKENDS = {PACKED: ("xformers", "varlen", "reference"), FIXED: ("cudnn", "flash", "efficient", "reference")}


@dataclass(frozen=True, slots=True)
class BackendOrder:
    """The order of ways for what it describes; what is None describes everything.

    capability: the least compute capability. head_dim: the most. grouped: keys have fewer heads than queries. source:
    where the order comes from, "measured: ..." with device and versions, or what speaks for it.
    """

    op: str
    order: tuple[str, ...]
    source: str
    capability: tuple[int, int] | None = None
    head_dim: int | None = None
    causal: bool | None = None
    learns: bool | None = None
    grouped: bool | None = None

    def is_for(self, key: OrderKey) -> bool:
        return (
            self.op == key.op
            and (self.capability is None or key.capability is None or key.capability >= self.capability)
            and (self.head_dim is None or key.head_dim <= self.head_dim)
            and self.causal in (None, key.causal)
            and self.learns in (None, key.learns)
            and self.grouped in (None, key.grouped)
        )


@dataclass(frozen=True, slots=True)
class OrderKey:
    """What is looked up."""

    op: str
    capability: tuple[int, int] | None
    head_dim: int
    causal: bool
    learns: bool
    grouped: bool


BUILT_IN = (
    BackendOrder(
        PACKED,
        ("varlen", "xformers", "reference"),
        "not measured: both call the same FlashAttention-2; in backward xformers copies keys for each head of a group",
        learns=True,
        grouped=True,
    ),
    BackendOrder(PACKED, ("xformers", "varlen", "reference"), "not measured: both call the same FlashAttention-2"),
    BackendOrder(
        FIXED,
        ("cudnn", "flash", "efficient", "reference"),
        "published: transformers pull request 48163 has cuDNN 1.7 to 2.3 times as fast as flash on H100",
        capability=(9, 0),
        head_dim=128,
        causal=False,
    ),
    BackendOrder(
        FIXED,
        ("flash", "efficient", "cudnn", "reference"),
        "not measured: torch's own order; cuDNN plans anew for each length, and lengths of text hardly repeat",
    ),
)


def order_backends(key: OrderKey) -> tuple[str, ...]:
    """Names of ways, the one to try first at the front."""
    return _find_order(key, os.environ.get(SETTING))


@cache
def _find_order(key: OrderKey, path: str | None) -> tuple[str, ...]:
    return next(row.order for row in (*read_measured_rows(path), *BUILT_IN) if row.is_for(key))


@cache
def read_measured_rows(path: str | None) -> tuple[BackendOrder, ...]:
    """The rows of a file. Raises `ConfigError` for one that is none."""
    if not path:
        return ()
    try:
        said = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise ConfigError(f"{SETTING}={path}: no table can be read there ({cause}).") from cause
    if not isinstance(said, list):
        raise ConfigError(f"{SETTING}={path}: it holds a {type(said).__name__}; write a list of rows.")
    return tuple(_parse_row(row, f"{SETTING}={path}: row {number}") for number, row in enumerate(said, 1))


def _parse_row(said: Any, where: str) -> BackendOrder:
    known = [field.name for field in fields(BackendOrder)]
    if not isinstance(said, Mapping) or not {"op", "order", "source"} <= said.keys() <= set(known):
        raise ConfigError(f"{where} is {said!r}; it needs op, order and source, and may have {', '.join(known[3:])}.")
    if said["op"] not in BACKENDS:
        raise ConfigError(f"{where}: there is no table for op {said['op']!r}, only for {', '.join(BACKENDS)}.")
    order = _complete(said["order"], BACKENDS[said["op"]], where)
    capability = said.get("capability")
    return BackendOrder(**{**said, "order": order, "capability": None if capability is None else tuple(capability)})


def _complete(order: Collection[str], backends: Collection[str], where: str) -> tuple[str, ...]:
    """An order with the ways that it does not name behind."""
    if wrong := [name for name in order if name not in backends]:
        raise ConfigError(f"{where}: there is no way {wrong[0]!r}; there are {', '.join(backends)}.")
    return (*order, *(name for name in backends if name not in order))
