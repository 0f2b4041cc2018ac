"""What is said about versions that were not tested, and about packages that are missing or broken."""

import importlib
import logging
import re
import sys
from pathlib import Path

import pytest
from packaging.version import Version

from mmblocks import versions
from mmblocks.cli import main
from mmblocks.components import backbones

ROOT = Path(__file__).parents[2]
TINY = {
    "name": "causal_lm",
    "family": "qwen2",
    "vocab_size": 8,
    "dim": 16,
    "depth": 1,
    "heads": 2,
    "kv_heads": 2,
    "mlp_dim": 8,
}


@pytest.fixture
def pretend(monkeypatch):
    """Other versions of packages than those that are installed; None for a package that is missing."""

    def pretend(**others):
        real = versions.find_installed_version
        known = {name.replace("_", "-"): version and Version(version) for name, version in others.items()}
        monkeypatch.setattr(
            versions, "find_installed_version", lambda name: known[name] if name in known else real(name)
        )

    versions.warn_about_untested_versions.cache_clear()
    yield pretend
    versions.warn_about_untested_versions.cache_clear()


def bounds(package):
    return versions.find_tested_range(package)


def test_every_package_that_is_relied_on_has_a_tested_range():
    for package in versions.VERSION_SENSITIVE:
        oldest, newest = bounds(package)
        assert oldest <= newest


def test_the_tested_range_goes_from_the_declared_bound_to_the_constraints():
    declared = re.search(r'"transformers>=([\d.]+),', (ROOT / "pyproject.toml").read_text())[1]
    pinned = re.search(r"^transformers==([\d.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert bounds("transformers") == (Version(declared), Version(pinned))


def test_every_dependency_is_constrained():
    missing = [name for name in versions.read_requirements() if name not in versions.read_constraints()]
    assert missing == []


def test_a_newer_version_is_a_warning_once_with_package_version_range_and_cure(pretend, caplog):
    pretend(transformers="5.99.1")
    for _ in range(2):
        backbones.build(TINY)
    oldest, newest = bounds("transformers")
    (said,) = [record for record in caplog.records if "tested" in record.getMessage()]
    assert said.levelno == logging.WARNING
    assert said.getMessage() == (
        f"transformers 5.99.1 is newer than tested: mmblocks was tested with {oldest} to {newest}. "
        f"If something fails: pip install 'transformers<={newest}'"
    )


def test_an_older_version_is_told_how_to_get_a_tested_one(pretend):
    pretend(torch="2.1.0+cu118")
    assert versions.describe_untested_version("torch") == (
        f"torch 2.1.0+cu118 is too old: mmblocks was tested with {bounds('torch')[0]} to {bounds('torch')[1]}. "
        "Run: pip install --force-reinstall 'torch>=2.10'"
    )


@pytest.mark.parametrize("change", ["", ".9", "+cu130"])
def test_patch_releases_and_builds_of_a_tested_version_are_tested(pretend, change):
    newest = bounds("torch")[1]
    pretend(torch=f"{newest.major}.{newest.minor}{change}")
    assert versions.describe_untested_version("torch") is None


# Missing and broken -------------------------------------------------------------------------------------------------


def doctor_says(capsys, package):
    main(["doctor"])
    return next(line for line in capsys.readouterr().out.splitlines() if line.startswith(f"  {package} "))


def test_doctor_names_a_missing_package_and_how_to_install_it(pretend, capsys):
    pretend(timm=None)
    assert doctor_says(capsys, "timm").split(maxsplit=1)[1] == "not installed: pip install 'timm>=1.0.31'"


def test_doctor_names_a_broken_package_and_its_cause(monkeypatch, capsys):
    real = importlib.import_module

    def broken(name, *others):
        if name == "timm":
            raise OSError("libfoo.so.1: cannot open shared object file")
        return real(name, *others)

    monkeypatch.setattr(versions.importlib, "import_module", broken)
    said = doctor_says(capsys, "timm")
    assert "BROKEN: OSError: libfoo.so.1" in said
    assert said.endswith("run: pip install --force-reinstall 'timm>=1.0.31'")


def test_a_command_that_meets_a_missing_package_names_it_and_the_cure(monkeypatch, capsys, pretend):
    pretend(hydra_core=None)
    for name in [name for name in sys.modules if name.partition(".")[0] == "hydra" or name.startswith("mmblocks.conf")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hydra", None)
    assert main(["check", "tiny/onevision"]) == 1
    said = capsys.readouterr().err
    assert said == (
        "mmblocks: the package 'hydra-core' is not installed; run: pip install 'hydra-core<1.4,>=1.3.8'. "
        "`mmblocks doctor` shows all packages.\n"
    )


def test_an_import_error_of_something_else_is_not_explained_away():
    assert versions.describe_missing_dependency(ImportError("no module named x", name="x")) is None
    assert versions.describe_missing_dependency(ImportError("cannot import name 'y'", name="mmblocks.model")) is None
