"""Figures on names and helpers of a package. From the root of a checkout: `python tests/style/figures.py src/mmblocks`."""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

VERBS = frozenset(
    [
        "align",
        "assign",
        "attend",
        "begin",
        "bring",
        "clean",
        "column",
        "contain",
        "embed",
        "explain",
        "feed",
        "gen",
        "given",
        "human",
        "in",
        "join",
        "learn",
        "len",
        "login",
        "main",
        "mean",
        "min",
        "need",
        "obtain",
        "on",
        "open",
        "padding",
        "packing",
        "pin",
        "plan",
        "pooling",
        "retain",
        "return",
        "ring",
        "run",
        "scan",
        "seed",
        "setting",
        "settings",
        "span",
        "spin",
        "string",
        "then",
        "timing",
        "token",
        "train",
        "training",
        "turn",
        "warning",
    ]
)
"""First words of names that look like participles and are none."""
PARTICIPLE = re.compile(r"\w+(ed|ing|[a-z]n)")


@dataclass
class Figures:
    """Counts over all files of a package."""

    lines: int = 0
    functions: int = 0
    longest: int = 0
    one_word: int = 0
    participle: int = 0
    parameters: int = 0
    typed_any: int = 0
    used_once: int = 0
    classes: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add_file(self, path: Path, name: str) -> None:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        self.lines += text.count("\n")
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                self.classes[node.name].append(name)
        uses = Counter(_list_uses(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                self._add_function(node, uses)

    def _add_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef, uses: Counter[str]) -> None:
        annotations = [a.annotation for a in (*node.args.args, *node.args.kwonlyargs) if a.arg not in ("self", "cls")]
        self.parameters += len(annotations)
        self.typed_any += sum(isinstance(a, ast.Name) and a.id == "Any" for a in annotations)
        if node.name.startswith("__"):
            return
        words = node.name.strip("_").split("_")
        self.functions += 1
        self.longest = max(self.longest, (node.end_lineno or 0) - node.lineno + 1)
        self.one_word += len(words) == 1
        self.participle += words[0] not in VERBS and bool(PARTICIPLE.fullmatch(words[0]))
        self.used_once += node.name.startswith("_") and uses[node.name] == 1

    @property
    def homonyms(self) -> dict[str, list[str]]:
        """Classes of one name, and the files that they are in."""
        return {name: files for name, files in self.classes.items() if len(files) > 1}

    def to_shares(self) -> dict[str, float]:
        """The figures as shares, and helpers used once per thousand lines."""
        return {
            "one-word function names": self.one_word / self.functions,
            "function names that begin with a participle": self.participle / self.functions,
            "private helpers used once, per thousand lines": 1000 * self.used_once / self.lines,
            "parameters typed Any": self.typed_any / self.parameters,
        }


def measure_package(folder: Path) -> Figures:
    """The figures of every Python file in a folder."""
    figures = Figures()
    for path in sorted(folder.rglob("*.py")):
        figures.add_file(path, str(path.relative_to(folder)))
    return figures


def _list_uses(tree: ast.AST) -> Iterator[str]:
    """Every name that is read, and every attribute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def main(folder: str) -> None:
    figures = measure_package(Path(folder))
    print(f"{figures.lines} lines, {figures.functions} functions, the longest of {figures.longest} lines")
    for name, value in figures.to_shares().items():
        print(f"{value:8.3f}  {name}")
    print(f"classes of one name: {figures.homonyms or 'none'}")


if __name__ == "__main__":
    main(sys.argv[1])
