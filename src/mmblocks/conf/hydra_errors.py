"""Hydra's and OmegaConf's errors in the words of a run: the key, the value, what was probably meant."""

import re
from collections.abc import Iterator

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from mmblocks.components import REGISTRIES
from mmblocks.conf.groups import GROUPS, SCHEMA, list_options
from mmblocks.errors import ConfigError
from mmblocks.settings import format_suggestion, format_type, list_settings, make_unknown_fault

HYDRA_ERRORS = (HydraException, OmegaConfBaseException, ValueError, TypeError)
"""What Hydra and OmegaConf raise when a recipe or an override is wrong; a group given a number is a `ValueError`."""


def to_config_error(recipe: str, error: BaseException) -> ConfigError:
    """The `ConfigError` that stands for an error of Hydra."""
    return ConfigError(f"recipe {recipe!r}: {explain_error(error)}")


def explain_error(error: BaseException) -> str:
    """One of `HYDRA_ERRORS` as a sentence."""
    for e in _list_causes(error):
        if isinstance(e, MissingConfigException):
            return _explain_missing_config(e)
        if isinstance(e, OverrideParseException):
            return f"override {e.override!r} cannot be read; write key=value, or group=name for a component."
        if isinstance(e, OmegaConfBaseException) and e.full_key:
            return _explain_key_error(e, str(e.full_key))
    text = str(error)
    if unmatched := re.search(r"Could not override '([^'@]+)'", text):
        return f"there is no component group {unmatched[1]!r}.{format_suggestion(unmatched[1], GROUPS)}"
    if several := re.search(r"Ambiguous value for argument '(.+)'", text):
        return f"override {several[1]!r} names several values; `mmblocks sweep` runs each, and [a,b] is a list."
    return " ".join(line.strip() for line in text.splitlines() if "https://hydra.cc" not in line)


def _list_causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes, the deepest first: Hydra wraps what OmegaConf found, and OmegaConf a bare one of its own."""
    if error is not None:
        yield from _list_causes(error.__cause__ or error.__context__)
        yield error


def _explain_key_error(error: OmegaConfBaseException, full_key: str) -> str:
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        key = str(error.key)
        if "/" in key:
            return f"there is no component group {key!r}.{format_suggestion(key, GROUPS)}"
        node = error.parent_node
        known = [str(k) for k in node if k not in ("hydra", "defaults")] if isinstance(node, DictConfig) else []
        where, _, name = full_key.rpartition(".")
        return str(make_unknown_fault(name, "is not a setting.", known, where))
    if isinstance(error, MissingMandatoryValue):
        group = full_key.replace(".", "/")
        how = f"{group}=NAME" if group in GROUPS else f"{full_key}=VALUE"
        return f"{full_key} has no value; set it in the recipe or add {how}."
    schema = error.object_type
    if isinstance(error, ValidationError) and isinstance(schema, type) and hasattr(schema, "__dataclass_fields__"):
        known = list_settings(schema)
        if error.key in known:
            return f"{full_key}={error.value!r} is not {format_type(known[str(error.key)].annotation)}."
    first_line = str(error).partition("\n")[0].rstrip(".")
    return f"{full_key}: {first_line}."


def _explain_missing_config(error: MissingConfigException) -> str:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    if group not in GROUPS:
        known = [*(error.options or []), *([SCHEMA] if not group else [])]
        return f"a recipe asks for {error.missing_cfg_file!r}, which does not exist.{format_suggestion(name, known)}"
    kind, scenario = GROUPS[group]
    known = list(list_options(group))
    if name not in REGISTRIES[kind]:
        return f"no {kind} is called {name!r}.{format_suggestion(name, known)}"
    if scenario is not None and name not in known:
        return f"the tokenizer {name!r} does not serve {scenario!r}.{format_suggestion('', known)}"
    try:
        REGISTRIES[kind].list_settings(name)
    except Exception as cause:  # a plug-in that cannot be imported is left out of its group
        return f"the {kind} {name!r} cannot be used: {type(cause).__name__}: {cause}"
    return f"the {kind} {name!r} was installed after its group was made; call register_groups() again."
