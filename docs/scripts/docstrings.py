"""Docstrings as this package writes them, for Sphinx: code in single backticks, settings as "name: meaning" lines."""

from __future__ import annotations

import re

CODE = re.compile(r"(`[^`]*`)")
MARKUP = re.compile(r"([*|\\]|(?<=\w)_(?!\w))")
GLUED = re.compile(r"^(?=\w)")
"""A word directly behind code, as in "`Pair`s"."""
SETTING = re.compile(r"([a-z]\w*(?:, [a-z]\w*)*): (.*)")
SHAPE = re.compile(r"(.*?)\s*\bShape: (.*)")


def to_rst(lines: list[str]) -> None:
    """Rewrite the lines of a docstring in place: what RST would take for markup is escaped, settings become a list."""
    made: list[str] = []
    for number, line in enumerate(_escaped(lines)):
        block = _block(number, line)
        inside = bool(made) and made[-1].startswith(("- ", "  "))
        made += ["", *block] if inside and block[0] and not block[0].startswith("  ") else block
    lines[:] = made


def _escaped(lines: list[str]) -> list[str]:
    """Lines whose text outside of backticks holds no markup of RST."""
    parts = CODE.split("\n".join(lines))
    parts[::2] = [MARKUP.sub(r"\\\1", part) for part in parts[::2]]
    parts[2::2] = [GLUED.sub(r"\\ ", part) for part in parts[2::2]]
    return "".join(parts).split("\n")


def _block(number: int, line: str) -> list[str]:
    """A line as one or more lines of RST; `number` 0 is the summary."""
    if shape := SHAPE.fullmatch(line):
        return [shape[1], "", f"**Shape:** {shape[2]}"] if shape[1] else ["", f"**Shape:** {shape[2]}"]
    setting = SETTING.fullmatch(line)
    if number and setting:
        return ["", f"- **{setting[1]}**: {setting[2]}"]
    if line.startswith("    ") and line.strip():
        return [f"  {line.strip()}"]
    return [line]
