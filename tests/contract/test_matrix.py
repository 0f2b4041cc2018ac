"""Every encoder x projector x tokenizer x pooling learns or is refused with a reason (docs/scripts/write_matrix.py tries them)."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from mmblocks.components import REGISTRIES
from mmblocks.model.checks.composition import find_faults

DOCS = Path(__file__).parents[2] / "docs"
spec = importlib.util.spec_from_file_location("matrix", DOCS / "scripts/write_matrix.py")
matrix = sys.modules["matrix"] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
spec.loader.exec_module(matrix)

ALL = matrix.combinations()
SAMPLED = ALL[::61]
"""A stride that shares no factor with the lists it walks through, so that every part is met in different company."""


def named(combination):
    return "-".join((combination.encoder, combination.projector, combination.tokenizer, combination.pooling))


@pytest.mark.parametrize("combination", SAMPLED, ids=named)
def test_a_combination_learns_or_says_why_not(combination):
    reason = matrix.tried(combination).reason
    if reason:
        parts = (combination.projector, combination.tokenizer)
        assert any(f"'{part}'" in reason for part in parts), reason
        assert reason.endswith(".")
        assert re.search(r"\b(use|choose|write|build)\b", reason), f"no cure: {reason}"


def test_the_sample_meets_every_part():
    for kind in ("encoder", "projector", "tokenizer", "pooling"):
        met = {getattr(combination, kind) for combination in SAMPLED} - {"-"}
        assert met == set(matrix.own(REGISTRIES[kind]))


@pytest.mark.parametrize("combination", SAMPLED[::9], ids=named)
def test_check_agrees_with_the_matrix(combination):
    tokenizer = matrix.tiny(REGISTRIES["tokenizer"], combination.tokenizer)
    scenarios = matrix.scenarios_of(combination.tokenizer)
    chosen = {
        "encoder": matrix.tiny(REGISTRIES["encoder"], combination.encoder),
        "projector": matrix.tiny(REGISTRIES["projector"], combination.projector),
        "pooling": "none" if combination.pooling == "-" else matrix.tiny(REGISTRIES["pooling"], combination.pooling),
        "tokenizer": {"image": "square", "multi_image": "square", "video": matrix.PLAIN_CLIP}
        | dict.fromkeys(scenarios, tokenizer),
        "backbone": matrix.BACKBONE,
        "template": "chatml",
    }
    refused = bool(matrix.tried(combination).reason)
    found = [
        f for f in find_faults(chosen) if f.key.startswith(("model.projector", "model.pooling", *_keys(scenarios)))
    ]
    assert bool(found) == refused, found


def _keys(scenarios):
    return [f"model.tokenizer.{scenario}" for scenario in scenarios]


@pytest.mark.slow
def test_the_page_shows_what_happens():
    found = list(matrix.outcomes(ALL))
    assert matrix.page(found) == (DOCS / "reference/matrix.md").read_text()
    assert matrix.picture(found) == (DOCS / "images/matrix.svg").read_text()
