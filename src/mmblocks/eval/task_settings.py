"""Tasks as plain values, as recipes, sweeps and run folders hold them: {"name": "pope", "data": "pope.parquet", "limit": 200}."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmblocks.data.records.file_patterns import list_unmatched
from mmblocks.errors import ConfigError, DataError
from mmblocks.eval.judged_runs import find_judged
from mmblocks.eval.likelihoods import ANSWER_BY, LIKELIHOOD, answer_by_likelihood
from mmblocks.eval.own_data import LOSS, OwnData, OwnLoss
from mmblocks.eval.predictions import read_predictions
from mmblocks.eval.report import TaskReport, make_report
from mmblocks.eval.runs import NamedTask, Selection
from mmblocks.eval.tasks import tasks
from mmblocks.faults import Fault, join_key
from mmblocks.model.generation.decoding import Decoding
from mmblocks.settings import (
    REQUIRED,
    Setting,
    convert_to_type,
    format_suggestion,
    list_settings,
    make_unknown_fault,
    read_settings,
)

OWN_DATA = "data"
"""What a task on someone's own records is called."""
PATHS = ("data", "images", "videos", "annotations")
"""Settings that name files and folders."""


@dataclass(frozen=True, slots=True)
class TaskUse:
    """How a task is used, beside its own settings.

    label: what it is called in tables, its name by default. limit, shuffle_seed: see `Selection`. number: which of its numbers
    ranks models, the first by default.
    """

    label: str = ""
    limit: int | None = None
    shuffle_seed: int | None = None
    number: str = ""


@dataclass(frozen=True, slots=True)
class PlannedTask:
    """A task, the documents that it is asked about, and the number that ranks models."""

    named: NamedTask
    use: TaskUse

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> PlannedTask:
        """Raises `ConfigError` for settings that do not fit."""
        if faults := list(find_task_faults(settings)):
            raise ConfigError.from_faults(faults)
        own = list_settings(TaskUse)
        use = read_settings(TaskUse, {key: value for key, value in settings.items() if key in own})
        return cls(make_named_task({key: value for key, value in settings.items() if key not in own}), use)

    @property
    def label(self) -> str:
        return self.use.label or self.named.name

    def select(self, rank: int = 0, processes: int = 1) -> Selection:
        """The documents that this process of several asks."""
        return Selection(self.use.limit, self.use.shuffle_seed, rank, processes)

    def make_report(self, folder: Path, numbers: Sequence[int], *, skips: bool) -> TaskReport:
        """The table of the answers in `folder` to documents of these numbers.

        Raises `DataError` where one could not be read, unless `skips`: models that answered other documents cannot be compared.
        """
        known = read_predictions(folder)
        report = make_report(self.label, self.named.task, [known[number] for number in numbers])
        if report.faults and not skips:
            cure = "repair it, or leave such documents out with broken=skip"
            raise DataError(f"{self.label}: {report.faults[0]} (documents at fault: {len(report.faults)}; {cure})")
        return report

    def list_numbers(self, report: TaskReport) -> dict[str, float]:
        """The numbers of all documents, the one that ranks models first. Raises `ConfigError` where the task has no such number."""
        first = self.use.number or next(iter(report.values), "")
        if first not in report.values:
            raise ConfigError(f"{self.label}: it has no number={first!r}; write one of {', '.join(report.values)}.")
        return {name: report.values[name] for name in (first, *report.values) if name == first or "/" not in name}


def list_task_settings(name: str) -> dict[str, Setting]:
    """The settings of a task by their names; `OWN_DATA` is that of one's own records. Raises `UnknownComponentError`."""
    own = list_settings(OwnData) if name == OWN_DATA else {s.name: s for s in tasks.list_settings(name)}
    return {**own, ANSWER_BY.name: ANSWER_BY}


def make_named_task(settings: Mapping[str, Any]) -> NamedTask:
    """A task of its name, its settings, and settings of decoding that replace its own. Without a name: one's own records.

    Raises `ConfigError` for settings that it does not have.
    """
    name = settings.get("name", OWN_DATA)
    known, decoding = list_task_settings(name), list_settings(Decoding)
    if unknown := [key for key in settings if key not in {"name", *known, *decoding}]:
        raise ConfigError.from_faults(
            [make_unknown_fault(unknown[0], f"is not a setting of {name!r}.", {**known, **decoding})]
        )
    own = {
        key: convert_to_type(known[key].annotation, value)
        for key, value in settings.items()
        if key in known and key != ANSWER_BY.name
    }
    replaced = {
        key: convert_to_type(decoding[key].annotation, value)
        for key, value in settings.items()
        if key in decoding and key not in known
    }
    if name != OWN_DATA:
        task = tasks.build({"name": name, **own})
    else:
        task = OwnLoss(**own) if own.get("metric") == LOSS else OwnData(**own)
    if settings.get(ANSWER_BY.name) == LIKELIHOOD:
        task = answer_by_likelihood(name, task)
    return NamedTask.from_task(name, task, **replaced)


def read_words(words: Sequence[str]) -> dict[str, Any]:
    """A task as people write it on the command line, ["pope", "data=pope.parquet", "limit=200"], as plain values.

    Raises `ConfigError` for what no task of this name takes.
    """
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise ConfigError(f"{' '.join(names)!r}: write one task, then its settings as key=value.")
    name = names[0] if names else OWN_DATA
    if name not in (known := [OWN_DATA, *tasks]):
        raise ConfigError(f"no task is called {name!r}.{format_suggestion(name, known)}")
    settings = {**list_settings(TaskUse), **list_settings(Decoding), **list_task_settings(name)}
    given = dict(word.split("=", 1) for word in words if "=" in word)
    if unknown := [key for key in given if key not in settings]:
        raise ConfigError(f"nothing reads {unknown[0]}=.{format_suggestion(unknown[0], settings)}")
    named = {"name": name} if names else {}
    return {**named, **{key: convert_word(settings[key], value) for key, value in given.items()}}


def convert_word(setting: Setting, text: str) -> Any:
    """A word's value as the type of a setting; several texts have commas between them. Raises `ConfigError`."""
    if setting.find_fault(text) is None:
        return text
    value = text.split(",") if setting.find_fault([text]) is None else yaml.safe_load(text)
    if fault := setting.find_fault(value):
        raise ConfigError(f"{fault.message} {fault.cure}".strip())
    return value


def find_task_faults(settings: object, key: str = "") -> Iterator[Fault]:
    """What is wrong with a task that is to rank models; nothing is opened. Keys of faults stand below `key`."""
    if not isinstance(settings, Mapping):
        yield Fault(
            key, f"{settings!r} is not a task.", "Write {name: TASK, data: FILE}, or {data: FILE} for your own records."
        )
        return
    name = settings.get("name", OWN_DATA)
    if name not in (known_names := [OWN_DATA, *tasks]):
        suggestion = format_suggestion(name, known_names).strip()
        yield Fault(join_key(key, "name"), f"no task is called {name!r}.", suggestion)
        return
    own, others = list_task_settings(name), list_settings(Decoding) | list_settings(TaskUse)
    faults = []
    for setting, value in settings.items():
        known = (others | own).get(setting)
        if known is None and setting != "name":
            faults.append(make_unknown_fault(str(setting), f"is not a setting of {name!r}.", {**own, **others}))
        elif known is not None and (fault := known.find_fault(value)):
            faults.append(fault)
    faults += [
        Fault(s.name, f"the task {name!r} needs it.", f"Write a {s.type_name}.")
        for s in own.values()
        if s.default is REQUIRED and s.name not in settings
    ]
    if isinstance(limit := settings.get("limit"), int) and limit < 1:
        faults.append(
            Fault("limit", f"limit={limit} asks nothing.", "Write 1 or more, or leave it out for all documents.")
        )
    label = settings.get("label", "")
    if isinstance(label, str) and label and not re.fullmatch(r"[\w.-]+", label):
        faults.append(Fault("label", f"label={label!r} names a folder.", "Write letters, digits, '-', '_' and '.'."))
    yield from (fault.move_below(key) for fault in faults or _find_building_faults(settings))


def _find_building_faults(settings: Mapping[str, Any]) -> Iterator[Fault]:
    """What only a task that is made says of itself."""
    try:
        task = make_named_task({k: v for k, v in settings.items() if k not in list_settings(TaskUse)}).task
    except ConfigError as error:
        yield from error.faults or [Fault("", str(error))]
        return
    if find_judged(task) is not None and not settings.get("number"):
        cure = "Write number=NAME for one of its numbers that needs no judge, or use `mmblocks eval --judge`."
        yield Fault("", "its answers are scored by a judge, and none is asked here.", cure)


def find_lost_files(settings: Mapping[str, Any], key: str = "") -> Iterator[Fault]:
    """The files and folders of a task that are not there."""
    for setting in PATHS:
        for path in list_unmatched(settings[setting]) if isinstance(settings.get(setting), str) else ():
            yield Fault(join_key(key, setting), f"{path} does not exist.", "Write the path of your data.", "missing")
