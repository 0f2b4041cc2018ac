"""What may stand where the cursor is: recipes, systems, components and overrides. Nothing here imports torch."""

from __future__ import annotations

import argparse
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from mmblocks.cli.inspect import WORDS as INSPECT_WORDS
from mmblocks.cli.listing import list_registries
from mmblocks.cli.plan import MEDIA
from mmblocks.cli.plan_data import WORDS as PLAN_WORDS
from mmblocks.components import REGISTRIES
from mmblocks.image_reading import ImageReading
from mmblocks.model.spec import ModelSpec
from mmblocks.model.systems import SYSTEMS
from mmblocks.settings import Setting, list_settings
from mmblocks.train.stages import TRAINABLE_PARTS, EncoderPretraining, Evaluation, Stage, TrainRun

Suggest = Callable[[str, argparse.Namespace], Iterable[str] | Mapping[str, str]]
"""What may begin with a prefix, given the arguments before it; a mapping also says what each of them is."""

_STAGE_KEY = re.compile(r"stages\.[^=]+\.")
_BLOCKS = {"encoder_pretraining": EncoderPretraining, "evaluate": Evaluation}
_IMAGES = "model.images."
_STAGES = 8  # that are offered: as many as a curriculum is likely to have


def suggest_recipes(prefix: str, given: argparse.Namespace) -> Mapping[str, str]:
    from mmblocks.conf.files import list_recipes

    return list_recipes()


def suggest_recipes_and_systems(prefix: str, given: argparse.Namespace) -> Mapping[str, str]:
    return {**suggest_recipes(prefix, given), **_list_systems()}


def suggest_overrides(prefix: str, given: argparse.Namespace) -> list[str]:
    """`model/encoder=`, `seed=`, `stages.0.steps=`; behind the equals sign the values that have names, also in a list."""
    key, equals, value = prefix.partition("=")
    if equals:
        listed = value[: value.rfind(",") + 1]
        return [f"{key}={listed}{name}" for name in _list_values(key)]
    if prefix.startswith("stages."):
        settings = [*list_settings(Stage), *(f"train.{part}" for part in TRAINABLE_PARTS)]
        return [f"stages.{one}.{name}=" for one in _stages_of(given) for name in settings]
    plain = (name for name in list_settings(TrainRun) if name not in ("model", "stages"))
    images = (f"{_IMAGES}{name}=" for name in list_settings(ImageReading))
    inner = (f"{block}.{name}=" for block, schema in _BLOCKS.items() for name in list_settings(schema))
    return [*(f"{group}=" for group in _list_groups()), *(f"{name}=" for name in plain), *images, *inner]


def suggest_plan_words(prefix: str, given: argparse.Namespace) -> list[str]:
    return [*MEDIA, *PLAN_WORDS, *suggest_overrides(prefix, given)]


def suggest_inspect_words(prefix: str, given: argparse.Namespace) -> list[str]:
    return [*INSPECT_WORDS, *suggest_overrides(prefix, given)]


def suggest_changes(prefix: str, given: argparse.Namespace) -> list[str]:
    """`encoder=`, `tokenizer.image=` and the names of components behind them, as `mmblocks swap` takes them."""
    slots = {group.removeprefix("model/").replace("/", "."): kind for group, kind in _list_groups().items()}
    slot, equals, _ = prefix.partition("=")
    if equals:
        values = REGISTRIES[slots[slot]] if slot in slots else _list_image_values(slot.removeprefix("images."))
        return [f"{slot}={name}" for name in values]
    return [*(f"{slot}=" for slot in slots), *(f"images.{name}=" for name in list_settings(ImageReading))]


def suggest_kinds(prefix: str, given: argparse.Namespace) -> list[str]:
    return [*list_registries(), "system"]


def suggest_names(prefix: str, given: argparse.Namespace) -> Iterable[str] | Mapping[str, str]:
    """Components of the kind that stands before, or systems."""
    return _list_systems() if given.kind == "system" else list_registries().get(given.kind, ())


SUGGESTIONS: dict[tuple[str, str], Suggest] = {
    **{(command, "recipe"): suggest_recipes for command in ("recipes", "train", "sweep")},
    **{(command, "recipe"): suggest_recipes_and_systems for command in ("check", "plan", "inspect")},
    **{(command, "overrides"): suggest_overrides for command in ("recipes", "train", "check")},
    ("sweep", "words"): suggest_overrides,
    ("plan", "words"): suggest_plan_words,
    ("inspect", "words"): suggest_inspect_words,
    ("list", "kind"): suggest_kinds,
    ("show", "kind"): suggest_kinds,
    ("show", "name"): suggest_names,
    ("swap", "changes"): suggest_changes,
}
"""What to suggest for an argument of a command. Others get their choices where they have some, else names of files."""


def _list_systems() -> dict[str, str]:
    return {f"{system.name}/{size}": system.summary for system in SYSTEMS.values() for size in system.sizes}


def _stages_of(given: argparse.Namespace) -> list[str]:
    """Stages by number and, where the recipe's own file writes them, by name."""
    from mmblocks.conf.files import read_stage_names

    return [*map(str, range(_STAGES)), *read_stage_names(getattr(given, "recipe", None) or "")]


def _list_groups() -> dict[str, str]:
    """Every group that chooses a component, with the kind of component: {"model/encoder": "encoder", ...}."""
    return {key.replace(".", "/"): kind for key, (kind, _) in ModelSpec().list_slots().items()}


def _list_values(key: str) -> Iterable[str]:
    """The names that a setting can have; none for numbers and texts."""
    if key in _list_groups():
        return REGISTRIES[_list_groups()[key]]
    if key.startswith(_IMAGES):
        return _list_image_values(key.removeprefix(_IMAGES))
    fields: Mapping[str, Setting] = list_settings(Stage if _STAGE_KEY.match(key) else TrainRun)
    setting = fields.get(_STAGE_KEY.sub("", key))
    return _list_choices(setting.annotation) if setting is not None else ()


def _list_image_values(name: str) -> Iterable[str]:
    setting = list_settings(ImageReading).get(name)
    return _list_choices(setting.annotation) if setting is not None else ()


def _list_choices(annotation: Any) -> list[str]:
    if annotation is bool:
        return ["true", "false"]
    if typing.get_origin(annotation) is Literal:
        return [str(choice) for choice in typing.get_args(annotation)]
    return [choice for inner in typing.get_args(annotation) for choice in _list_choices(inner)]
