"""The order in which attention backends are tried, by device and shape: measured orders first, then the built-in ones.

`MMBLOCKS_ATTENTION_TABLE` names a json file of measured orders, a list of objects with the fields of `BackendOrder`
(backends by name). `mmblocks doctor --tune-attention FILE` writes one.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from mmblocks.errors import ConfigError
from mmblocks.ops.choice import OPS, Backend

SETTING = "MMBLOCKS_ATTENTION_TABLE"
PACKED, FIXED = "attention", "fixed_attention"


@dataclass(frozen=True, slots=True)
class OrderKey:
    """The device and the call that an order is looked up for."""

    op: str
    capability: tuple[int, int] | None
    head_dim: int
    causal: bool
    learns: bool
    grouped: bool


@dataclass(frozen=True, slots=True)
class BackendOrder:
    """An order of backends and the calls that it is for; a field that is None does not restrict them.

    capability: the least compute capability. head_dim: the largest. grouped: keys have fewer heads than queries.
    source: where the order comes from, "measured: ..." with device and versions, or the argument for it.
    """

    op: str
    order: tuple[Backend, ...]
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


BUILT_IN: tuple[Mapping[str, Any], ...] = (  # as in a file
    {
        "op": PACKED,
        "order": ["varlen", "xformers"],
        "source": "not measured: both call the same FlashAttention-2; in backward xformers copies keys for each head of a group",
        "learns": True,
        "grouped": True,
    },
    {"op": PACKED, "order": ["xformers", "varlen"], "source": "not measured: both call the same FlashAttention-2"},
    {
        "op": FIXED,
        "order": ["cudnn", "flash", "efficient"],
        "source": "published: transformers pull request 48163 has cuDNN 1.7 to 2.3 times as fast as flash on H100",
        "capability": (9, 0),
        "head_dim": 128,
        "causal": False,
    },
    {
        "op": FIXED,
        "order": ["flash", "efficient", "cudnn"],
        "source": "not measured: torch's own order; cuDNN plans anew for each length, and lengths of text hardly repeat",
    },
)


def order_backends(key: OrderKey) -> tuple[Backend, ...]:
    """All backends of an op, the one to try first at the front."""
    return next(row.order for row in read_orders(os.environ.get(SETTING)) if row.is_for(key))


@cache
def read_orders(path: str | None) -> tuple[BackendOrder, ...]:
    """The orders of a file, then the built-in ones. Raises `ConfigError` for a file that holds no table."""
    built_in = tuple(_parse_row(row, "built in") for row in BUILT_IN)
    if not path:
        return built_in
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise ConfigError(f"{SETTING}={path}: no table can be read there ({cause}).") from cause
    if not isinstance(table, list):
        raise ConfigError(f"{SETTING}={path}: it holds a {type(table).__name__}; write a list of rows.")
    measured = (_parse_row(row, f"{SETTING}={path}: row {number}") for number, row in enumerate(table, 1))
    return (*measured, *built_in)


def _parse_row(row: object, where: str) -> BackendOrder:
    """A row with its names turned into backends; backends that it does not name come last."""
    known = [field.name for field in fields(BackendOrder)]
    if not isinstance(row, Mapping) or not {"op", "order", "source"} <= row.keys() <= set(known):
        raise ConfigError(f"{where} is {row!r}; it needs op, order and source, and may have {', '.join(known[3:])}.")
    if row["op"] not in (PACKED, FIXED):
        raise ConfigError(f"{where}: there is no table for op {row['op']!r}, only for {PACKED}, {FIXED}.")
    backends = {backend.name: backend for backend in OPS[row["op"]].backends}
    if unknown := [name for name in row["order"] if name not in backends]:
        raise ConfigError(f"{where}: there is no backend {unknown[0]!r}; there are {', '.join(backends)}.")
    order = tuple(backends[name] for name in dict.fromkeys([*row["order"], *backends]))
    capability = row.get("capability")
    return BackendOrder(**{**row, "order": order, "capability": None if capability is None else tuple(capability)})
