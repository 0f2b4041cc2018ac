"""Overrides as people write them: stages and sources by number or by name, and no `+` for what a schema knows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from mmblocks.components import REGISTRIES
from mmblocks.data.mixing.entries import SourceUse
from mmblocks.data.sources import sources
from mmblocks.errors import ConfigError
from mmblocks.image_reading import ImageReading
from mmblocks.model.spec import ModelSpec
from mmblocks.registry import Registry, Spec
from mmblocks.settings import format_suggestion, list_settings, make_unknown_fault
from mmblocks.shapes import SCENARIOS
from mmblocks.train.stages import TRAINABLE_PARTS, EncoderPretraining, Evaluation, Lora, PartSettings, Stage, TrainRun

_WORD = re.compile(r"(?P<sign>~|\+\+?)?(?P<key>[^=/@]+)(?P<value>=.*)?", re.DOTALL)


def translate_overrides(words: Sequence[str], composed: Mapping[str, Any]) -> list[str]:
    """Overrides as Hydra takes them: stages and sources by number, `++` before each setting that a schema knows.

    composed: the recipe with its component groups chosen, as plain values. Each word is read beside what those before it
    have made. Raises `ConfigError` for a stage or source that is not there, and for a setting that nobody knows.
    """
    so_far, made = dict(composed), []
    for word in words:
        matched = _WORD.fullmatch(word)
        if matched is None:  # of a component group
            made.append(word)
            continue
        sign, key, given = matched["sign"] or "", matched["key"], matched["value"] or ""
        place = _locate_key(key.split("."), so_far, must_be_known=not sign)
        if sign == "~" and isinstance(_find_value(so_far, place.path[:-1]), list):  # Hydra takes nothing out of lists
            so_far = _remove_value(so_far, place.path)
            made.append(f"{'.'.join(place.path[:-1])}={_format_value(_find_value(so_far, place.path[:-1]))}")
            continue
        made += [f"++{'.'.join(path)}={_format_value(value)}" for path, value in place.filled]
        value = _read(given)
        needs_plus = not sign and (len(place.path) > 1 or isinstance(value, Mapping))
        made.append(f"{'++' if needs_plus and place.is_known else sign}{'.'.join(place.path)}{given}")
        for path, whole in place.filled:
            so_far = _set_value(so_far, path, whole)
        so_far = _remove_value(so_far, place.path) if sign == "~" else _set_value(so_far, place.path, value)
    return made


def parse_overrides(words: Sequence[str]) -> list[Override]:
    """Overrides read by Hydra, but for their keys: a stage's name may be one that Hydra's grammar has no place for."""
    made = []
    for word in words:
        matched = _WORD.fullmatch(word)
        if matched is None or "." not in matched["key"]:
            made += OverridesParser.create().parse_overrides([word])
        else:
            (one,) = OverridesParser.create().parse_overrides([f"{matched['sign'] or ''}key{matched['value'] or ''}"])
            made.append(replace(one, key_or_group=matched["key"], input_line=word))
    return made


def needs_translation(words: Sequence[str]) -> bool:
    """Whether one of the words goes below the first level, or holds a mapping, so that it has to be translated."""
    matched = [m for m in map(_WORD.fullmatch, words) if m is not None]
    return any("." in m["key"] or "{" in (m["value"] or "") for m in matched)


# What is known of a run ---------------------------------------------------------------------------------------------


class _Shape(Protocol):
    """What may stand at a place of a run."""

    def find_settings(self, value: object) -> Mapping[str, _Shape] | None:
        """The settings of a mapping that stands there; None where any will do."""
        ...

    @property
    def shorthand_key(self) -> str | None:
        """The setting that a plain value stands for when it is written for the mapping: `mlp` is {name: mlp}."""
        ...


@dataclass(frozen=True, slots=True)
class _Anything:
    shorthand_key: str | None = None

    def find_settings(self, value: object) -> None:
        return None


@dataclass(frozen=True, slots=True)
class _Fields:
    """A mapping with the fields of a dataclass, or with these keys."""

    known: Mapping[str, _Shape]
    shorthand_key: str | None = None

    @classmethod
    def from_schema(
        cls, schema: type, inner: Mapping[str, _Shape] | None = None, *, whole: str | None = None
    ) -> _Fields:
        return cls({**dict.fromkeys(list_settings(schema), _Anything()), **(inner or {})}, whole)

    def find_settings(self, value: object) -> Mapping[str, _Shape]:
        return self.known


@dataclass(frozen=True, slots=True)
class _Component:
    """A component of a registry by its name, with its settings; `beside` are keys that belong to no component."""

    registry: Registry[Any]
    beside: tuple[str, ...] = ()
    shorthand_key: str | None = "name"

    def find_settings(self, value: object) -> Mapping[str, _Shape] | None:
        name = value.get("name") if isinstance(value, Mapping) else None
        if not isinstance(name, str) or name not in self.registry:
            return None
        inner: dict[object, _Shape] = {Spec: _Component(self.registry)}
        inner[tuple[Spec, ...]] = _Each(_Component(self.registry), "member")
        settings = {
            s.name: next((shape for kind, shape in inner.items() if kind == s.annotation), _Anything())
            for s in self.registry.list_settings(name)
        }
        return {"name": _Anything(), **settings, **dict.fromkeys(self.beside, _Anything())}


@dataclass(frozen=True, slots=True)
class _Each:
    """A list of things that have names."""

    one: _Shape
    what: str
    shorthand_key: str | None = None

    def find_settings(self, value: object) -> None:
        return None


def _make_run_shape() -> _Shape:
    # These import torch.
    from mmblocks.eval.task_settings import TaskUse, tasks
    from mmblocks.model.generation.decoding import Decoding
    from mmblocks.train.objectives import objectives

    kinds = ("encoder", "projector", "pooling", "backbone", "template")
    data = _Each(_Component(sources, tuple(list_settings(SourceUse))), "source")
    tokenizer = _Fields(dict.fromkeys(SCENARIOS, _Component(REGISTRIES["tokenizer"])))
    rates = {
        part: _Fields.from_schema(Lora if part == "lora" else PartSettings, whole="lr") for part in TRAINABLE_PARTS
    }
    parts = {kind: _Component(REGISTRIES[kind]) for kind in kinds}
    model = _Fields.from_schema(
        ModelSpec, {**parts, "tokenizer": tokenizer, "images": _Fields.from_schema(ImageReading)}
    )
    train = {"data": data, "train": _Fields(rates), "tokenizer": tokenizer, "objective": _Component(objectives)}
    stages = _Each(_Fields.from_schema(Stage, train), "stage")
    asked = _Each(_Component(tasks, tuple({**list_settings(TaskUse), **list_settings(Decoding)})), "task")
    evaluate = _Fields.from_schema(Evaluation, {"data": data, "tasks": asked})
    return _Fields.from_schema(
        TrainRun,
        {
            "model": model,
            "stages": stages,
            "encoder_pretraining": _Fields.from_schema(EncoderPretraining),
            "evaluate": evaluate,
        },
    )


# Places -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _KeyPath:
    """Where a key leads to. filled: mappings that have to stand on the way, for plain values that stand there now."""

    path: list[str] = field(default_factory=list)
    filled: list[tuple[list[str], Mapping[str, Any]]] = field(default_factory=list)
    is_known: bool = True


def _locate_key(keys: Sequence[str], value: object, *, must_be_known: bool) -> _KeyPath:
    """Follow a key from the top of a run. What nobody knows is left to Hydra, where it need not be known."""
    place, shape, rest = _KeyPath(), _make_run_shape(), list(keys)
    while rest:
        if isinstance(shape, _Each) and isinstance(value, list):
            number, used = _find_number(shape.what, value, rest, ".".join(place.path))
            place.path.append(str(number))
            value, shape, rest = value[number], shape.one, rest[used:]
            continue
        if shape.shorthand_key is not None and value is not None and not isinstance(value, Mapping):
            value = {shape.shorthand_key: value}
            place.filled.append(([*place.path], value))
        known = shape.find_settings(value)
        if known is not None and rest[0] not in known:
            if must_be_known and place.path:
                where = ".".join(keys[: len(keys) - len(rest)])
                unknown = make_unknown_fault(rest[0], "is not a setting.", known, where)
                raise ConfigError.from_faults([unknown])
            return _KeyPath([*place.path, *rest], place.filled, is_known=False)
        place.path.append(rest[0])
        value = value.get(rest[0]) if isinstance(value, Mapping) else None
        shape, rest = (known or {}).get(rest[0], _Anything()), rest[1:]
    return place


def _find_number(what: str, listed: Sequence[Any], keys: Sequence[str], where: str) -> tuple[int, int]:
    """Which of the listed a key begins with, by number or by name (which may have dots), and how many words that takes."""
    names = [str(one.get("name")) if isinstance(one, Mapping) else str(one) for one in listed]
    there = ", ".join(f"{i} ({name})" for i, name in enumerate(names)) or "none"
    for used in range(len(keys), 0, -1):
        word = ".".join(keys[:used])
        if used == 1 and word.isdecimal():
            break
        if names.count(word) > 1:
            raise ConfigError(f"{where}.{word}: several are called so; write the number of the {what}: {there}.")
        if word in names:
            return names.index(word), used
    if not keys[0].isdecimal():
        known = [*dict.fromkeys(names), *map(str, range(len(names)))]
        hint = format_suggestion(keys[0], known).partition(" Known:")[0]
        raise ConfigError(f"{where}.{keys[0]}: no {what} is called {keys[0]!r}.{hint} There are: {there}.")
    if int(keys[0]) >= len(listed):
        raise ConfigError(f"{where}.{keys[0]}: there is no {what} {keys[0]}. There are: {there}.")
    return int(keys[0]), 1


# Values -------------------------------------------------------------------------------------------------------------


def _read(given: str) -> Any:
    """The value behind '=' as Hydra reads it; None where it cannot, or reads several."""
    try:
        override = OverridesParser.create().parse_override(f"value{given or '='}")
        return None if override.is_sweep_override() else override.value()
    except HydraException:
        return None


def _format_value(value: object) -> str:
    """A plain value in Hydra's words."""
    if isinstance(value, list):
        return "[" + ",".join(map(_format_value, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{_format_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, str):
        quoted = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{quoted}'"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _find_value(tree: object, path: Sequence[str]) -> Any:
    for word in path:
        tree = tree.get(word) if isinstance(tree, Mapping) else tree[int(word)] if isinstance(tree, list) else None
    return tree


def _set_value(tree: object, path: Sequence[str], value: object) -> Any:
    """A tree of plain values with another value at a place; a mapping is merged with the one that stands there."""
    if not path:
        return {**tree, **value} if isinstance(tree, Mapping) and isinstance(value, Mapping) else value
    first, *rest = path
    if isinstance(tree, list):
        number = int(first) if first.isdecimal() else -1
        return [_set_value(one, rest, value) if i == number else one for i, one in enumerate(tree)]
    inner = dict(tree) if isinstance(tree, Mapping) else {}
    return {**inner, first: _set_value(inner.get(first), rest, value)}


def _remove_value(tree: object, path: Sequence[str]) -> Any:
    first, *rest = path
    if isinstance(tree, list):
        pairs = [(str(i) == first, one) for i, one in enumerate(tree)]
        return [_remove_value(one, rest) if hit else one for hit, one in pairs if rest or not hit]
    if not isinstance(tree, Mapping):
        return tree
    return {k: _remove_value(v, rest) if k == first else v for k, v in tree.items() if rest or k != first}
