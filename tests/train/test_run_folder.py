"""The folder of a run: one process at a time, whole files, and a damaged file that is named with the way back."""

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from mmblocks.errors import BusyError, CheckpointError
from mmblocks.lock import LOCK, lock_folder
from mmblocks.storage import CHECKSUMS_FILE, compute_checksums
from mmblocks.train import run, stage_run, state
from mmblocks.train.tensors_only import TensorsOnlyPlanner, TensorsOnlyReader

FORK = multiprocessing.get_context("fork")


# One run per folder -------------------------------------------------------------------------------------------------


def hold(folder, there):
    with lock_folder(folder):
        there.touch()
        time.sleep(100)


@pytest.fixture
def holder(tmp_path):
    """The process that is at work in `tmp_path/run`."""
    process = FORK.Process(target=hold, args=(tmp_path / "run", tmp_path / "there"))
    process.start()
    while not (tmp_path / "there").exists():
        time.sleep(0.01)
    yield process
    process.kill()
    process.join()


def test_a_second_start_is_refused_with_host_and_process(recipe, holder):
    with pytest.raises(BusyError, match=f"run is in use by process {holder.pid} on {socket.gethostname()}; wait until"):
        run(recipe)
    with pytest.raises(BusyError):
        run({**recipe, "resume": False})
    assert not (Path(recipe["out"]) / "run.json").exists()


def test_a_second_start_on_two_processes_is_refused_on_both(recipe, holder, trained):
    assert trained(recipe, ranks=2) == [1, 1]


def test_the_lock_of_a_killed_process_is_none(recipe, holder):
    holder.kill()
    holder.join()
    assert json.loads((Path(recipe["out"]) / LOCK).read_text())["pid"] == holder.pid
    assert run(recipe).is_dir()


def test_a_killed_run_s_data_workers_hold_no_lock(recipe, tmp_path, trained):
    """Forked while the run holds its lock, they may live on for seconds."""

    def patch(rank):
        def made(batches, number):
            (tmp_path / "worker").write_text(str(os.getpid()))
            time.sleep(100)

        stage_run.StageBatches.__getitem__ = made
        real = stage_run.iterate_batches

        def then_killed(*arguments):
            waiting = real(*arguments)
            while not (tmp_path / "worker").exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
            return waiting

        stage_run.iterate_batches = then_killed

    assert trained({**recipe, "workers": 1}, patch=patch) == [-signal.SIGKILL]
    try:
        assert run(recipe).is_dir()
    finally:
        with suppress(ProcessLookupError):
            os.kill(int((tmp_path / "worker").read_text()), signal.SIGKILL)


def test_one_process_does_not_train_twice_in_a_folder(recipe):
    with lock_folder(Path(recipe["out"])):
        for _ in range(2):  # the refusal must not end the lock
            with pytest.raises(BusyError, match=rf"in use by this process \({os.getpid()}\)"):
                run(recipe)


# Damaged files ------------------------------------------------------------------------------------------------------


def empty(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def not_text(path):
    path.write_bytes(b"\xff\xfe\x00" + path.read_bytes())


def one_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def gone(path):
    path.unlink()


@pytest.fixture(scope="module")
def killed(recipe_in, trained, killed_in_step, tmp_path_factory):
    """The recipe and the folder of a run killed in its second stage, with the states after its second and fourth step."""
    out = tmp_path_factory.mktemp("killed") / "run"
    recipe = {**recipe_in(out), "keep": 2}
    assert trained(recipe, patch=killed_in_step(8)) == [-signal.SIGKILL]
    assert state.list_resume_points(out) == [state.ResumePoint(1, 2), state.ResumePoint(1, 4)]
    return recipe


@pytest.fixture
def stopped(killed, tmp_path):
    """A copy of it."""
    return {**killed, "out": str(shutil.copytree(killed["out"], tmp_path / "run"))}


STATE_FILES = ("place.json", ".metadata", "__0_0.distcp", CHECKSUMS_FILE)
DAMAGES = [(file, damage) for file in STATE_FILES for damage in (empty, cut, not_text, one_bit, gone)]
NO_STATE = ("place.json", gone)  # that of before is the last one then


@pytest.mark.parametrize(("file", "damage"), [pair for pair in DAMAGES if pair != NO_STATE])
def test_a_damaged_state_is_named_and_the_older_one_goes_on(stopped, undisturbed, weights, same, file, damage):
    broken = Path(stopped["out"]) / "state/1-4"
    damage(broken / file)
    with pytest.raises(
        CheckpointError, match=f"state/1-4/{file}(?s:.*)delete .*1-4 to resume from step 2 of stage 1, or"
    ):
        run(stopped)
    for path in broken.iterdir():
        path.unlink()
    broken.rmdir()
    assert same(weights(run(stopped)), weights(undisturbed(stopped) / "model"))


def test_two_processes_both_refuse_a_damaged_state(stopped, trained):
    cut(Path(stopped["out"]) / "state/1-4/__0_0.distcp")
    assert trained(stopped, ranks=2) == [1, 1]


def test_without_an_older_state_the_way_back_is_the_beginning(recipe, trained, killed_in_step):
    assert trained(recipe, patch=killed_in_step(3)) == [-signal.SIGKILL]
    one_bit(Path(recipe["out"]) / "state/0-2/__0_0.distcp")
    with pytest.raises(CheckpointError, match=r"delete .*state/0-2 to resume from the beginning, or begin anew"):
        run(recipe)


@pytest.mark.parametrize("damage", [empty, cut, not_text])
def test_a_damaged_recipe_of_the_run_is_named(stopped, undisturbed, weights, same, damage):
    file = Path(stopped["out"]) / "run.json"
    damage(file)
    with pytest.raises(CheckpointError, match=r"run\.json cannot be read .* delete the file and start again"):
        run(stopped)
    file.unlink()
    assert same(weights(run(stopped)), weights(undisturbed(stopped) / "model"))


@pytest.mark.parametrize("damage", [cut, one_bit, gone])
def test_a_damaged_model_of_a_stage_is_named(stopped, damage):
    damage(Path(stopped["out"]) / "stages/0-align/projector/model.safetensors")
    with pytest.raises(CheckpointError, match=r"stages/0-align/projector/model\.safetensors"):
        run(stopped)


def test_what_a_killed_save_has_left_is_removed_at_the_next_start(stopped):
    out = Path(stopped["out"])
    left = [out / name for name in (".model.part-a", "stages/.1-all.part-b", "state/.1-4.part-c", "best/.1-all.part-d")]
    for folder in left:
        (folder / "encoder").mkdir(parents=True)
        (folder / "encoder/model.safetensors").write_bytes(b"half")
    (out / ".run.json.part-e").write_text("{")
    run(stopped)
    hidden = [path for path in out.rglob(".*") if path.name != ".metadata"]
    assert hidden == []


# What a state may hold ----------------------------------------------------------------------------------------------


class Evil:
    """Pickled, it runs a command when it is read."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return os.system, (f"touch {self.witness}",)


def test_code_in_a_state_s_metadata_is_not_run(stopped, tmp_path):
    folder = Path(stopped["out"]) / "state/1-4"
    (folder / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "witness")))
    listed = compute_checksums(folder, [path.name for path in folder.iterdir() if path.name != CHECKSUMS_FILE])
    (folder / CHECKSUMS_FILE).write_text("".join(f"{digest}  {name}\n" for name, digest in listed.items()))
    with pytest.raises(CheckpointError, match=r"names posix\.system, which describes no tensor"):
        run(stopped)
    assert not (tmp_path / "witness").exists()


def test_code_in_place_of_a_tensor_is_not_run(tmp_path):
    save({"a": Evil(tmp_path / "witness")}, checkpoint_id=tmp_path / "state", no_dist=True)
    given = {"storage_reader": TensorsOnlyReader(tmp_path / "state"), "planner": TensorsOnlyPlanner(), "no_dist": True}
    with pytest.raises(CheckpointException, match="a is no tensor; a state holds tensors only"):
        load({"a": torch.zeros(2)}, **given)
    assert not (tmp_path / "witness").exists()


def test_a_state_holds_tensors_alone(stopped):
    """So that nothing has to be unpickled: rates and decays are the recipe's to say."""
    metadata = TensorsOnlyReader(Path(stopped["out"]) / "state/1-4").read_metadata()
    assert {type(item).__name__ for item in metadata.state_dict_metadata.values()} == {"TensorStorageMetadata"}
    assert any(name.endswith("exp_avg_sq") for name in metadata.state_dict_metadata)
