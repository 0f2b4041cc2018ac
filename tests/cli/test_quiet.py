"""Commands write nothing to stderr when nothing is wrong, whatever warnings other packages have of late."""

import json
import logging
import os
import re
import subprocess
import sys
import warnings

import pytest

import mmblocks
from mmblocks import versions
from mmblocks.assets import find_media
from mmblocks.cli import main

SIGLIP = {"name": "siglip", "image_px": 28, "patch_px": 14, "dim": 16, "depth": 3, "heads": 2, "mlp_dim": 24}
COMMANDS = {
    "demo": ["demo"],
    "list": ["list"],
    "show": ["show", "projector", "mlp"],
    "check": ["check", "tiny/onevision"],
    "plan": ["plan", "onevision/7b", "image=100x100"],
    "recipes": ["recipes", "tiny/onevision"],
    "doctor": ["doctor"],
    "chat": [
        "chat",
        "--model",
        "ours",
        "--image",
        str(find_media("image.png")),
        "--ask",
        "How?",
        "--max-new-tokens",
        "2",
    ],
    "eval": ["eval", "tiny", "--limit", "1"],
    "convert": ["convert", "ours", "theirs"],
    "convert back": ["convert", "theirs", "again"],
    "train": [
        "train",
        "tiny/onevision",
        "out=run",
        "encoder_pretraining=null",
        "last_stage=text",
        "budget=0.001",
        "workers=0",
    ],
}
SCRIPT = """
import json, os, sys
from mmblocks.cli import main
from mmblocks.cli.logs import log_to_stderr
with log_to_stderr():  # as the commands import it
    import transformers.generation.utils
for name, words in json.loads(sys.argv[1]).items():
    if (child := os.fork()) == 0:
        for number, kind in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{name}.{kind}", os.O_WRONLY | os.O_CREAT), number)
        os._exit(main(words) or sys.stdout.flush() or 0)
    print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
FILTERS = ("PYTHONWARNINGS", "MMBLOCKS_LOG", "TRANSFORMERS_VERBOSITY", "PYTHONPATH")
BAR = re.compile(r"[^\r\n]*\d+%\|[^\r\n]*\r?")


@pytest.fixture(scope="module")
def ran(tiny_spec, tmp_path_factory):
    """What each command wrote: each in a process of its own, forked from one that has imported transformers."""
    folder = tmp_path_factory.mktemp("quiet")
    mmblocks.save(mmblocks.build({**tiny_spec, "encoder": SIGLIP}, seed=0), folder / "ours")
    environment = {name: value for name, value in os.environ.items() if name not in FILTERS[:-1]}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(COMMANDS)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"{name} 0" for name in COMMANDS]
    return {name: [(folder / f"{name}.{kind}").read_text() for kind in ("out", "err")] for name in COMMANDS}


@pytest.fixture(scope="module")
def untested():
    """What is said of packages that are newer than those that the tests last passed with."""
    return [
        sentence for package in versions.VERSION_SENSITIVE if (sentence := versions.describe_untested_version(package))
    ]


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "train"])
def test_a_command_writes_nothing_to_stderr(ran, untested, command):
    out, err = ran[command]
    assert out
    said = [line for line in BAR.sub("", err).replace("\r", "\n").splitlines() if line.strip()]
    assert [line for line in said if line not in untested] == []


def test_training_shows_its_own_log_and_no_warnings_of_others(ran):
    _, err = ran["train"]
    assert "stage text, 1 steps" in err
    assert "Warning" not in err


# The log ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def noisy(monkeypatch):
    """A command in which another package warns, logs a warning and an error, and mmblocks logs a warning."""

    def run(args):
        warnings.warn("a keyword is going", FutureWarning, stacklevel=1)
        logging.getLogger("other").warning("odd")
        logging.getLogger("other").error("bad")
        logging.getLogger("mmblocks.model").warning("ours")
        logging.getLogger("mmblocks.model").info("in passing")
        return 0

    monkeypatch.setattr("mmblocks.cli.demo.run", run)


@pytest.mark.usefixtures("noisy")
def test_own_warnings_and_others_errors_are_shown(capsys, monkeypatch):
    monkeypatch.delenv("MMBLOCKS_LOG", raising=False)
    assert main(["demo"]) == 0
    assert capsys.readouterr().err.splitlines() == ["bad", "ours"]


@pytest.mark.usefixtures("noisy")
def test_the_whole_log_is_shown_when_it_is_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("MMBLOCKS_LOG", "info")
    assert main(["demo"]) == 0
    shown = capsys.readouterr().err
    assert "FutureWarning: a keyword is going" in shown
    assert [line for line in shown.splitlines() if line in ("odd", "bad", "ours", "in passing")] == [
        "odd",
        "bad",
        "ours",
        "in passing",
    ]


def test_a_wrong_level_is_refused(capsys, monkeypatch):
    monkeypatch.setenv("MMBLOCKS_LOG", "loud")
    assert main(["demo"]) == 2
    assert "MMBLOCKS_LOG='loud' is no level; write debug, info, warning, error." in capsys.readouterr().err


@pytest.mark.usefixtures("noisy")
def test_a_command_leaves_logging_as_it_was():
    root = logging.getLogger()
    before = list(root.handlers), root.level, logging.getLogger("mmblocks").level, warnings.showwarning
    main(["demo"])
    assert (list(root.handlers), root.level, logging.getLogger("mmblocks").level, warnings.showwarning) == before
