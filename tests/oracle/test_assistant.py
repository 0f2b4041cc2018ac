"""The tutorial on a published model runs as printed, with a tiny model of the same layout under the published name."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

import mmblocks
from mmblocks.assets import find_media
from mmblocks.cli import main
from mmblocks.cli.memory_report import compute_stage_memory
from mmblocks.conf import compose
from mmblocks.train.checks.run import check_run
from tests.hub import LocalHub

PAGE = Path(__file__).parents[2] / "docs/tutorials/your_own_assistant.md"
TEXT = PAGE.read_text(encoding="utf-8")
MODEL = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"^mkdir -p (\w+)\ncat > (\S+) <<'END'\n(.*?)^END\n", re.MULTILINE | re.DOTALL)
MEMORY = re.compile(r"^\| [^|]+ \| `mmblocks plan ([^`]+)` \| ([\d.]+) \|$", re.MULTILINE)
SMALLER = {
    "range(count)": "range(min(count, 3))",
    "--limit 20": "--limit 1",
    "workers=2": "workers=0",
    "epochs: 2": "epochs: 4",
    "global_batch_size: 8": "global_batch_size: 2",
}
"""Sizes of the page, and those of the test; everything else is run as it is printed."""
GIB = 2**30


def make_smaller(code: str) -> str:
    for printed, small in SMALLER.items():
        code = code.replace(printed, small)
    return code


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's folder: an image of theirs is in it."""
    place = tmp_path / "reader"
    place.mkdir()
    Image.open(find_media("image.png")).convert("RGB").save(place / "my.jpg")
    monkeypatch.chdir(place)
    return place


def write_recipe(folder: Path) -> None:
    for directory, name, content in FILE.findall(TEXT):
        (folder / directory).mkdir(exist_ok=True)
        (folder / name).write_text(make_smaller(content))


def commands(code: str) -> list[list[str]]:
    """The commands of a block, without the files that it writes."""
    lines = FILE.sub("", code).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


def test_the_tutorial_runs_from_its_first_block_to_its_last(
    hub: LocalHub, checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add(MODEL, checkpoint)
    for language, code in FENCE.findall(TEXT):
        if language == "python":
            exec(compile(make_smaller(code), PAGE.name, "exec"), {"__name__": "tutorial"})
        elif language == "bash":
            write_recipe(folder)
            for program, *words in commands(make_smaller(code)):
                assert program == "mmblocks"
                assert main(words) == 0, words
    shown = capsys.readouterr()
    assert "ok: parts" in shown.out
    assert "WARNING" not in shown.out
    assert re.search(r"^\| data \| exact \|.*\| 3 \|$", shown.out, re.MULTILINE)
    whole, over_its_base = (mmblocks.load(f"runs/parts/model{part}").state_dict() for part in ("", "/adapter"))
    assert whole.keys() == over_its_base.keys()
    assert all(torch.equal(whole[name], tensor) for name, tensor in over_its_base.items())
    assert (folder / "exported/chat_template.jinja").is_file()


def test_the_memory_of_every_machine_is_what_is_planned(folder: Path) -> None:
    write_recipe(folder)
    rows = MEMORY.findall(TEXT)
    assert len(rows) == 6
    for words, printed in rows:
        recipe, *rest = [word for word in shlex.split(words) if word != "--memory"]
        ranks = next(int(word.removeprefix("ranks=")) for word in rest if word.startswith("ranks="))
        raw = compose(recipe, [word for word in rest if not word.startswith("ranks=")])
        ((memory,),) = compute_stage_memory(raw, [ranks]).values()
        assert float(printed) == pytest.approx(memory.total_bytes / GIB, rel=0.05), words


def test_every_command_for_gpus_composes(folder: Path, hub: LocalHub, checkpoint: Path) -> None:
    write_recipe(folder)
    (folder / "parts").mkdir()
    for name in ("train", "held_out"):
        (folder / f"parts/{name}.json").write_text("[]")
    trained = [
        words[words.index("train") + 1 :]
        for language, code in FENCE.findall(TEXT)
        if language == "text"
        for words in commands(re.sub(r"^#.*\n", "", code, flags=re.MULTILINE))
        if "train" in words
    ]
    assert len(trained) == 4
    for recipe, *overrides in trained:
        faults = check_run(compose(recipe, overrides))
        assert [fault.key for fault in faults if fault.severity not in ("fetchable", "missing")] == []


def test_the_batch_script_defines_every_variable_that_it_uses() -> None:
    (script,) = [code for language, code in FENCE.findall(TEXT) if code.startswith("#!/bin/bash")]
    used = set(re.findall(r"\$(\w+)", script))
    defined = set(re.findall(r"^(?:export )?(\w+)=", script, re.MULTILINE))
    explained = set(re.findall(r"`(SLURM_\w+)`", TEXT))
    assert used <= defined | explained | {"PWD"}
    assert {name for name in used if name.startswith("SLURM_")} == explained
