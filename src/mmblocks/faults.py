"""What is wrong with a configuration, as values. Every check yields these; only this module writes them as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Severity = Literal["error", "missing", "fetchable", "warning"]
"""error: it cannot work. missing: it can, but not on this machine as it is. fetchable: a run downloads what is missing. warning:
it works, and most likely not as it is meant.
"""
HARMLESS: tuple[Severity, ...] = ("fetchable", "warning")
"""What stops no run."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One reason why something cannot work: the config key, what is wrong, and what to write instead.

    The key may be empty, where the message says what it is about; the cure may be part of the message.
    """

    key: str
    message: str
    cure: str = ""
    severity: Severity = "error"

    def __str__(self) -> str:
        joint = " " if self.message.startswith("is ") else ": "
        return " ".join(text for text in (f"{self.key}{joint}{self.message}".removeprefix(": "), self.cure) if text)

    def move_below(self, key: str) -> Fault:
        """The same fault, where what has it stands below a key."""
        return replace(self, key=join_key(key, self.key))


def join_key(*parts: str) -> str:
    """Parts of a config key with dots between them; empty ones are left out."""
    return ".".join(part for part in parts if part)


def format_faults(faults: Sequence[Fault], title: str = "") -> str:
    """A title and the faults, one per line; without a title the faults alone."""
    return "\n".join([f"{title}:", *(f"  - {fault}" for fault in faults)] if title else map(str, faults))
