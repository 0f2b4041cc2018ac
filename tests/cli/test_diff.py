"""`mmblocks diff` as people and programs read it."""

import json

import pytest

from mmblocks.cli import main


@pytest.fixture
def pair(tmp_path, tiny_spec):
    """Folders of two runs that differ in projector and seed."""
    for name, projector, seed in (("a", "mlp", 0), ("b", "linear", 1)):
        recipe = {"model": {**tiny_spec, "projector": projector}, "out": name, "seed": seed, "stages": []}
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(recipe))
    return str(tmp_path / "a"), str(tmp_path / "b")


def test_people_read_sections_of_what_differs(pair, capsys):
    assert main(["diff", *pair]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if "projector.depth" in line] == [["projector.depth", "2", "->", "(none)"]]
    assert [line for line in lines if line and not line.startswith(" ")][2:] == ["components", "parameters", "settings"]
    assert main(["diff", pair[0], pair[0]]) == 0
    assert "no difference" in capsys.readouterr().out


def test_programs_read_json(pair, capsys):
    assert main(["diff", *pair, "image=96x72", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"] == {"seed": [0, 1]}


def test_a_wrong_folder_or_visual_is_refused(pair, capsys):
    assert main(["diff", pair[0], "nowhere"]) == 2
    assert main(["diff", *pair, "image=large"]) == 2
    said = capsys.readouterr().err
    assert "nowhere is not there" in said
    assert "'image=large' is no image or video" in said
