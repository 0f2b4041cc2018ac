"""docs/reference/recipes.md says what its script says."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"(?<=\| )\d+(?:\.\d+)?(?= \|)")


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "docs/scripts/write_recipes.py"))


@pytest.fixture(scope="module")
def page():
    return (ROOT / "docs/reference/recipes.md").read_text(encoding="utf-8")


def test_the_settings_of_recipes_are_those_of_the_facts(script, page):
    assert page.startswith(script["settings"]()), "run python docs/scripts/write_recipes.py"


def test_the_memory_of_the_large_recipes_is_what_is_counted(script, page):
    shown = page.partition("## Memory")[2]
    fresh = script["memory"]().partition("## Memory")[2]
    assert NUMBER.sub("", shown) == NUMBER.sub("", fresh), "run python docs/scripts/write_recipes.py"
    numbers = [list(map(float, NUMBER.findall(text))) for text in (shown, fresh)]
    # other versions of torch and transformers keep a little more or less
    assert numbers[0] == pytest.approx(numbers[1], rel=0.05, abs=1)


def test_the_published_hardware_is_enough(page):
    """A100s of 80 GB: 74.5 GiB."""
    totals = {
        name: re.findall(rf"^\| {ranks} \|.*\| ([\d.]+) \| [\d.]+ \|$", section, re.MULTILINE)
        for name, ranks, section in (
            ("onevision/7b", 128, page.partition("### onevision/7b")[2].partition("###")[0]),
            ("onevision/72b", 256, page.partition("### onevision/72b")[2]),
        )
    }
    assert all(float(total) < 0.9 * 74.5 for found in totals.values() for total in found)
    assert all(totals.values())
