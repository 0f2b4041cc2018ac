"""Versions of the packages that mmblocks depends on: what is installed, what is declared, what it was tested with.

The oldest tested version of a package is its declared lower bound, the newest is the one in constraints.txt; the tests
run on both.
"""

import importlib
import logging
from functools import cache
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

log = logging.getLogger(__name__)
VERSION_SENSITIVE = ("torch", "transformers", "timm", "peft")
"""Packages of which mmblocks uses more than the documented interface, so that a new version may matter."""
IMPORT_NAMES = {
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
def read_requirements() -> dict[str, Requirement]:
    """The declared dependencies, optional ones too, by name; empty where mmblocks is not installed but on the path."""
    try:
        declared = metadata.requires("mmblocks") or []
    except metadata.PackageNotFoundError:
        return {}
    requirements = [Requirement(line) for line in reversed(declared)]  # the first mention of a package counts
    return {requirement.name: requirement for requirement in requirements if not requirement.extras}


def list_required_packages() -> list[str]:
    """The packages that mmblocks needs on this machine."""
    declared = read_requirements().items()
    return sorted(
        name for name, requirement in declared if not requirement.marker or requirement.marker.evaluate({"extra": ""})
    )


def list_optional_packages() -> list[str]:
    """The packages of the extras, those of development aside."""
    markers = {name: str(requirement.marker or "") for name, requirement in read_requirements().items()}
    return sorted(name for name, m in markers.items() if "extra" in m and '"dev"' not in m and '"weights"' not in m)


def format_pip_command(package: str) -> str:
    """The command that installs a package in a declared version, anew where it is installed."""
    declared = read_requirements().get(package)
    again = "--force-reinstall " if find_installed_version(package) else ""
    return f"pip install {again}'{package}{declared.specifier if declared else ''}'"


@cache
def read_constraints() -> dict[str, Version]:
    """The versions that mmblocks was last tested with, by package (constraints.txt)."""
    packed = _PACKAGE / "constraints.txt"
    file = packed if packed.is_file() else _PACKAGE.parents[1] / "constraints.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    pins = (line.partition("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name: Version(version) for name, _, version in pins}


def find_tested_range(package: str) -> tuple[Version, Version] | None:
    """The oldest and the newest tested version of a dependency; None where they are not known."""
    declared = read_requirements().get(package)
    oldest = [Version(s.version) for s in declared.specifier if s.operator in (">=", "==")] if declared else []
    newest = read_constraints().get(package)
    return (oldest[0], newest) if oldest and newest is not None else None


def find_installed_version(package: str) -> Version | None:
    """The installed version of a package; None where it is missing."""
    try:
        return Version(metadata.version(package))
    except metadata.PackageNotFoundError:
        return None


def find_import_error(package: str) -> str | None:
    """Why an installed package cannot be imported; None where it can, and where it is not installed."""
    if find_installed_version(package) is None:
        return None
    try:
        importlib.import_module(IMPORT_NAMES.get(package, package))
    except Exception as cause:  # a broken package may raise anything
        return f"{type(cause).__name__}: {str(cause).partition(chr(10))[0]}"
    return None


def describe_untested_version(package: str) -> str | None:
    """A sentence about an installed version that is older or newer than the tested ones; patch releases are not newer."""
    version, tested = find_installed_version(package), find_tested_range(package)
    if version is None or tested is None:
        return None
    oldest, newest = tested
    span = f"mmblocks was tested with {oldest} to {newest}"
    if version < oldest:
        return f"{package} {version} is too old: {span}. Run: {format_pip_command(package)}"
    if version.release[:2] > newest.release[:2]:
        return (
            f"{package} {version} is newer than tested: {span}. If something fails: pip install '{package}<={newest}'"
        )
    return None


def describe_missing_dependency(error: ImportError) -> str | None:
    """A sentence with the dependency behind an import error and how to install it; None for other modules."""
    module = (error.name or "").partition(".")[0]
    package = next((name for name, imported in IMPORT_NAMES.items() if imported == module), module)
    if package not in read_requirements():
        return None
    state = f"is broken ({error})" if find_installed_version(package) else "is not installed"
    return f"the package {package!r} {state}; run: {format_pip_command(package)}. `mmblocks doctor` shows all packages."


@cache
def warn_about_untested_versions() -> None:
    """Log one warning for each package of `VERSION_SENSITIVE` whose installed version was not tested, once in a process."""
    for package in VERSION_SENSITIVE:
        if sentence := describe_untested_version(package):
            log.warning("%s", sentence)
