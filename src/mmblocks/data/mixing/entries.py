"""One entry of a stage's `data`: a source with its settings, and how it is used: `weight`, `take`, `prompt`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from mmblocks.data.mixing.selection import Concatenated, Prompted, take_fault, taken
from mmblocks.data.sources import Source, sources
from mmblocks.errors import ConfigError
from mmblocks.settings import accepts, fields_of, number_fault


@dataclass(frozen=True, slots=True)
class Use:
    """How a source is used, whatever it is.

    weight: its share of the draws, beside those of the other sources. take: which records, as `selection.chosen` says.
    prompt: a line that every question ends in.
    """

    weight: float = 1.0
    take: str = "all"
    prompt: str = ""


class Opened(NamedTuple):
    """A source ready to be drawn from: what reports call it, and its share."""

    name: str
    source: Source
    weight: float


def split_entry(entry: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """An entry's values as (those of its source, those of its `Use`)."""
    own = fields_of(Use)
    return {k: v for k, v in entry.items() if k not in own}, {k: v for k, v in entry.items() if k in own}


def use_faults(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is wrong with an entry apart from its source: (key, what and cure) pairs."""
    use = split_entry(entry)[1]
    faults = []
    weight = use.get("weight", 1.0)
    if not accepts(float, weight) or weight <= 0 or number_fault("weight", weight):
        faults.append(("weight", f"weight={weight!r} is no share of the samples. Write a number above 0."))
    if fault := take_fault(use.get("take", "all")):
        faults.append(("take", f"take={fault}"))
    if not isinstance(use.get("prompt", ""), str):
        faults.append(("prompt", f"prompt={use['prompt']!r} is not a text."))
    return faults


def opened(entry: Mapping[str, Any]) -> list[Opened]:
    """The sources of an entry, its weight shared out by their length: several where it names several files.

    Raises `ConfigError` for values that do not fit and for a source without conversations, `DataError` for one that
    cannot be read.
    """
    if faults := use_faults(entry):
        raise ConfigError("\n".join(text for _, text in faults))
    settings, use = split_entry(entry)
    found = Use(**use)
    whole = taken(sources.build(settings), found.take)
    parts = _parts(whole, _title(settings))
    length = sum(len(source) for _, source in parts)
    if not length:
        raise ConfigError("this source holds no conversation.")
    return [
        Opened(name, Prompted(source, found.prompt) if found.prompt else source, found.weight * len(source) / length)
        for name, source in parts
        if len(source)
    ]


def _parts(source: Source, title: str) -> list[tuple[str, Source]]:
    if not isinstance(source, Concatenated):
        return [(title, source)]
    return [(f"{title}: {name}", part) for name, part in zip(source.names, source.parts, strict=True)]


def _title(settings: Mapping[str, Any]) -> str:
    """A source as reports name it: its kind, and the file or task that tells it from the others."""
    said = next((settings[k] for k in ("path", "hub", "task") if settings.get(k)), "")
    return f"{settings['name']} {said if isinstance(said, str) else ', '.join(map(str, said))}".strip()
