import pytest

from mmblocks.cli import main

RECIPE = """\
# Drawn shapes, for a test.
defaults:
  - /train_run
  - override /model/encoder: tiny_conv
  - _self_
out: runs/mini
stages:
  - name: align
    data: [{name: tinyworld, task: caption}]
    train: {projector: 0.001}
    steps: 3
    global_batch_size: 2
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with `recipes/mini.yaml`, as the working directory."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/mini.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("here")
def test_recipes_are_listed_with_what_they_are(capsys):
    assert main(["recipes"]) == 0
    assert any(line.split(maxsplit=1) == ["mini", "Drawn shapes, for a test."] for line in _lines(capsys))


@pytest.mark.usefixtures("here")
def test_a_recipe_is_printed_as_it_composes(capsys):
    assert main(["recipes", "mini", "model/projector=linear", "seed=5"]) == 0
    lines = list(_lines(capsys))
    assert lines[lines.index("  projector:") + 1] == "    name: linear"
    assert "seed: 5" in lines


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("command", [["recipes", "mini"], ["train", "mini"], ["sweep", "mini", "seed=0,1"]])
def test_a_wrong_override_is_refused_by_every_command(command, capsys):
    assert main([*command, "bugdet=2"]) == 2
    assert "bugdet is not a setting. Did you mean 'budget'?" in capsys.readouterr().err


@pytest.mark.usefixtures("here")
def test_options_may_stand_anywhere_between_overrides(capsys):
    assert main(["sweep", "mini", "--one-at-a-time", "seed=0,x"]) == 2
    assert main(["sweep", "--one-at-a-time", "mini", "seed=0,x"]) == 2
    assert capsys.readouterr().err.count("seed='x' is not int") == 2


def _lines(capsys):
    return capsys.readouterr().out.splitlines()
