"""Docstrings are translated for the documentation site; the site itself is built by .ci/run."""

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs/scripts/docstrings.py"


@pytest.fixture(scope="module")
def translated():
    to_rst = runpy.run_path(str(SCRIPT))["to_rst"]

    def translate(text):
        lines = text.split("\n")
        to_rst(lines)
        return "\n".join(lines)

    return translate


def test_markup_of_rst_outside_of_code_is_escaped(translated):
    assert translated("A *args, |x| and y_; `*b|c_` and `Pair`s.") == r"A \*args, \|x\| and y\_; `*b|c_` and `Pair`\ s."


def test_settings_become_a_list_and_go_on_in_indented_lines(translated):
    text = "What it is.\n\nsteps: how many\n    there are.\nrate, decay: how fast.\nMore."
    assert translated(text) == (
        "What it is.\n\n\n- **steps**: how many\n  there are.\n\n- **rate, decay**: how fast.\n\nMore."
    )


def test_a_shape_is_a_paragraph_of_its_own(translated):
    assert translated("A map.   Shape: (n, d) -> (n,).") == "A map.\n\n**Shape:** (n, d) -> (n,)."
