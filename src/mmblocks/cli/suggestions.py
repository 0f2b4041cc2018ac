"""Completions at the cursor: recipes, systems, components and overrides. Nothing here imports torch."""

import argparse
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

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
"""Completions of a prefix, given the arguments before it; a mapping has a description of each."""

_STAGE_KEY = re.compile(r"stages\.[^=]+\.")
_BLOCKS = {"encoder_pretraining": EncoderPretraining, "evaluate": Evaluation}
EVAL_WORDS = ("tiny", "loss", "data=", "images=", "videos=", "metric=", "answer_by=likelihood", "max_new_tokens=")
_IMAGES = "model.images."
_STAGES = 8  # suggested by number: as many as a recipe is likely to have


def suggest_recipes(prefix: str, given: argparse.Namespace) -> Mapping[str, str]:
    from mmblocks.conf.files import list_recipes

    return list_recipes()


def suggest_recipes_and_systems(prefix: str, given: argparse.Namespace) -> Mapping[str, str]:
    return {**suggest_recipes(prefix, given), **_list_systems()}


def suggest_overrides(prefix: str, given: argparse.Namespace) -> list[str]:
    """`model/encoder=`, `seed=`, `stages.0.steps=`; after the equals sign the values that have names, also in a list."""
    from mmblocks.conf.files import read_stage_names

    key, equals, value = prefix.partition("=")
    if equals:
        listed = value[: value.rfind(",") + 1]
        return [f"{key}={listed}{name}" for name in _list_values(key)]
    if prefix.startswith("stages."):
        settings = [*list_settings(Stage), *(f"train.{part}" for part in TRAINABLE_PARTS)]
        stages = [*map(str, range(_STAGES)), *read_stage_names(getattr(given, "recipe", None) or "")]
        return [f"stages.{stage}.{name}=" for stage in stages for name in settings]
    plain = (name for name in list_settings(TrainRun) if name not in ("model", "stages"))
    images = (f"{_IMAGES}{name}=" for name in list_settings(ImageReading))
    inner = (f"{block}.{name}=" for block, schema in _BLOCKS.items() for name in list_settings(schema))
    return [*(f"{group}=" for group in _list_groups()), *(f"{name}=" for name in plain), *images, *inner]


def suggest_plan_words(prefix: str, given: argparse.Namespace) -> list[str]:
    return [*MEDIA, *PLAN_WORDS, *suggest_overrides(prefix, given)]


def suggest_inspect_words(prefix: str, given: argparse.Namespace) -> list[str]:
    return [*INSPECT_WORDS, *suggest_overrides(prefix, given)]


def suggest_eval_words(prefix: str, given: argparse.Namespace) -> Iterable[str] | Mapping[str, str]:
    """Tasks, and the settings of one's own records."""
    from mmblocks.eval.metrics.general import METRICS

    if prefix.startswith("metric="):
        return [f"metric={name}" for name in (*METRICS, "loss", "judge")]
    tasks = list_registries()["task"]
    return {**{name: tasks.find_info(name).summary for name in tasks}, **dict.fromkeys(EVAL_WORDS, "")}


def suggest_changes(prefix: str, given: argparse.Namespace) -> list[str]:
    """`encoder=`, `tokenizer.image=` and the names of components after them, for `mmblocks swap`."""
    slots = {group.removeprefix("model/").replace("/", "."): kind for group, kind in _list_groups().items()}
    slot, equals, _ = prefix.partition("=")
    if equals:
        values = REGISTRIES[slots[slot]] if slot in slots else _list_choices(ImageReading, slot.removeprefix("images."))
        return [f"{slot}={name}" for name in values]
    return [*(f"{slot}=" for slot in slots), *(f"images.{name}=" for name in list_settings(ImageReading))]


def suggest_kinds(prefix: str, given: argparse.Namespace) -> list[str]:
    return [*list_registries(), "system"]


def suggest_names(prefix: str, given: argparse.Namespace) -> Iterable[str] | Mapping[str, str]:
    """Components of the kind in the argument before, or systems."""
    return _list_systems() if given.kind == "system" else list_registries().get(given.kind, ())


SUGGESTIONS: dict[tuple[str, str], Suggest] = {
    **{(command, "recipe"): suggest_recipes for command in ("recipes", "train", "sweep")},
    **{(command, "recipe"): suggest_recipes_and_systems for command in ("check", "plan", "inspect")},
    **{(command, "overrides"): suggest_overrides for command in ("recipes", "train", "check")},
    ("sweep", "words"): suggest_overrides,
    **dict.fromkeys((("eval", "words"), ("sweep", "score")), suggest_eval_words),
    ("plan", "words"): suggest_plan_words,
    ("inspect", "words"): suggest_inspect_words,
    ("list", "kind"): suggest_kinds,
    ("show", "kind"): suggest_kinds,
    ("show", "name"): suggest_names,
    ("swap", "changes"): suggest_changes,
}
"""What to suggest for an argument of a command. Other arguments get their choices, or else names of files."""


def _list_systems() -> dict[str, str]:
    return {f"{system.name}/{size}": system.summary for system in SYSTEMS.values() for size in system.sizes}


def _list_groups() -> dict[str, str]:
    """Every group that chooses a component, with the kind of component: {"model/encoder": "encoder", ...}."""
    return {key.replace(".", "/"): kind for key, (kind, _) in ModelSpec().list_slots().items()}


def _list_values(key: str) -> Iterable[str]:
    """The names that a setting can have; none for numbers and texts."""
    if key in _list_groups():
        return REGISTRIES[_list_groups()[key]]
    if key.startswith(_IMAGES):
        return _list_choices(ImageReading, key.removeprefix(_IMAGES))
    return _list_choices(Stage if _STAGE_KEY.match(key) else TrainRun, _STAGE_KEY.sub("", key))


def _list_choices(schema: type, name: str) -> list[str]:
    """The values of a setting: of a boolean, and all names in its type; empty for an unknown setting."""
    settings: Mapping[str, Setting] = list_settings(schema)
    choices, types = [], [settings[name].annotation] if name in settings else []
    while types:
        annotation = types.pop(0)
        if annotation is bool:
            choices += ["true", "false"]
        elif typing.get_origin(annotation) is Literal:
            choices += map(str, typing.get_args(annotation))
        else:
            types += typing.get_args(annotation)
    return choices
