"""Names say what they mean, and helpers earn their jump: figures that hold for the whole package."""

from pathlib import Path

import pytest

import mmblocks
from tests.style.figures import measure_package

LIMITS = {
    "one-word function names": 0.35,
    "function names that begin with a participle": 0.04,
    "private helpers used once, per thousand lines": 8,
    "parameters typed Any": 0.01,
}
LONGEST_FUNCTION = 60


@pytest.fixture(scope="module")
def figures():
    return measure_package(Path(mmblocks.__file__).parent)


@pytest.mark.parametrize("name", LIMITS)
def test_a_figure_stays_under_its_limit(figures, name):
    assert figures.to_shares()[name] < LIMITS[name]


def test_no_two_classes_have_one_name(figures):
    assert figures.homonyms == {}


def test_no_function_is_longer_than_a_screen(figures):
    assert figures.longest <= LONGEST_FUNCTION


def test_the_figures_count_what_they_name(tmp_path):
    (tmp_path / "a.py").write_text(
        "class A: ...\n"
        "def made(x: Any, y: int): return _helper(x)\n"
        "def _helper(x): return x\n"
        "def read_file(self, path: Any): return open(path)\n"
    )
    (tmp_path / "b.py").write_text("class A: ...\n")
    figures = measure_package(tmp_path)
    assert (figures.lines, figures.functions, figures.longest) == (5, 3, 1)
    assert (figures.one_word, figures.used_once, figures.typed_any, figures.parameters) == (2, 1, 2, 4)
    assert figures.homonyms == {"A": ["a.py", "b.py"]}
