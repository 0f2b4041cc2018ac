"""Registries of components: the constructor's signature is the schema, one decorator is the whole registration.

Names are found by reading component files as text, so listing them imports nothing heavy; a component's module is
imported when the component is looked up. Packages outside mmblocks add components through entry points of the group
`mmblocks.<kind>`, one entry point per component name.
"""

import ast
import importlib
import importlib.util
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import entry_points
from itertools import chain
from pathlib import Path
from typing import Any, Generic, TypeVar

from mmblocks.errors import ConfigError, MMBlocksError, UnknownComponentError
from mmblocks.faults import Fault, join_key
from mmblocks.settings import (
    REQUIRED,
    Setting,
    convert_to_type,
    format_suggestion,
    format_value,
    is_of_type,
    make_unknown_fault,
)

T = TypeVar("T")
Spec = str | Mapping[str, Any]
"""A component as plain values. A setting annotated `Spec` or `tuple[Spec, ...]` holds components of its own kind."""


@dataclass(frozen=True)
class ComponentEntry(Generic[T]):
    """A registered component or preset. `builder` makes it; `settings` are what a preset fixes beforehand.

    source: the paper or code it comes from. verified_against: what its outputs are compared with in the tests. tiny:
    settings small enough for tests.
    """

    name: str
    builder: Callable[..., T]
    source: str
    tiny: Mapping[str, Any]
    verified_against: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    preset_of: str | None = None

    @property
    def summary(self) -> str:
        """First line of the builder's docstring."""
        return (inspect.getdoc(self.builder) or "").partition("\n")[0]

    @cached_property
    def parameters(self) -> tuple[tuple[inspect.Parameter, Any], ...]:
        """The constructor's parameters with resolved annotations, read once: every check asks for them."""
        return tuple(read_parameters(self.builder))


@dataclass(frozen=True, slots=True)
class ComponentInfo:
    """A component seen in a file or an entry point, not imported yet.

    settings: the defaults of its constructor, or what a preset sets, where they are literals in the file.
    """

    name: str
    module: str
    summary: str = ""
    source: str = ""
    preset_of: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict)


class Registry(Generic[T]):
    """Components of one kind by name.

    `wired` are constructor arguments that the composition supplies (sizes of neighbours); they never are settings.
    `before` is called with a component's name and its making before it is made, and may refuse it. `capabilities` are the
    protocols that a component of this kind may declare (see `mmblocks.components`).
    """

    def __init__(
        self,
        kind: str,
        package: str,
        *,
        wired: tuple[str, ...] = (),
        before: Callable[[str, Callable[[], T]], None] | None = None,
        capabilities: tuple[type, ...] = (),
    ) -> None:
        self.kind = kind
        self.package = package
        self.wired = wired
        self.before = before
        self.capabilities = capabilities
        self._entries: dict[str, ComponentEntry[T]] = {}

    @property
    def entry_point_group(self) -> str:
        """The entry-point group through which other packages add components."""
        return f"mmblocks.{self.kind}"

    def register(
        self, name: str, *, source: str, tiny: Mapping[str, Any] | None = None, verified_against: str = ""
    ) -> Callable[[Callable[..., T]], Any]:
        """Register a class or factory; see `ComponentEntry` for the arguments."""

        def add_builder(builder: Callable[..., T]) -> Callable[..., T]:
            self._add_entry(ComponentEntry(name, builder, source, dict(tiny or {}), verified_against))
            return builder

        return add_builder

    def preset(self, name: str, *, of: str, **settings: Any) -> None:
        """Register `name` as the component `of` with some of its settings given."""
        base = self[of]
        if faults := list(self._find_setting_faults(of, settings, f"preset {name!r} of {of!r}")):
            raise ConfigError.from_faults(faults)
        self._add_entry(
            ComponentEntry(
                name, base.builder, base.source, base.tiny, base.verified_against, {**base.settings, **settings}, of
            )
        )

    def _add_entry(self, entry: ComponentEntry[T]) -> None:
        known = self._entries.get(entry.name)
        origins = {(b.builder.__module__, b.builder.__qualname__) for b in (known, entry) if b is not None}
        if known is not None and len(origins) > 1:
            raise ConfigError(
                f"two {self.kind}s are called {entry.name!r}: {known.builder.__module__} and {entry.builder.__module__}; rename one."
            )
        self._entries[entry.name] = entry

    # Finding --------------------------------------------------------------------------------------------------------

    @cached_property
    def _component_infos(self) -> dict[str, ComponentInfo]:
        infos: dict[str, ComponentInfo] = {}
        installed = [
            ComponentInfo(
                point.name, point.module, f"from the package {point.dist.name if point.dist else '(unknown)'}"
            )
            for point in sorted(entry_points(group=self.entry_point_group), key=lambda point: (point.name, point.value))
        ]
        spec = importlib.util.find_spec(self.package)
        folders = (spec.submodule_search_locations or ()) if spec else ()
        own = (
            info
            for path in (path for folder in folders for path in sorted(Path(folder).glob("*.py")))
            for info in _scan_source(
                path.read_text(encoding="utf-8"), f"{self.package}.{path.stem}".removesuffix(".__init__")
            )
        )
        for info in (*own, *installed):
            if info.name in infos:
                raise ConfigError(
                    f"two {self.kind}s are called {info.name!r}: {infos[info.name].module} and {info.module}; rename one."
                )
            infos[info.name] = info
        return infos

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._component_infos, *self._entries}))

    def __len__(self) -> int:
        return len({*self._component_infos, *self._entries})

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._component_infos

    def find_info(self, name: str) -> ComponentInfo:
        """What is known of a component without importing it."""
        if name in self._component_infos:
            return self._component_infos[name]
        entry = self[name]
        return ComponentInfo(
            name, entry.builder.__module__, entry.summary, entry.source, entry.preset_of, entry.settings
        )

    def find_infos(self, name: str) -> list[ComponentInfo]:
        """A component and the presets it is based on, the component that is no preset first; nothing is imported."""
        info = self.find_info(name)
        return [*(self.find_infos(info.preset_of) if info.preset_of else []), info]

    def __getitem__(self, name: str) -> ComponentEntry[T]:
        if name not in self._entries:
            if name not in self._component_infos:
                raise UnknownComponentError(f"no {self.kind} is called {name!r}.{format_suggestion(name, self)}")
            importlib.import_module(self._component_infos[name].module)
        if name not in self._entries:
            raise ConfigError(
                f"{self._component_infos[name].module} was to register the {self.kind} {name!r} and did not; check its decorator or entry point."
            )
        return self._entries[name]

    # Building -------------------------------------------------------------------------------------------------------

    def list_settings(self, name: str) -> tuple[Setting, ...]:
        """The settings of a component in their order, presets' values as defaults, wired arguments left out."""
        entry = self[name]
        return tuple(
            Setting(p.name, annotation, entry.settings.get(p.name, p.default))
            for p, annotation in entry.parameters
            if p.name not in self.wired
        )

    def find_wired_arguments(self, name: str) -> frozenset[str]:
        """The wired arguments that a component's constructor declares."""
        return frozenset(p.name for p, _ in self[name].parameters) & frozenset(self.wired)

    def find_faults(self, spec: object, key: str = "") -> list[Fault]:
        """Every fault of a spec and of the components in it, with keys below `key`; nothing is built."""
        own = self.find_own_faults(spec, key)
        if any(fault.key == key for fault in own):
            return own
        inner = self.find_sub_components(spec).items()
        return own + [fault for name, one in inner for fault in self.find_faults(one, join_key(key, name))]

    def find_own_faults(self, spec: object, key: str = "") -> list[Fault]:
        """As `find_faults`, without the components that it is made of."""
        try:
            name, settings = split_spec(spec)
        except ConfigError:
            cure = f"Write a name, or a mapping with a 'name'; known: {', '.join(self)}."
            return [Fault(key, f"{spec!r} is not a component.", cure)]
        try:
            known = self.list_settings(name)
        except UnknownComponentError:
            return [Fault(key, f"no {self.kind} is called {name!r}.", format_suggestion(name, self).strip())]
        except (
            Exception
        ) as cause:  # a plug-in may fail in any way when it is imported; the other parts are still checked
            return [Fault(key, f"the {self.kind} {name!r} cannot be imported: {type(cause).__name__}: {cause}.")]
        whose = f"{self.kind} {name!r}"
        missing = [s for s in known if s.default is REQUIRED and s.name not in settings]
        return [
            *(fault.move_below(key) for fault in self._find_setting_faults(name, settings, whose)),
            *(
                Fault(join_key(key, s.name), f"{whose} needs the setting {s.name!r}.", f"Write a {s.type_name}.")
                for s in missing
            ),
        ]

    def resolve_settings(self, spec: object) -> dict[str, Any]:
        """Every setting of a component with its value, defaults and presets included."""
        name, given = split_spec(spec)
        return {s.name: given.get(s.name, s.default) for s in self.list_settings(name)}

    def find_sub_components(self, spec: object) -> dict[str, Spec]:
        """The components that a component is made of, by key: {"members.0": "clip", "members.1": {"name": ...}}."""
        name, given = split_spec(spec)
        return {
            key: inner
            for s in self.list_settings(name)
            for key, inner in read_sub_components(s, given.get(s.name, s.default)).items()
        }

    def build(self, spec: Spec, /, **arguments: Any) -> T:
        """Build from a name or {"name": ..., settings}. Wired arguments that the component does not declare are dropped.

        Raises `ConfigError`, also for what a constructor fails on without a word of its own.
        """
        name, settings = split_spec(spec)
        entry = self[name]
        offered = {k: v for k, v in arguments.items() if k in self.wired}
        settings = {**entry.settings, **settings, **{k: v for k, v in arguments.items() if k not in self.wired}}
        if faults := self.find_faults({"name": name, **settings}):
            raise ConfigError.from_faults(faults)
        settings = {
            s.name: convert_to_type(s.annotation, settings[s.name])
            for s in self.list_settings(name)
            if s.name in settings
        }
        wired = {k: v for k, v in offered.items() if k in self.find_wired_arguments(name)}
        whose = f"{self.kind} {name!r}"
        try:
            if self.before is not None:
                self.before(whose, lambda: entry.builder(**settings, **wired))
            return entry.builder(**settings, **wired)
        except MMBlocksError:
            raise
        except Exception as cause:  # torch, transformers and timm have no common error for sizes that cannot be
            given = ", ".join(f"{k}={format_value(v)}" for k, v in settings.items()) or "its defaults"
            raise ConfigError(
                f"{whose} cannot be built with {given}: {type(cause).__name__}: {cause}; change the setting this names.",
                settings=settings,
            ) from cause

    def _find_setting_faults(self, name: str, settings: Mapping[str, object], whose: str) -> Iterator[Fault]:
        known = {s.name: s for s in self.list_settings(name)}
        for key, value in settings.items():
            if key not in known:
                yield make_unknown_fault(str(key), f"{whose} has no setting {key!r}.", known)
            elif fault := known[key].find_fault(value):
                yield replace(fault, message=f"{whose}: {fault.message}")


def split_spec(spec: object) -> tuple[str, dict[str, Any]]:
    """A spec as (name, settings)."""
    if isinstance(spec, str):
        return spec, {}
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        raise ConfigError(f"a component is a name or a mapping with a 'name', not {spec!r}.")
    return spec["name"], {name: value for name, value in spec.items() if name != "name"}


def read_sub_components(setting: Setting, value: Any) -> dict[str, Spec]:
    """The components in a setting's value by key; none where the setting holds none, or the value does not fit."""
    if setting.annotation == Spec and is_of_type(Spec, value):
        return {setting.name: value}
    if setting.annotation == tuple[Spec, ...] and is_of_type(tuple[Spec, ...], value):
        return {f"{setting.name}.{i}": inner for i, inner in enumerate(value)}
    return {}


def read_parameters(builder: Callable[..., Any]) -> list[tuple[inspect.Parameter, Any]]:
    """A constructor's parameters with resolved annotations. Refuses `*args` and `**kwargs`: they hide settings."""
    target = builder.__init__ if inspect.isclass(builder) else builder
    hints = typing.get_type_hints(target)
    parameters = list(inspect.signature(builder).parameters.values())
    for p in parameters:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            raise ConfigError(f"{builder.__module__}.{builder.__qualname__}: '{p}' hides settings; list them by name.")
        if p.name not in hints:
            raise ConfigError(
                f"{builder.__module__}.{builder.__qualname__}: {p.name!r} has no annotation; a setting needs a type."
            )
    return [(p, hints[p.name]) for p in parameters]


# Discovery without imports ------------------------------------------------------------------------------------------


def _scan_source(text: str, module: str) -> Iterator[ComponentInfo]:
    """Names registered in a source text: decorators `@x.register("name", ...)` and statements `x.preset("name", ...)`."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            summary = (ast.get_docstring(node) or "").partition("\n")[0]
            for name, given in (found for call in node.decorator_list for found in _read_call(call, "register")):
                yield ComponentInfo(name, module, summary, str(given.get("source", "")), settings=_read_defaults(node))
        elif isinstance(node, ast.Expr):
            for name, given in _read_call(node.value, "preset"):
                settings = {key: value for key, value in given.items() if key != "of"}
                yield ComponentInfo(name, module, preset_of=str(given["of"]), settings=settings)


def _read_call(node: ast.expr, method: str) -> Iterator[tuple[str, dict[str, object]]]:
    """The name and the literal keywords of `x.<method>("name", a=1, **dict(b=2))`; nothing for another expression."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == method:
        inner = (k.value.keywords for k in node.keywords if k.arg is None and isinstance(k.value, ast.Call))
        keywords = {k.arg: k.value for k in chain(node.keywords, *inner) if k.arg is not None}
        names = (a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str))
        yield from ((name, _evaluate_literals(keywords)) for name in names)


def _read_defaults(node: ast.ClassDef | ast.FunctionDef) -> dict[str, object]:
    """The literal defaults of a component's constructor."""
    functions = [node] if isinstance(node, ast.FunctionDef) else node.body
    for function in (f for f in functions if isinstance(f, ast.FunctionDef) and (f is node or f.name == "__init__")):
        arguments = function.args
        positional = arguments.args[len(arguments.args) - len(arguments.defaults) :]
        names = [argument.arg for argument in (*positional, *arguments.kwonlyargs)]
        values = zip(names, (*arguments.defaults, *arguments.kw_defaults), strict=True)
        return _evaluate_literals({name: value for name, value in values if value is not None})
    return {}


def _evaluate_literals(expressions: Mapping[str, ast.expr]) -> dict[str, object]:
    values: dict[str, object] = {}
    for name, expression in expressions.items():
        with suppress(ValueError):
            values[name] = ast.literal_eval(expression)
    return values
