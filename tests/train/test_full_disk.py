"""Disks that are full, read-only or gone: one sentence with the path and the room left, and the old state stays."""

import re
import resource
import shutil
import subprocess
import sys

import pytest

import mmblocks
from mmblocks.cli import main
from mmblocks.errors import StorageError
from mmblocks.train import loop, run, stage_run, state

ROOM = r"\(\d+\.\d [GM]B free on its disk\)"


def files_stay_below(size):
    """From now on no file of this process grows beyond `size` bytes, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def said_to(file, error):
    file.write_text(f"{type(error).__name__}: {error}")


@pytest.fixture
def full_in_step(tmp_path):
    """A patch for `trained`: the disk is full from the `call`th step on; what the run says then is in `tmp_path/saidN`."""

    def patched(call, ranks=(0, 1)):
        def patch(rank):
            real, calls = stage_run.Stepper.__call__, []

            def step(*arguments):
                calls.append(1)
                if len(calls) == call and rank in ranks:
                    files_stay_below(1000)
                return real(*arguments)

            stage_run.Stepper.__call__ = step
            whole_run = loop.Training.run

            def told(self):
                try:
                    return whole_run(self)
                except Exception as error:
                    files_stay_below(resource.RLIM_INFINITY)
                    said_to(tmp_path / f"said{rank}", error)
                    raise

            loop.Training.run = told

        return patch

    return patched


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_full_disk_at_a_save_leaves_the_old_state_and_the_run_goes_on_from_it(
    recipe, tmp_path, trained, undisturbed, weights, ranks, full_in_step
):
    recipe = {**recipe, "log_every": 1000}
    assert trained(recipe, ranks=ranks, patch=full_in_step(5)) == [1] * ranks
    for rank in range(ranks):
        said = (tmp_path / f"said{rank}").read_text()
        assert re.match(rf"StorageError: .*/run.*: .* {ROOM}\. What was there before", said), said
        assert "\n" not in said
    assert state.list_resume_points(tmp_path / "run") == [state.ResumePoint(1, 0)]
    assert trained(recipe, ranks=ranks) == [0] * ranks
    once, whole = weights(tmp_path / "run/model"), weights(undisturbed(recipe, ranks=ranks) / "model")
    assert all((once[name] - whole[name]).abs().max() < 1e-5 for name in whole)


def test_a_full_disk_when_a_stage_s_model_is_written(
    recipe, tmp_path, trained, undisturbed, weights, same, full_in_step
):
    rarely = {**recipe, "save_every": 1000, "log_every": 1000}
    assert trained(rarely, patch=full_in_step(3)) == [1]
    said = (tmp_path / "said0").read_text()
    assert re.match(rf"StorageError: .*{ROOM}\. What was there before is as it was; make room", said), said
    assert not list((tmp_path / "run/stages").iterdir())
    assert same(weights(run(rarely)), weights(undisturbed(rarely) / "model"))


def test_a_metrics_file_that_cannot_grow_is_named(recipe, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=rf"run.*: No space left on device {ROOM}"):
        run(recipe)


def test_a_folder_that_vanishes_is_named(recipe, tmp_path, monkeypatch):
    real, calls = stage_run.Stepper.__call__, []

    def step(*arguments):
        calls.append(1)
        if len(calls) == 2:
            shutil.rmtree(tmp_path / "run")
        return real(*arguments)

    monkeypatch.setattr(stage_run.Stepper, "__call__", step)
    with pytest.raises(StorageError, match=rf"run/.*: No such file or directory {ROOM}"):
        run(recipe)


@pytest.mark.parametrize("folder", ["/proc/no/run", "/sys/run", "/dev/null/run"])
def test_a_folder_that_cannot_be_made_is_one_line_of_the_command(folder, capsys):
    assert main(["train", "tiny/onevision", f"out={folder}"]) in (1, 2)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.match(rf"mmblocks: {folder[:5]}.*: .* {ROOM}", said), said


def test_a_read_only_folder_is_named(tmp_path):
    """As somebody else than root, whom no folder is read-only for."""
    locked = tmp_path / "locked"
    locked.mkdir()
    tmp_path.chmod(0o755)
    code = (
        "import os, sys, pathlib; from mmblocks.storage import replace_folder, StorageError\n"
        "os.chdir(sys.argv[1]); os.chmod('locked', 0o555)\n"
        "if os.geteuid() == 0: os.setegid(65534); os.seteuid(65534)\n"
        "try:\n"
        "    with replace_folder(pathlib.Path('locked/model')): pass\n"
        "except StorageError as error: print(error)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout
    assert re.match(rf"locked/\.model.*: Permission denied {ROOM}", said), said


def test_a_model_that_does_not_fit_leaves_the_one_before(tiny_model, tmp_path, weights, same):
    folder = mmblocks.save(tiny_model, tmp_path / "m")
    before = weights(folder)
    code = (
        "import resource, sys, mmblocks\n"
        "model = mmblocks.load(sys.argv[1])\n"
        "model.projector.head.weight.data.zero_()\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))\n"
        "try:\n"
        "    mmblocks.save(model, sys.argv[1])\n"
        "except mmblocks.errors.StorageError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True).stdout
    assert re.search(rf"File too large.*{ROOM}", said, re.S), said
    assert same(weights(folder), before)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
