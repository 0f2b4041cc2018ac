"""Our scorers against outputs of the original ones (tests/golden/eval): every group of every file, every case."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mmblocks.errors import DataError
from mmblocks.eval.golden.replays import REPLAYS
from mmblocks.eval.selftest import GOLDEN, GoldenCase, are_equal, find_difference, read_golden_cases, run_golden_cases

ALL = Path(__file__).parents[1] / "golden/eval"
CASES = list(read_golden_cases(ALL))
NUMBER_OF_CASES = 1460
MOST_BYTES = 60_000


def list_groups(folder):
    return {
        (path.stem, group): len(content["cases"])
        for path in folder.glob("*.json")
        for group, content in json.loads(path.read_text(encoding="utf-8")).get("groups", {}).items()
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_has_the_original_score(case):
    difference = find_difference(case)
    assert difference is None, f"{case.source}\ngiven {case.given}\nwant  {case.want}\ngot   {difference.got}"


def test_every_group_of_every_file_is_compared():
    groups = list_groups(ALL)
    assert set(groups) == {(file, group) for file, found in REPLAYS.items() for group in found}
    assert groups == Counter((case.file, case.group) for case in CASES)
    assert len(CASES) == NUMBER_OF_CASES


def test_the_cases_that_ship_are_of_every_group_and_small():
    assert set(list_groups(GOLDEN)) == set(list_groups(ALL))
    assert sum(path.stat().st_size for path in GOLDEN.glob("*.json")) <= MOST_BYTES
    inputs = {(case.file, case.group, json.dumps([case.given, case.want])) for case in CASES}
    for case in read_golden_cases(GOLDEN):
        assert (case.file, case.group, json.dumps([case.given, case.want])) in inputs


def test_the_cases_that_ship_have_no_difference():
    results = run_golden_cases()
    assert sum(result.cases for result in results) > 200
    assert [result for result in results if result.differences] == []


def test_a_difference_names_its_case():
    case = GoldenCase("gqa", "exact_match", 7, "somewhere", {"pred": "yes", "answer": "no"}, 1.0)
    assert find_difference(case).got == 0.0
    assert case.name == "gqa/exact_match/7"


def test_a_group_without_a_replay_is_an_error():
    with pytest.raises(DataError, match=r"gqa\.json: nothing here gives the group 'other'"):
        find_difference(GoldenCase("gqa", "other", 0, "", {}, 0))


@pytest.mark.parametrize(
    ("got", "want"),
    [(1.1, 1.0), (None, 0.0), (0.0, None), ("1", 1), ([1], [1, 2]), ({"a": 1}, {"a": 1, "b": 1}), ({"a": 1}, {"b": 1})],
)
def test_unequal_values_are_told_apart(got, want):
    assert not are_equal(got, want, 1e-6)


def test_the_scorers_need_no_torch():
    code = "import sys, mmblocks.eval.selftest as s; s.run_golden_cases(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
