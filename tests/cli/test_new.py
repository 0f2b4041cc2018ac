"""`mmblocks new` writes packages whose tests pass at once."""

import subprocess
import sys

import pytest

from mmblocks.cli import main
from mmblocks.cli.new import write_package
from mmblocks.cli.skeletons import PARTS


def lines_of_code(path):
    return [line for line in path.read_text().splitlines() if line.strip()]


def test_every_kind_of_part_passes_its_test_at_once(tmp_path):
    folders = [write_package(kind, f"my_{kind}", tmp_path) for kind in PARTS]
    for kind, folder in zip(PARTS, folders, strict=True):
        assert len(lines_of_code(folder / "src" / f"my_{kind}" / "__init__.py")) <= 20
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--import-mode=importlib",
            "-o",
            f"pythonpath={' '.join(str(folder / 'src') for folder in folders)}",
            *map(str, folders),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert f"{len(PARTS)} passed" in done.stdout, done.stdout + done.stderr


def test_the_entry_point_names_the_kind_and_the_package(tmp_path, capsys):
    assert main(["new", "projector", "my_proj", "--out", str(tmp_path)]) == 0
    assert "pip install -e . && pytest" in capsys.readouterr().out
    text = (tmp_path / "my_proj" / "pyproject.toml").read_text()
    assert '[project.entry-points."mmblocks.projector"]\nmy_proj = "my_proj"' in text


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("projecter", "mine", "Did you mean 'projector'"),
        ("projector", "My-Proj", "write it like my_projector"),
        ("projector", "class", "cannot name a component"),
        ("projector", "mlp", "has a projector called 'mlp' already"),
    ],
)
def test_what_cannot_be_named_so_is_refused(tmp_path, capsys, kind, name, said):
    assert main(["new", kind, name, "--out", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_is_there_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    assert main(["new", "pooling", "mine", "--out", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert list((tmp_path / "mine").iterdir()) == []
