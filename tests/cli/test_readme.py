"""Every bash and python block of the README and the how-to pages runs on its own, and every tutorial in its order."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from mmblocks.assets import find_media
from mmblocks.cli import COMMANDS
from mmblocks.components import REGISTRIES, projectors, templates
from mmblocks.data.sources import sources

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
GUIDES = sorted(set(ROOT.glob("docs/howto/*.md")) - {ROOT / "docs/howto/data.md"})  # test_data_page.py runs that one
TUTORIALS = sorted(
    set(ROOT.glob("docs/tutorials/*.md")) - {ROOT / "docs/tutorials/your_own_assistant.md"}
)  # test_assistant.py runs that one
FENCE = re.compile(r"^```(\w+)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
INSTALLS = ("git ", "pip ", "python -m venv ")  # run by .ci/run, in an environment of their own


@dataclass(frozen=True)
class Block:
    """A fenced block; `shown` is the text block right behind it, which then is what it prints."""

    page: str
    line: int
    language: str
    code: str
    shown: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    behind = [*found, None][1:]
    return [
        Block(page.name, text[: m.start()].count("\n") + 1, m[1], m[2], _output(text, m, after))
        for m, after in zip(found, behind, strict=True)
    ]


def _output(text, block, after):
    follows = after is not None and after[1] == "text" and not text[block.end() : after.start()].strip()
    return after[2] if follows and block[1] == "bash" else None


def of_language(language):
    return [pytest.param(b, id=str(b)) for page in (README, *GUIDES) for b in blocks(page) if b.language == language]


@pytest.fixture
def folder(tmp_path):
    """The reader's folder: an image of theirs is in it, and records about it."""
    folder = tmp_path / "reader"
    folder.mkdir()
    Image.open(find_media("image.png")).convert("RGB").save(folder / "my.jpg")
    asked = {"How many shapes are there?": "3", "What colour is the triangle?": "red"}
    talks = [
        [{"from": "human", "value": f"<image>\n{text}"}, {"from": "gpt", "value": answer}]
        for text, answer in asked.items()
    ]
    records = [{"id": str(i), "image": "my.jpg", "conversations": talk} for i, talk in enumerate(talks)]
    (folder / "val.json").write_text(json.dumps(records))
    return folder


@pytest.mark.parametrize("block", of_language("python"))
def test_python_blocks_run_each_on_its_own(block, folder, monkeypatch):
    monkeypatch.chdir(folder)
    run_python(block, monkeypatch)


def run_python(block, monkeypatch):
    for registry in (projectors, templates):  # what a block registers is gone after it
        monkeypatch.setattr(registry, "_entries", {name: registry[name] for name in registry})
    exec(compile(block.code, str(block), "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("block", of_language("bash"))
def test_bash_blocks_run_and_print_what_is_shown(block, folder):
    run_bash(block, folder)


def run_bash(block, folder):
    script = "".join(line for line in block.code.splitlines(keepends=True) if not line.startswith(INSTALLS))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": ""}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert block.shown in (None, done.stdout)


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs_from_its_first_block_to_its_last(page, folder, monkeypatch):
    monkeypatch.chdir(folder)
    for block in blocks(page):
        if block.language == "python":
            run_python(block, monkeypatch)
        elif block.language == "bash":
            run_bash(block, folder)


def test_every_block_has_a_language_that_says_what_becomes_of_it():
    assert {
        b.language for page in (README, ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")) for b in blocks(page)
    } <= {"bash", "json", "python", "text", "toml", "yaml"}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readme_names_every_command(command):
    table = README.read_text(encoding="utf-8").partition("## Commands")[2].partition("\n## ")[0]
    assert re.search(rf"`(mmblocks )?{command}[` ]", table)


def test_the_readme_names_every_component_that_is_no_preset():
    box = README.read_text(encoding="utf-8").partition("## Included components")[2].partition("\n## ")[0]
    for registry in (*REGISTRIES.values(), sources):
        own = [registry.find_info(name) for name in registry]
        missing = [
            f.name for f in own if not f.preset_of and f.module.startswith("mmblocks.") and f"`{f.name}`" not in box
        ]
        assert not missing, registry.kind
