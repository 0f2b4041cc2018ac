"""Tasks from plain settings, as the command line and stored runs have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmblocks.eval.own_data import LOSS, OwnData, OwnLoss
from mmblocks.eval.runs import NamedTask
from mmblocks.eval.tasks import tasks
from mmblocks.model.generate import Decoding
from mmblocks.settings import list_settings, read_settings

OWN_DATA = "data"
"""What a run on someone's own records is called."""


def make_named_task(settings: Mapping[str, Any]) -> NamedTask:
    """A task of its name, its own settings and those of decoding: {"name": "pope", "data": ..., "max_new_tokens": 5}.

    Without a name it is `OwnData`, or `OwnLoss` for metric=loss. Raises `ConfigError` for settings that it does not have.
    """
    own = {key: value for key, value in settings.items() if key != "name"}
    name = settings.get("name", OWN_DATA)
    known = {setting.name for setting in tasks.list_settings(name)} if "name" in settings else list_settings(OwnData)
    decoding = {key: own.pop(key) for key in list_settings(Decoding) if key in own and key not in known}
    if "name" in settings:
        return NamedTask.from_task(name, tasks.build({"name": name, **own}), **decoding)
    if own.get("metric") == LOSS:
        del own["metric"]
        return NamedTask.from_task(name, read_settings(OwnLoss, own), **decoding)
    return NamedTask.from_task(name, read_settings(OwnData, own), **decoding)
