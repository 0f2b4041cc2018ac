"""The wheel and the sdist: what is in them, and that what is installed from them runs."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import mmblocks

ROOT = Path(__file__).parents[2]
AT_ROOT = {
    "PKG-INFO",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "constraints.txt",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "pyproject.toml",
}
FOLDERS = {"src", "recipes", "tests", "docs", "examples"}
MB = 10**6


def build(target: str, source: Path, folder: Path) -> Path:
    """Build a "wheel" or an "sdist" of a source folder, without network."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def wheel_of_sdist(sdist, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return build("wheel", source, tmp_path_factory.mktemp("wheel_of_sdist"))


def record_of(wheel: Path) -> set[str]:
    """Every file of a wheel with its digest and size."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.read(f"mmblocks-{mmblocks.__version__}.dist-info/RECORD").decode().splitlines())


def files_below(folder: Path) -> set[str]:
    """Files of the checkout, what Python and Sphinx leave there aside."""
    left = {"__pycache__", "api"}
    paths = (path for path in folder.rglob("*") if path.is_file() and left.isdisjoint(path.parts))
    return {path.relative_to(folder).as_posix() for path in paths}


def test_the_wheel_holds_the_package_its_recipes_and_its_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = {f"mmblocks/{name}" for name in files_below(ROOT / "src/mmblocks")} | {"mmblocks/constraints.txt"}
    recipes = {f"mmblocks/recipes/{name}" for name in files_below(ROOT / "recipes")}
    about = {f"mmblocks-{mmblocks.__version__}.dist-info/{name}" for name in ("METADATA", "licenses/LICENSE")}
    assert {"mmblocks/py.typed", "mmblocks/recipes/tiny/onevision.yaml"} <= package | recipes
    assert package | recipes | about <= names
    assert {name for name in names if not name.startswith("mmblocks-")} == package | recipes


def test_the_wheel_of_the_sdist_is_the_wheel_of_the_checkout(wheel, wheel_of_sdist):
    assert record_of(wheel_of_sdist) == record_of(wheel)


def test_the_sdist_holds_the_project_and_nothing_that_was_left_in_the_checkout(sdist):
    with tarfile.open(sdist) as archive:
        sizes = {member.name.partition("/")[2]: member.size for member in archive.getmembers() if member.isfile()}
    top = {name.partition("/")[0] for name in sizes if "/" in name}
    assert top == FOLDERS
    assert {name for name in sizes if "/" not in name} - {".gitignore"} == AT_ROOT
    assert not [name for name in sizes if "__pycache__" in name or name.endswith((".pyc", ".log", ".so"))]
    assert {f"src/mmblocks/{name}" for name in files_below(ROOT / "src/mmblocks")} <= set(sizes)
    assert max(sizes.values()) < 2 * MB  # the weights of the tiny model's backbone are 1.6 MB
    assert sum(sizes.values()) < 16 * MB


def test_the_metadata_says_what_an_index_shows(wheel):
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read(f"mmblocks-{mmblocks.__version__}.dist-info/METADATA").decode().splitlines()
    for line in (
        f"Version: {mmblocks.__version__}",
        "License-Expression: Apache-2.0",
        "Requires-Python: >=3.11",
        "Requires-Dist: numpy>=2.0",
        "Classifier: Operating System :: POSIX :: Linux",
        "Classifier: Typing :: Typed",
        "Description-Content-Type: text/markdown",
    ):
        assert line in lines


def test_what_pip_installs_from_the_wheel_runs_on_its_own(wheel, tmp_path):
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*pip, "--target", str(site), str(wheel)], check=True)
    code = "import mmblocks; from mmblocks.conf.files import find_shipped_folder; print(mmblocks.__file__, find_shipped_folder())"
    for command, shown in (
        ([str(site / "bin/mmblocks"), "--version"], f"mmblocks {mmblocks.__version__}"),
        ([sys.executable, "-m", "mmblocks", "list", "pooling"], "bilinear"),
        ([sys.executable, "-c", code], f"{site / 'mmblocks/__init__.py'} {site / 'mmblocks/recipes'}"),
    ):
        environment = {**os.environ, "PYTHONPATH": str(site)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert shown in done.stdout, done.stderr
