"""The state of a run on disk, from which a stopped run resumes bit-exactly.

Trained weights, the optimizer's moments and the moving average are written by torch's distributed checkpoint, from any
number of processes and back into any number. Frozen weights are in the model that the stage started from.
"""

import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from mmblocks.errors import CheckpointError
from mmblocks.json_files import read_object
from mmblocks.storage import (
    CHECKSUMS_FILE,
    UNFINISHED_PREFIX,
    compute_checksums,
    explain_disk_errors,
    flush_folder,
    list_damage,
    remove_unfinished,
    write_checksums,
    write_json,
)
from mmblocks.train.distributed import World
from mmblocks.train.setting_changes import accept_changes
from mmblocks.train.tensors_only import TensorsOnlyPlanner, TensorsOnlyReader

STATE, RESUME_POINT, RUN = "state", "place.json", "run.json"
LEARNED_ONLY = StateDictOptions(ignore_frozen_params=True)


@dataclass(frozen=True, slots=True, order=True)
class ResumePoint:
    """The next step to take: stage number and step in it."""

    stage: int = 0
    step: int = 0

    @property
    def folder_name(self) -> str:
        return f"{self.stage}-{self.step}"


def open_run_folder(out: Path, recipe: dict[str, Any], *, resume: bool) -> ResumePoint:
    """Prepare the folder of a run and return where to begin. Raises `ConfigError` when it holds another run.

    The caller holds the folder's lock.
    """
    written = out / RUN
    if written.is_file() and not resume:
        for folder in (STATE, "stages", "best"):
            shutil.rmtree(out / folder, ignore_errors=True)
        for file in ("metrics.jsonl", "broken.jsonl", "cut.jsonl"):
            (out / file).unlink(missing_ok=True)
    elif written.is_file():
        before = read_object(
            written,
            "if this command has the settings of the run that began here, delete the file and start again; otherwise choose "
            "another folder (out=...), or begin anew with resume=false.",
        )
        accept_changes(out, before, recipe, find_resume_point(out).stage)
    (out / STATE).mkdir(parents=True, exist_ok=True)
    for folder in (out, out / STATE, out / "stages", out / "best"):
        remove_unfinished(folder)
    write_json(written, recipe)
    return find_resume_point(out)


def list_resume_points(out: Path) -> list[ResumePoint]:
    """The complete states, in the order in which they were written."""
    names = (re.fullmatch(r"(\d+)-(\d+)", path.parent.name) for path in (out / STATE).glob(f"*/{RESUME_POINT}"))
    return sorted(ResumePoint(int(name[1]), int(name[2])) for name in names if name)


def find_resume_point(out: Path) -> ResumePoint:
    """The latest complete state; the beginning where there is none."""
    return max(list_resume_points(out), default=ResumePoint())


def read_notes(out: Path, point: ResumePoint) -> dict[str, Any]:
    """The notes saved with a state; nothing at the beginning of a run."""
    file = out / STATE / point.folder_name / RESUME_POINT
    return read_object(file, explain_recovery(out, point)) if file.is_file() else {}


def explain_recovery(out: Path, point: ResumePoint) -> str:
    """What to do where a state is damaged."""
    older = max((known for known in list_resume_points(out) if known < point), default=ResumePoint())
    where = f"step {older.step} of stage {older.stage}" if older != ResumePoint() else "the beginning"
    return f"delete {out / STATE / point.folder_name} to resume from {where}, or begin anew with resume=false."


def save_state(
    out: Path,
    point: ResumePoint,
    model: nn.Module,
    optimizer: Optimizer,
    world: World,
    *,
    extra: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] | None = None,
    keep: int = 1,
) -> None:
    """Write what a run needs to resume at `point`, atomically; the last `keep` states stay.

    extra: further tensors by name, such as a moving average. notes: plain values. Every process takes part. Raises
    `StorageError` on every process where one cannot write; the earlier states are then untouched.
    """
    fresh = _to_unfinished_folder(out, point)

    def prepare_folder() -> None:
        shutil.rmtree(fresh, ignore_errors=True)
        with explain_disk_errors(fresh):
            fresh.mkdir()  # fails where the folder of the run has vanished

    world.run_on_rank0(prepare_folder)
    state = _collect_state(model, optimizer, extra)
    with explain_disk_errors(fresh):
        try:
            with _silence_torch():
                save(state, checkpoint_id=fresh, no_dist=world.is_single_process)
        except CheckpointException as cause:  # derives from BaseException
            raise _find_first_failure(cause) from cause
    checksums = world.gather_values(compute_checksums(fresh, [path.name for path in fresh.glob(f"__{world.rank}_*")]))

    def publish_state() -> None:
        with explain_disk_errors(fresh):
            write_json(fresh / RESUME_POINT, {**asdict(point), **(notes or {})})
            write_checksums(fresh, {name: digest for found in checksums for name, digest in found.items()})
            _move_into_place(fresh, out / STATE / point.folder_name)
            for old in list_resume_points(out)[:-keep]:
                shutil.rmtree(out / STATE / old.folder_name)

    world.run_on_rank0(publish_state)


def begin_stage(out: Path, stage: int, world: World, *, notes: Mapping[str, Any] | None = None) -> None:
    """Write that a stage is next; the states of the stage before are removed."""

    def write_stage_start() -> None:
        fresh = _to_unfinished_folder(out, ResumePoint(stage))
        with explain_disk_errors(fresh):
            fresh.mkdir(exist_ok=True)
            write_json(fresh / RESUME_POINT, {**asdict(ResumePoint(stage)), **(notes or {})})
            write_checksums(fresh)
            _move_into_place(fresh, out / STATE / ResumePoint(stage).folder_name)
            for old in list_resume_points(out):
                if old.stage < stage:
                    shutil.rmtree(out / STATE / old.folder_name)

    world.run_on_rank0(write_stage_start)


def restore_state(
    out: Path,
    point: ResumePoint,
    model: nn.Module,
    optimizer: Optimizer,
    world: World,
    *,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Fill model, optimizer and the tensors of `extra` in point from the state written at `point`.

    Learning rates and other settings of the optimizer stay as they are. Raises `CheckpointError` where a file is damaged.
    """
    folder = out / STATE / point.folder_name

    def require_undamaged() -> None:
        try:
            file = folder / CHECKSUMS_FILE
            damaged = list_damage(folder) if file.is_file() else [f"{file} is missing"]
            if not damaged:
                TensorsOnlyReader(folder).read_metadata()  # where this fails, older torch says only that there are none
        except CheckpointError as cause:
            damaged = [str(cause)]
        if damaged:
            raise CheckpointError("\n".join([*damaged, f"To resume all the same: {explain_recovery(out, point)}"]))

    world.run_on_rank0(require_undamaged)
    state = _collect_state(model, optimizer, extra)
    try:
        with _silence_torch():
            reader, planner = TensorsOnlyReader(folder), TensorsOnlyPlanner()
            load(state, storage_reader=reader, planner=planner, no_dist=world.is_single_process)
    except CheckpointException as cause:  # derives from BaseException
        raise CheckpointError(
            f"{folder} cannot be read ({_find_first_failure(cause)}); {explain_recovery(out, point)}"
        ) from cause
    set_model_state_dict(model, state["model"], options=StateDictOptions(ignore_frozen_params=True, strict=False))
    moments: Any = {**get_optimizer_state_dict(model, optimizer, options=LEARNED_ONLY), "state": state["moments"]}
    set_optimizer_state_dict(model, optimizer, moments, options=LEARNED_ONLY)


def _collect_state(model: nn.Module, optimizer: Optimizer, extra: Mapping[str, Any] | None) -> dict[str, Any]:
    """Tensors only: learning rates and weight decays are read from the recipe."""
    return {
        "model": get_model_state_dict(model, options=LEARNED_ONLY),
        "moments": get_optimizer_state_dict(model, optimizer, options=LEARNED_ONLY)["state"],
        "extra": dict(extra or {}),
    }


def _to_unfinished_folder(out: Path, point: ResumePoint) -> Path:
    return out / STATE / f".{point.folder_name}{UNFINISHED_PREFIX}state"


@contextmanager
def _silence_torch() -> Iterator[None]:
    """Hide torch's warnings that there is one process only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(single process|process group)")
        yield


def _find_first_failure(failure: CheckpointException) -> BaseException:
    """The error of the first process that failed."""
    return min(failure.failures.items())[1][0]


def _move_into_place(fresh: Path, folder: Path) -> None:
    """Rename a folder such that after a power cut it is complete or absent."""
    shutil.rmtree(folder, ignore_errors=True)
    fresh.replace(folder)
    flush_folder(folder.parent)
