"""Create a package with a component of your own, its test, and the entry point by which mmblocks finds it.

mmblocks new projector my_projector
cd my_projector && pip install -e . && pytest
mmblocks train tiny/onevision model/projector=my_projector
"""

import argparse
import keyword
import re
from pathlib import Path

from mmblocks.cli.skeletons import PARTS, PYPROJECT, TEST
from mmblocks.components import REGISTRIES
from mmblocks.errors import ConfigError
from mmblocks.settings import format_suggestion

FUNCTIONS = ("tokenizer", "backbone")
"""Kinds whose skeleton is a function, not a class."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", help=", ".join(PARTS))
    parser.add_argument("name", help="name of the component and of the package: letters, digits and underscores")
    parser.add_argument("--out", type=Path, default=Path(), help="folder in which to create the package (default: .)")


def run(args: argparse.Namespace) -> int:
    folder = write_package(args.kind, args.name, args.out)
    print(f"{folder}: the part is in src/{args.name}/__init__.py, its test in tests/test_{args.name}.py")
    print(f"next: cd {folder} && pip install -e . && pytest")
    return 0


def write_package(kind: str, name: str, out: Path) -> Path:
    """Write the package into a new folder of `out` and return it. Raises `ConfigError` for a name that cannot be used."""
    folder = out / name
    if kind not in PARTS:
        raise ConfigError(f"there is no skeleton for {kind!r}.{format_suggestion(kind, PARTS)}")
    faults = []
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        faults.append(f"{name!r} cannot name a component and its package; write it like my_{kind}.")
    elif name in REGISTRIES[kind]:
        faults.append(f"mmblocks has a {kind} called {name!r} already; choose another name.")
    if folder.exists():
        faults.append(f"{folder} exists already; choose another name or --out.")
    if faults:
        raise ConfigError("\n".join(faults))
    text, small = PARTS[kind]
    part = name if kind in FUNCTIONS else "".join(word.capitalize() for word in name.split("_"))
    words = {"kind": kind, "name": name, "part": part, "package": name.replace("_", "-"), "small": small}
    files = {"pyproject.toml": PYPROJECT, f"src/{name}/__init__.py": text, f"tests/test_{name}.py": TEST}
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content.format(**words), encoding="utf-8")
    return folder
