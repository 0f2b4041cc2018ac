"""What pyproject.toml declares is what the code needs; the files at the root say the same as the package."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import mmblocks

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DISTRIBUTIONS = {"PIL": "pillow", "hydra": "hydra-core", "yaml": "pyyaml"}
"""Import name -> name of the distribution, where they differ beyond `_` and `-`."""
INSTALLED_BY = {"triton": "torch"}
"""Packages that are never asked for by themselves: torch brings the version it was built for, or there is none."""
HOSTS = {"lmms-eval"}
"""Programs that load a plug-in of mmblocks, which imports them: they are there when it runs."""
NEVER_IMPORTED = {"nvidia-cuda-runtime-cu12": "a shared library that xformers loads"}


def names_in(requirements):
    return {re.split(r"[^\w.-]", requirement)[0].lower() for requirement in requirements}


CORE = names_in(PROJECT["dependencies"])
EXTRAS = {extra: names_in(needed) for extra, needed in PROJECT["optional-dependencies"].items()}


def distribution_of(module: str) -> str:
    return DISTRIBUTIONS.get(module, module.replace("_", "-").lower())


def imports_in(source: str) -> set[str]:
    """Top-level packages that a module imports anywhere, those of Python and mmblocks left out."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module).partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"mmblocks"}


def needs_in(source: str) -> Iterator[tuple[str, str | None]]:
    """(package, extra) of every `import_optional("package", extra="extra", to=...)`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "import_optional":
            package, *_ = [a.value for a in node.args if isinstance(a, ast.Constant)]
            extras = [k.value.value for k in node.keywords if k.arg == "extra" and isinstance(k.value, ast.Constant)]
            yield str(package).partition(".")[0], next((str(extra) for extra in extras), None)


def undeclared(sources: dict[str, str], declared: set[str]) -> dict[str, list[str]]:
    """Distributions that are imported and not declared, with the modules that import them."""
    missing: dict[str, list[str]] = {}
    for file, source in sources.items():
        for module in imports_in(source):
            name = INSTALLED_BY.get(module, distribution_of(module))
            if name not in declared | HOSTS:
                missing.setdefault(name, []).append(file)
    return missing


@pytest.fixture(scope="module")
def sources():
    folder = ROOT / "src/mmblocks"
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in folder.rglob("*.py")}


def test_every_import_is_declared(sources):
    assert undeclared(sources, CORE | set().union(*EXTRAS.values())) == {}


def test_an_import_that_is_not_declared_is_found():
    code = "import numpy as np\ndef f():\n    from foo_bar.baz import x\n    import os, yaml\n"
    assert undeclared({"some.py": code}, {"numpy", "pyyaml"}) == {"foo-bar": ["some.py"]}


def test_what_is_imported_without_asking_comes_with_mmblocks(sources):
    """A module that imports a package by `import_optional`, or looks for it with `find_spec`, may then import it; others may not.

    Those of `server` are imported by its `make_server`, behind `require_packages`.
    """
    careful = {file for file, source in sources.items() if re.search(r"\b(import_optional|find_spec)\(", source)}
    careful |= {file for file in sources if file.startswith("server/") and file != "server/__init__.py"}
    assert undeclared({f: s for f, s in sources.items() if f not in careful}, CORE) == {}


def test_an_extra_that_an_error_names_installs_what_it_is_named_for(sources):
    needed = {(package, extra) for source in sources.values() for package, extra in needs_in(source)}
    assert ("peft", "train") in needed
    for package, extra in needed:
        assert extra is None or distribution_of(package) in EXTRAS[extra] | CORE, package


def test_every_dependency_is_imported(sources):
    imported = {distribution_of(module) for source in sources.values() for module in imports_in(source)}
    assert CORE - imported == set(NEVER_IMPORTED)


@pytest.mark.parametrize("requirement", PROJECT["dependencies"])
def test_every_dependency_has_an_oldest_version(requirement):
    assert re.match(r"[\w-]+(>=|==)\d", requirement)


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"] == PROJECT["name"] == "mmblocks"
    assert str(citation["version"]) == mmblocks.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"]
