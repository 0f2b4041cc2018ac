import importlib
import subprocess
import sys
from dataclasses import dataclass

import pytest

from mmblocks.components import REGISTRIES, projectors
from mmblocks.data.sources import sources
from mmblocks.errors import ConfigError, UnknownComponentError
from mmblocks.registry import Registry
from mmblocks.settings import REQUIRED, Setting
from mmblocks.shapes import Size

BUILT_IN = {**REGISTRIES, "source": sources}


@pytest.fixture
def lamps():
    """A registry of its own, with nothing to find in files."""
    return Registry("lamp", "mmblocks.shapes", wired=("socket",))


@dataclass
class Lamp:
    """Light in a room.

    Not shown in lists.
    """

    socket: str
    watts: int
    colour: str | None = None
    dims: bool = False


def add(registry, name="desk", builder=Lamp, **tiny):
    return registry.register(name, source="https://example.org/lamps", tiny=tiny)(builder)


# Schemas ------------------------------------------------------------------------------------------------------------


def test_the_signature_is_the_schema_without_what_is_wired(lamps):
    add(lamps)
    assert lamps.list_settings("desk") == (
        Setting("watts", int, REQUIRED),
        Setting("colour", str | None, None),
        Setting("dims", bool, False),
    )
    assert lamps.find_wired_arguments("desk") == {"socket"}


def test_a_preset_is_a_component_with_other_defaults(lamps):
    add(lamps)
    lamps.preset("night", of="desk", watts=2)
    lamps.preset("red_night", of="night", colour="red")
    assert [s.default for s in lamps.list_settings("red_night")] == [2, "red", False]
    assert lamps.build("red_night", socket="E27") == Lamp("E27", 2, "red")
    assert lamps.build({"name": "red_night", "watts": 5}, socket="E27") == Lamp("E27", 5, "red")


def test_a_preset_with_an_unknown_setting_is_refused_when_it_is_made(lamps):
    add(lamps)
    with pytest.raises(ConfigError, match=r"preset 'night' of 'desk' has no setting 'wats'\. Did you mean 'watts'\?"):
        lamps.preset("night", of="desk", wats=2)


def test_summaries_are_the_first_line_of_a_docstring(lamps):
    add(lamps)
    assert lamps["desk"].summary == lamps.find_info("desk").summary == "Light in a room."


def test_a_builder_that_hides_its_settings_is_refused(lamps):
    def starred(*args: int) -> None: ...
    def keyed(**settings: int) -> None: ...

    add(lamps, "starred", starred)
    add(lamps, "keyed", keyed)
    for name, shown in (("starred", r"\*args"), ("keyed", r"\*\*settings")):
        with pytest.raises(ConfigError, match=rf"'{shown}: int' hides settings; list them by name"):
            lamps.list_settings(name)


def test_a_setting_without_a_type_is_refused(lamps):
    def bare(watts=3): ...

    add(lamps, "bare", bare)
    with pytest.raises(ConfigError, match="'watts' has no annotation; a setting needs a type"):
        lamps.list_settings("bare")


# Names --------------------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_answered_with_the_closest_and_all():
    with pytest.raises(UnknownComponentError, match=r"no projector is called 'mlpp'\. Did you mean 'mlp'\? Known: "):
        projectors["mlpp"]


def test_one_name_for_two_components_is_refused_naming_both_modules(lamps):
    class Other:
        pass

    Other.__module__ = "elsewhere.lamps"
    add(lamps)
    with pytest.raises(ConfigError, match=rf"two lamps are called 'desk': {__name__} and elsewhere\.lamps; rename one"):
        add(lamps, builder=Other)


def test_registering_the_same_component_again_is_harmless(lamps):
    add(lamps)
    add(lamps)
    assert list(lamps) == ["desk"]


# Building -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "lamp 'desk' needs the setting 'watts'"),
        ({"watts": "many"}, "watts='many' is not int"),
        ({"watts": True}, "watts=True is not int"),
        ({"watts": 3, "color": "red"}, r"has no setting 'color'\. Did you mean 'colour'\?"),
        ({"watts": 3, "socket": "E27"}, "has no setting 'socket'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(lamps, settings, says):
    add(lamps)
    with pytest.raises(ConfigError, match=says):
        lamps.build({"name": "desk", **settings})


def test_every_fault_is_named_at_once(lamps):
    add(lamps)
    faults = lamps.find_faults({"name": "desk", "color": "red", "dims": 1})
    assert len(faults) == 3


def test_wired_arguments_go_only_to_those_that_ask(lamps):
    def candle(watts: int = 1) -> int:
        return watts

    add(lamps, "candle", candle)
    assert lamps.build("candle", socket="E27") == 1


def test_a_spec_is_a_name_or_a_mapping_with_a_name(lamps):
    with pytest.raises(ConfigError, match="a component is a name or a mapping with a 'name'"):
        lamps.build({"watts": 3})


# What is found in files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BUILT_IN)
def test_names_seen_in_files_are_those_that_importing_registers(kind):
    registry = BUILT_IN[kind]
    for name in registry:
        seen, entry = registry.find_info(name), registry[name]
        assert (seen.name, seen.preset_of) == (entry.name, entry.preset_of)
        if not seen.preset_of:
            assert (seen.summary, seen.source) == (entry.summary, entry.source)


@pytest.mark.parametrize("kind", BUILT_IN)
def test_importing_a_file_registers_nothing_that_was_not_seen(kind):
    registry = BUILT_IN[kind]
    for module in {found.module for found in registry._component_infos.values()}:
        importlib.import_module(module)
    assert set(registry._entries) <= set(registry._component_infos)


@pytest.mark.parametrize("kind", BUILT_IN)
def test_every_component_says_what_it_is_and_where_it_comes_from(kind):
    for name in BUILT_IN[kind]:
        assert BUILT_IN[kind][name].summary
        assert BUILT_IN[kind][name].source


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_component_has_a_schema_and_tiny_settings_that_fit_it(kind):
    registry = REGISTRIES[kind]
    for name in registry:
        assert not registry.find_faults({"name": name, **registry[name].tiny})


def test_names_are_listed_without_importing_torch():
    code = "from mmblocks.components import REGISTRIES; import sys; print([list(r) for r in REGISTRIES.values()], 'torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'mlp'" in said
    assert said.strip().endswith("False")


def test_sizes_are_settings_too(lamps):
    def screen(view_px: Size) -> Size:
        return view_px

    add(lamps, "screen", screen)
    for given in (Size(24, 32), [24, 32]):
        built = lamps.build({"name": "screen", "view_px": given})
        assert built == Size(24, 32)
        assert isinstance(built, Size)
    with pytest.raises(ConfigError, match=r"view_px=\[24\] is not Size"):
        lamps.build("screen", view_px=[24])


def test_lists_become_the_tuples_that_a_constructor_asks_for(lamps):
    def shelf(widths: tuple[int, ...] | None = None) -> tuple[int, ...] | None:
        return widths

    add(lamps, "shelf", shelf)
    assert lamps.build("shelf", widths=[1, 2]) == (1, 2)
    assert lamps.build("shelf") is None


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_component_says_what_it_is_compared_with(kind):
    registry = REGISTRIES[kind]
    own = [name for name in registry if registry.find_info(name).module.startswith("mmblocks.")]
    assert [name for name in own if not registry[name].verified_against] == []
    assert [name for name in own if not registry[name].source] == []


@pytest.mark.parametrize(
    "cause", [ZeroDivisionError("division by zero"), TypeError("no"), MemoryError(), OSError("gone")]
)
def test_whatever_a_constructor_fails_on_is_an_error_that_names_its_settings(lamps, cause):
    def fails(socket: str, watts: int):
        raise cause

    add(lamps, "broken", fails)
    with pytest.raises(
        ConfigError, match=rf"lamp 'broken' cannot be built with watts=7: {type(cause).__name__}"
    ) as shown:
        lamps.build({"name": "broken", "watts": 7}, socket="E27")
    assert shown.value.__cause__ is cause


def test_an_error_of_ours_is_passed_on_as_it_is(lamps):
    refusal = ConfigError("lamp 'broken': watts=7; write 5.")

    def fails(socket: str, watts: int):
        raise refusal

    add(lamps, "broken", fails)
    with pytest.raises(ConfigError) as shown:
        lamps.build({"name": "broken", "watts": 7}, socket="E27")
    assert shown.value is refusal
