"""What a user of the command line meets when a machine has no network, and when mmblocks itself is wrong."""

import os
import subprocess
import sys

import pytest

from mmblocks import conf
from mmblocks.cli import listing, main, mistakes
from mmblocks.errors import ConfigError, DataError
from mmblocks.model import systems

ADDRESS = "https://example.org/issues"


@pytest.fixture
def broken(monkeypatch, tmp_path):
    """A command that fails in a way that nobody foresaw; logs go into a folder of the test."""

    def fail(args):
        raise ZeroDivisionError("a line\nand another")

    monkeypatch.setattr(listing, "run", fail)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("MMBLOCKS_DEBUG", raising=False)
    return tmp_path / "state" / "mmblocks"


def test_a_mistake_is_one_line_with_the_file_that_holds_the_traceback(broken, capsys):
    assert main(["list", "encoder"]) == mistakes.EXIT_CODE == 70
    (line,) = capsys.readouterr().err.splitlines()
    (log,) = broken.iterdir()
    assert "ZeroDivisionError: a line and another" in line
    assert str(log) in line
    text = log.read_text(encoding="utf-8")
    assert "mmblocks list encoder" in text
    assert "Traceback (most recent call last)" in text
    assert log.stat().st_mode & 0o077 == 0


def test_where_to_report_is_the_page_that_the_package_names(broken, capsys, monkeypatch):
    class Meta:
        def get_all(self, name):
            return ["Homepage, https://example.org", f"Issues, {ADDRESS}"]

    monkeypatch.setattr(mistakes.metadata, "metadata", lambda name: Meta())
    main(["list", "encoder"])
    assert capsys.readouterr().err.rstrip().endswith(f"report it with that at {ADDRESS}")


def test_ranks_write_lines_and_logs_of_their_own(broken, capsys, monkeypatch):
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        main(["list", "encoder"])
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("mmblocks (rank 0):")
    assert second.startswith("mmblocks (rank 1):")
    assert len(list(broken.iterdir())) == 2


def test_a_machine_where_nothing_can_be_written_still_tells(broken, capsys, monkeypatch):
    broken.parent.write_text("a file in place of the folder")
    monkeypatch.setattr(mistakes.tempfile, "gettempdir", lambda: str(broken.parent))
    assert main(["list", "encoder"]) == 70
    assert "MMBLOCKS_DEBUG=1 shows the traceback" in capsys.readouterr().err


def test_debugging_traces(broken, monkeypatch):
    monkeypatch.setenv("MMBLOCKS_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["list", "encoder"])


@pytest.mark.parametrize(("error", "code"), [(ConfigError("c"), 2), (DataError("d"), 1), (KeyboardInterrupt(), 130)])
def test_what_was_foreseen_is_told_as_ever(error, code, monkeypatch, tmp_path):
    def fail(args):
        raise error

    monkeypatch.setattr(listing, "run", fail)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert main(["list", "encoder"]) == code
    assert not (tmp_path / "state").exists()


# Without a network --------------------------------------------------------------------------------------------------


def test_check_tells_faults_from_what_is_missing(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert main(["check", "onevision/finetune"]) == 3
    page = capsys.readouterr().out
    assert page.startswith("no faults: onevision/finetune")
    by_hand, _, by_a_run = page.partition("not on this machine yet, fetched by a run with a network:")
    assert "stages.0.data.0.path: data/train.json does not exist. Write the path of your data." in by_hand
    assert "hf download llava-hf/llava-onevision-qwen2-0.5b-ov-hf" in by_a_run
    assert main(["check", "onevision/finetune", "weights=pretrained"]) == 3
    _, _, by_a_run = capsys.readouterr().out.partition("not on this machine yet, fetched by a run with a network:")
    assert "model.backbone.text_tokenizer: the text tokenizer of 'Qwen/Qwen2-0.5B-Instruct' is not on this" in by_a_run
    assert "the weights of 'google/siglip-so400m-patch14-384' are not on this machine. hf download google/" in by_a_run
    assert main(["check", "onevision/finetune", "save_every=0"]) == 1
    assert main(["check", "tiny/onevision"]) == 0
    assert "missing" not in capsys.readouterr().out.splitlines()[-1]


def test_plan_says_which_text_tokenizer_it_needs(capsys, tmp_path):
    file = tmp_path / "one.json"
    file.write_text('[{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]')
    assert main(["plan", "llava_next/vicuna_7b", f"data={file}"]) == 2
    assert "the text tokenizer of 'lmsys/vicuna-7b-v1.5' is not on this machine. hf download" in capsys.readouterr().err


def test_nothing_is_asked_of_a_network_where_nothing_is_to_be_fetched():
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise SystemExit('asked the network')\n"
        "socket.getaddrinfo = socket.create_connection = refuse\n"
        "from mmblocks.pretrained import *\nfrom mmblocks.errors import CheckpointError\n"
        "for read_one in (read_config, read_tokenizer, read_config_entries):\n"
        "    try:\n"
        "        with forbid_fetching(): read_one('nobody/nothing')\n"
        "    except CheckpointError as fault: print(fault)\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stdout.count("is not on this machine; fetch it: hf download nobody/nothing")) == (
        0,
        3,
    ), done.stdout + done.stderr


NAMES = [*conf.list_recipes(), *systems.list_system_names()]


@pytest.mark.parametrize("first", range(6))
def test_recipes_and_systems_are_checked_and_planned_without_a_mistake(first, capsys):
    """A sixth of them in each test of the six: all take long."""
    for name in NAMES[first::6][: 2 if first else None]:
        assert main(["check", name]) in (0, 3), name
        assert main(["plan", name]) == 0, name
    assert "a mistake of mmblocks" not in capsys.readouterr().err
