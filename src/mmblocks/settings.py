"""Settings: names, types and defaults taken from signatures and dataclasses, and plain values checked against them."""

import dataclasses
import difflib
import inspect
import math
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard, TypeVar

from mmblocks.errors import ConfigError
from mmblocks.faults import Fault, join_key
from mmblocks.foreign_settings import explain_foreign_setting

T = TypeVar("T")
REQUIRED: Any = inspect.Parameter.empty


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a component: its name, resolved type and default (`REQUIRED` when there is none)."""

    name: str
    annotation: Any
    default: Any

    @property
    def type_name(self) -> str:
        return format_type(self.annotation)

    def find_fault(self, value: object) -> Fault | None:
        """What is wrong with a value: its type, or a number that is no number or out of bounds."""
        if is_of_type(self.annotation, value):
            return find_number_fault(self.name, value)
        message = f"{self.name}={format_value(value)} is not {self.type_name}."
        cure = "" if "one of" in self.type_name else f"Write a value of type {self.type_name}."
        return Fault(self.name, message, cure)


def format_suggestion(name: object, known: Iterable[str]) -> str:
    """' Did you mean ...? Known: ...' for an error message."""
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} Known: {', '.join(names) or 'none'}."


def make_unknown_fault(name: str, message: str, known: Collection[str], where: str = "") -> Fault:
    """The fault of a name that nothing reads, with what it is called here or the known name that is most like it."""
    cure = explain_foreign_setting(name, known)
    suggestion = format_suggestion(name, known).strip()
    return Fault(
        join_key(where, name), message, f"{cure} Known: {suggestion.rpartition('Known: ')[2]}" if cure else suggestion
    )


# Numbers ------------------------------------------------------------------------------------------------------------

_SIDE, _WIDTH, _TIMES = 65_536, 1_048_576, 10**12
MAXIMUM: Mapping[str, float] = {
    **dict.fromkeys(("depth", "blocks", "mlp_depth"), 512),
    **dict.fromkeys(("dim", "mlp_dim", "channels", "widths", "splits"), _WIDTH),
    **dict.fromkeys(("heads", "kv_heads", "head_dim", "groups", "prefix_tokens", "registers", "points"), 16_384),
    **dict.fromkeys(("mlp_ratio", "ff_mult", "expansion", "factor", "cross_every"), 256),
    **dict.fromkeys(("queries", "tokens", "max_text_tokens"), _SIDE),
    **dict.fromkeys(("rows", "columns", "windows", "scales", "stride", "strides", "fast_stride"), 1024),
    **dict.fromkeys(("image_px", "view_px", "side_px", "trained_px", "patch_px", "pinpoints"), _SIDE),
    **dict.fromkeys(("max_tiles", "min_tiles", "side_tiles"), 256),
    **dict.fromkeys(("max_frames", "fps", "frames_fps", "turns"), 100_000),
    "vocab_size": 16_777_216,
    "max_tokens": 2**31,
    **dict.fromkeys(
        ("steps", "save_every", "log_every", "visual_ablation_at", "every", "step_tokens", "pack_tokens"), _TIMES
    ),
    **dict.fromkeys(("global_batch_size", "pack_views", "samples", "tiny", "size", "keep"), 10**8),
    **dict.fromkeys(("epochs", "budget", "timeout_s", "video_deadline_s"), 10**6),
    **dict.fromkeys(("workers", "threads"), 4096),
    "lr": 1e30,
    "weight_decay": 1000,
    "rank": _SIDE,
    "rope_theta": 1e12,
    **dict.fromkeys(("dropout", "ratio_lower", "ratio_upper", "norm_eps"), 1),
    **dict.fromkeys(("pixel_mean", "pixel_std"), 256),
}
"""The largest value of a setting by its name, which means the same in every schema. It is far beyond what is of use, so that
a digit too many is refused before it takes all memory or all time. Other whole numbers have the 64 bits of torch's."""

MINIMUM: Mapping[str, float] = {
    **dict.fromkeys(("dim", "mlp_dim", "widths", "splits", "mlp_ratio", "ff_mult", "vocab_size"), 1),
    **dict.fromkeys(("heads", "kv_heads", "head_dim", "groups", "points"), 1),
    **dict.fromkeys(("image_px", "view_px", "side_px", "trained_px", "patch_px"), 1),
    **dict.fromkeys(("dropout", "ratio_lower", "ratio_upper", "depth", "blocks", "sliding_window"), 0),
    "pixel_std": 1e-6,
}
"""The smallest value of a setting by its name, for those that count or measure something."""


def find_number_fault(name: str, value: object) -> Fault | None:
    """What is wrong with the numbers in a value of the right type, and what to write; None where nothing is."""
    if isinstance(value, list | tuple):
        return next((fault for one in value if (fault := find_number_fault(name, one))), None)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return Fault(name, f"{name}={value} is no number to compute with.", "Write a finite number.")
    most = MAXIMUM.get(name, 2**63 - 1 if isinstance(value, int) else math.inf)
    if abs(value) > most:
        return Fault(name, f"{name}={format_value(value)} is too large.", f"Write {most} or less.")
    least = MINIMUM.get(name, -math.inf)
    if value < least:
        return Fault(name, f"{name}={format_value(value)} is too small.", f"Write {least} or more.")
    return None


def format_value(value: object) -> str:
    """A value for an error message, cut where it is long."""
    try:
        text = repr(value)
    except Exception:  # of a stranger's class, or an integer of more digits than Python writes
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."


# Types of settings --------------------------------------------------------------------------------------------------


def is_of_type(annotation: object, value: object) -> bool:
    """Whether a plain value (from Python, JSON or YAML) fits a setting's annotation."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(is_of_type(a, value) for a in arguments)
    if origin is Literal:
        return any(value == a and type(value) is type(a) for a in arguments)
    if origin in (list, tuple, typing.Sequence) or getattr(origin, "__name__", "") == "Sequence":
        if not isinstance(value, list | tuple):
            return False
        if origin is tuple and arguments[-1:] != (...,):
            return len(value) == len(arguments) and all(map(is_of_type, arguments, value))
        return all(is_of_type(arguments[0], v) for v in value)
    if origin in (dict, Mapping) or getattr(origin, "__name__", "") == "Mapping":
        return isinstance(value, Mapping)
    if _is_named_tuple(annotation):
        fields = typing.get_type_hints(annotation)
        return is_of_type(tuple[*(fields[name] for name in annotation._fields)], value)  # type: ignore[misc]
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(annotation, type) and isinstance(value, annotation)


def convert_to_type(annotation: object, value: object) -> Any:
    """An accepted value as its annotation has it: YAML and JSON know lists where a signature says tuple or `Size`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return convert_to_type(next(a for a in arguments if is_of_type(a, value)), value)
    if not isinstance(value, list | tuple):
        return value
    if _is_named_tuple(annotation):
        return annotation(*value)
    return tuple(value) if origin is tuple else value


def _is_named_tuple(annotation: object) -> TypeGuard[type[Any]]:
    return isinstance(annotation, type) and issubclass(annotation, tuple) and hasattr(annotation, "_fields")


def format_type(annotation: object) -> str:
    """An annotation as people write it: 'int', 'str | None', 'one of a, b'."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "None"
    if origin in (typing.Union, types.UnionType):
        return " | ".join(format_type(a) for a in arguments)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    return (
        annotation.__name__
        if isinstance(annotation, type) and not arguments
        else str(annotation).replace("typing.", "").replace("collections.abc.", "")
    )


def find_differing_keys(one: object, other: object, key: str = "") -> list[str]:
    """Keys under which two nests of plain values differ, the deepest ones."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        inside = [find_differing_keys(one.get(k), other.get(k), f"{key}.{k}") for k in {**one, **other}]
        return [name for names in inside for name in names]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        inside = [find_differing_keys(a, b, f"{key}.{i}") for i, (a, b) in enumerate(zip(one, other, strict=True))]
        return [name for names in inside for name in names]
    return [] if one == other else [key.removeprefix(".")]


# Dataclasses as schemas ---------------------------------------------------------------------------------------------


def list_settings(schema: type) -> dict[str, Setting]:
    """The settings of a dataclass by name."""
    hints, settings = typing.get_type_hints(schema), {}
    for field in dataclasses.fields(schema):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        settings[field.name] = Setting(
            field.name, hints[field.name], REQUIRED if default is dataclasses.MISSING else default
        )
    return settings


def find_faults(schema: type, raw: Mapping[str, object], where: str = "") -> Iterator[Fault]:
    """Every fault of plain values meant for a dataclass: unknown names, wrong types, missing ones; keys stand below `where`."""
    known = list_settings(schema)
    for name, value in raw.items():
        if name not in known:
            yield make_unknown_fault(str(name), "is not a setting.", known, where)
        elif fault := known[name].find_fault(value):
            yield fault.move_below(where)
    for s in known.values():
        if s.default is REQUIRED and s.name not in raw:
            yield Fault(join_key(where, s.name), "is missing.", f"Write a value of type {s.type_name}.")


def read_settings(schema: type[T], raw: Mapping[str, Any], where: str = "") -> T:
    """Plain values as a dataclass. Raises `ConfigError` that lists every fault."""
    if faults := list(find_faults(schema, raw, where)):
        raise ConfigError.from_faults(faults)
    return schema(**raw)
