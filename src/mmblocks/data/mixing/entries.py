"""One entry of a stage's `data`: a source with its settings, and how it is used: `weight`, `subset`, `prompt`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from mmblocks.data.mixing.wrapped_sources import ConcatenatedSource, PromptedSource, find_subset_fault, select_subset
from mmblocks.data.sources import Source, sources
from mmblocks.errors import ConfigError
from mmblocks.faults import Fault
from mmblocks.settings import find_number_fault, is_of_type, list_settings


@dataclass(frozen=True, slots=True)
class SourceUse:
    """How a stage uses a source.

    weight: its share of the draws, beside those of the other sources. subset: which records, as `wrapped_sources.choose_indices` says.
    prompt: a line that every question ends in.
    """

    weight: float = 1.0
    subset: str = "all"
    prompt: str = ""


class WeightedSource(NamedTuple):
    """A source ready to be drawn from: what reports call it, and its share."""

    name: str
    source: Source
    weight: float


def split_entry(entry: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """An entry's values as (those of its source, those of its `SourceUse`)."""
    own = list_settings(SourceUse)
    return {k: v for k, v in entry.items() if k not in own}, {k: v for k, v in entry.items() if k in own}


def find_entry_faults(entry: Mapping[str, Any], key: str = "") -> list[Fault]:
    """What is wrong with an entry: how it is used, and its source's settings; nothing is opened. Keys stand below `key`."""
    source, use = split_entry(entry)
    faults, weight, prompt = [], use.get("weight", 1.0), use.get("prompt", "")
    if not is_of_type(float, weight) or weight <= 0 or find_number_fault("weight", weight):
        faults.append(Fault("weight", f"weight={weight!r} is no share of the samples.", "Write a number above 0."))
    if fault := find_subset_fault(use.get("subset", "all")):
        faults.append(fault)
    if not isinstance(prompt, str):
        faults.append(Fault("prompt", f"prompt={prompt!r} is not a text.", "Write a line of text."))
    return [*(fault.move_below(key) for fault in faults), *sources.find_faults(source, key)]


def open_entry(entry: Mapping[str, Any]) -> list[WeightedSource]:
    """The sources of an entry, its weight shared out by their length: several where it names several files.

    Raises `ConfigError` for values that do not fit and for a source without conversations, `DataError` for one that
    cannot be read.
    """
    if faults := find_entry_faults(entry):
        raise ConfigError.from_faults(faults)
    settings, use = split_entry(entry)
    how = SourceUse(**use)
    whole = select_subset(sources.build(settings), how.subset)
    detail = next((settings[k] for k in ("path", "hub", "task") if settings.get(k)), "")
    title = f"{settings['name']} {detail if isinstance(detail, str) else ', '.join(map(str, detail))}".strip()
    parts: list[tuple[str, Source]] = [(title, whole)]
    if isinstance(whole, ConcatenatedSource):
        parts = [(f"{title}: {name}", part) for name, part in zip(whole.names, whole.parts, strict=True)]
    length = sum(len(source) for _, source in parts)
    if not length:
        raise ConfigError("this source holds no conversation.")
    return [
        WeightedSource(
            name, PromptedSource(source, how.prompt) if how.prompt else source, how.weight * len(source) / length
        )
        for name, source in parts
        if len(source)
    ]
