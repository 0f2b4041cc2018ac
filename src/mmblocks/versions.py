"""Versions of the packages that mmblocks depends on: what is installed, what is declared, what it was tested with.

The oldest tested version of a package is its declared lower bound, the newest is the one in constraints.txt; the tests
run on both.
"""

from __future__ import annotations

import importlib
import logging
from functools import cache
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

log = logging.getLogger(__name__)
RELIED_ON = ("torch", "transformers", "timm", "peft")
"""Packages of which mmblocks uses more than the documented interface, so that a new version may matter."""
MODULES = {
    "huggingface-hub": "huggingface_hub",
    "hydra-core": "hydra",
    "nvidia-cuda-runtime-cu12": "nvidia",
    "hydra-joblib-launcher": "hydra_plugins.hydra_joblib_launcher",
    "hydra-submitit-launcher": "hydra_plugins.hydra_submitit_launcher",
    "pillow": "PIL",
    "pyyaml": "yaml",
}
"""What a package is imported as, where that is not its name."""
_PACKAGE = Path(__file__).parent


@cache
def requirements() -> dict[str, Requirement]:
    """The declared dependencies, optional ones too, by name; empty where mmblocks is not installed but on the path."""
    try:
        declared = metadata.requires("mmblocks") or []
    except metadata.PackageNotFoundError:
        return {}
    found = [Requirement(line) for line in reversed(declared)]  # the first mention of a package counts
    return {requirement.name: requirement for requirement in found if not requirement.extras}


def required_packages() -> list[str]:
    """The packages that mmblocks cannot do without on this machine."""
    declared = requirements().items()
    return sorted(name for name, found in declared if found.marker is None or found.marker.evaluate({"extra": ""}))


def optional_packages() -> list[str]:
    """The packages of the extras, development tools aside."""
    markers = {name: str(found.marker or "") for name, found in requirements().items()}
    return sorted(name for name, marker in markers.items() if "extra" in marker and '"dev"' not in marker)


def pip_line(package: str) -> str:
    """The command that installs a package in a declared version, anew where it is installed."""
    declared = requirements().get(package)
    again = "--force-reinstall " if installed_version(package) else ""
    return f"pip install {again}'{package}{declared.specifier if declared else ''}'"


@cache
def constraints() -> dict[str, Version]:
    """The versions that mmblocks was last tested with, by package (constraints.txt)."""
    packed = _PACKAGE / "constraints.txt"
    file = packed if packed.is_file() else _PACKAGE.parents[1] / "constraints.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    pins = (line.partition("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name: Version(version) for name, _, version in pins}


def tested_range(package: str) -> tuple[Version, Version] | None:
    """The oldest and the newest tested version of a dependency; None where they are not known."""
    declared = requirements().get(package)
    oldest = [Version(s.version) for s in declared.specifier if s.operator in (">=", "==")] if declared else []
    newest = constraints().get(package)
    return (oldest[0], newest) if oldest and newest is not None else None


def installed_version(package: str) -> Version | None:
    """The installed version of a package; None where it is missing."""
    try:
        return Version(metadata.version(package))
    except metadata.PackageNotFoundError:
        return None


def import_error(package: str) -> str | None:
    """Why an installed package cannot be imported; None where it can, and where it is not installed."""
    if installed_version(package) is None:
        return None
    try:
        importlib.import_module(MODULES.get(package, package))
    except Exception as cause:  # a broken package may raise anything
        return f"{type(cause).__name__}: {str(cause).partition(chr(10))[0]}"
    return None


def outside_tested(package: str) -> str | None:
    """A sentence about an installed version that is older or newer than the tested ones; patch releases are not newer."""
    version, tested = installed_version(package), tested_range(package)
    if version is None or tested is None:
        return None
    oldest, newest = tested
    span = f"mmblocks was tested with {oldest} to {newest}"
    if version < oldest:
        return f"{package} {version} is too old: {span}. Run: {pip_line(package)}"
    if version.release[:2] > newest.release[:2]:
        return (
            f"{package} {version} is newer than tested: {span}. If something fails: pip install '{package}<={newest}'"
        )
    return None


def missing_dependency(error: ImportError) -> str | None:
    """A sentence that names the dependency behind an import error, and the cure; None where it is none of ours."""
    module = (error.name or "").partition(".")[0]
    package = next((name for name, imported in MODULES.items() if imported == module), module)
    if package not in requirements():
        return None
    state = f"is broken ({error})" if installed_version(package) else "is not installed"
    return f"the package {package!r} {state}; run: {pip_line(package)}. `mmblocks doctor` shows all packages."


@cache
def warn_outside_tested() -> None:
    """Log one warning for each package of `RELIED_ON` whose installed version was not tested, once in a process."""
    for package in RELIED_ON:
        if sentence := outside_tested(package):
            log.warning("%s", sentence)
