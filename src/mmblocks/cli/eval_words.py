"""The words of `mmblocks eval`: a model, tasks and their settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mmblocks.errors import ConfigError
from mmblocks.settings import Setting, format_suggestion, list_settings

if TYPE_CHECKING:
    from mmblocks.eval.runs import NamedTask

OWN_DATA = "data"
"""What a run on someone's own records is called."""
TINY = "tiny"


@dataclass(frozen=True, slots=True)
class EvalWords:
    """What the command line asks for. model: None for the bundled one. settings: as they were written."""

    model: str | None
    tasks: list[str]
    settings: Mapping[str, str]

    @classmethod
    def from_words(cls, words: Sequence[str]) -> EvalWords:
        """Words with an equals sign are settings; of the others the last names tasks, unless data= stands for them."""
        from mmblocks.eval.tasks import tasks

        settings = {key: value for key, equals, value in (word.partition("=") for word in words) if equals}
        names = [word for word in words if "=" not in word]
        if len(names) > 2:
            raise ConfigError(f"eval: {' '.join(names)!r}: write a model, then tasks with commas between them.")
        known = [*tasks, TINY]
        asked = names[-1].split(",") if names and (len(names) == 2 or names[0].split(",")[0] in known) else []
        if not asked and names and not _is_reference(names[0]):
            raise ConfigError(
                f"eval: {names[0]!r} is neither a task nor a folder nor org/name.{format_suggestion(names[0], known)}"
            )
        if not asked and OWN_DATA not in settings:
            raise ConfigError(
                f"eval: no task is named; write one of {', '.join(known)}, or data=FILE for your own records."
            )
        if unknown := [name for name in asked if name not in known]:
            raise ConfigError(f"eval: no task is called {unknown[0]!r}.{format_suggestion(unknown[0], known)}")
        if TINY in asked and len(asked) > 1:
            raise ConfigError("eval: 'tiny' stands alone; run the other tasks in a command of their own.")
        model = names[0] if len(names) == 2 or (names and not asked) else None
        return cls(model, asked, settings)

    def make_tasks(self) -> list[NamedTask]:
        """The tasks with their settings. Raises `ConfigError` for words that none of them takes."""
        from mmblocks.eval.likelihoods import ANSWER_BY, LIKELIHOOD, answer_by_likelihood
        from mmblocks.eval.own_data import LOSS, OwnData, OwnLoss
        from mmblocks.eval.runs import NamedTask
        from mmblocks.eval.tasks import tasks
        from mmblocks.model.generate import Decoding

        decoding_settings = list_settings(Decoding)
        made, used, choices = [], set(), [ANSWER_BY.name, *decoding_settings]
        for name in self.tasks or [OWN_DATA]:
            known = {s.name: s for s in tasks.list_settings(name)} if self.tasks else list_settings(OwnData)
            own, decoding, answer_by = {}, {}, ANSWER_BY.default
            for word, key, value in self._iterate_settings(name):
                if key in known:
                    own[key] = _convert_value(known[key], value)
                elif key in decoding_settings:
                    decoding[key] = _convert_value(decoding_settings[key], value)
                elif key == ANSWER_BY.name:
                    answer_by = _convert_value(ANSWER_BY, value)
                else:
                    continue
                used.add(word)
            if self.tasks:
                task = tasks.build({"name": name, **own})
            elif own.get("metric") == LOSS:
                task = OwnLoss(**{key: value for key, value in own.items() if key != "metric"})
            else:
                task = OwnData(**own)
            if answer_by == LIKELIHOOD:
                task = answer_by_likelihood(name, task)
            made.append(NamedTask.from_task(name, task, **decoding))
            choices += known
        if unused := [word for word in self.settings if word not in used]:
            key = unused[0].rpartition(".")[2]
            raise ConfigError(f"eval: nothing reads {unused[0]}=.{format_suggestion(key, choices)}")
        return made

    def _iterate_settings(self, task: str) -> Iterator[tuple[str, str, str]]:
        """(word, key, value) of the settings of all tasks, then those of this one, which win."""
        for word, value in self.settings.items():
            if "." not in word:
                yield word, word, value
        for word, value in self.settings.items():
            if word.startswith(f"{task}."):
                yield word, word.removeprefix(f"{task}."), value


def _is_reference(name: str) -> bool:
    """Whether a word can name a model."""
    return "/" in name or Path(name).exists()


def _convert_value(setting: Setting, text: str) -> Any:
    """A word's value as the type of a setting; several texts have commas between them."""
    if setting.find_fault(text) is None:
        return text
    value = text.split(",") if setting.find_fault([text]) is None else yaml.safe_load(text)
    if fault := setting.find_fault(value):
        raise ConfigError(f"eval: {fault.message} {fault.cure}".strip())
    return tuple(value) if isinstance(value, list) else value
