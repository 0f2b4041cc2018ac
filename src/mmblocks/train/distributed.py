"""One process or many under torchrun: who takes part, how the model is sharded over them (FSDP2), how they agree.

A single process joins no group and shards nothing; everything else runs the same code.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from mmblocks.errors import ConfigError
from mmblocks.model.onevision import OneVision
from mmblocks.train.stopping import StopRequest, StopRequested

RANK0_TIMEOUT = timedelta(days=2)
"""What the first process may take for work of its own, such as measuring millions of records."""


@dataclass(frozen=True, slots=True)
class World:
    """The processes of a run: this one's number, how many there are, and this one's device.

    patient: the group in which the others wait for what the first process alone does, however long that takes.
    stopping: whether this process was asked to stop.
    """

    rank: int
    size: int
    device: torch.device
    rank0_group: Any = None
    stopping: StopRequest = field(default_factory=StopRequest)

    @property
    def is_rank0(self) -> bool:
        return self.rank == 0

    @property
    def is_single_process(self) -> bool:
        return self.size == 1

    def sum_over_processes(self, *values: float) -> list[float]:
        """Each value added over all processes, in float64."""
        if self.is_single_process:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(numbers)
        return numbers.tolist()

    def is_asked_to_stop(self) -> bool:
        """Whether some process was asked to stop; all get the same answer."""
        return self.sum_over_processes(float(bool(self.stopping))) != [0.0]

    def gather_values(self, value: Any) -> list[Any]:
        """The plain values of all processes, on all of them."""
        if self.is_single_process:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.rank0_group)
        return values

    def wait_for_all(self) -> None:
        """Until every process is here."""
        if not self.is_single_process:
            dist.barrier()

    def run_on_rank0(self, make: Callable[[], Any]) -> Any:
        """What the first process makes (plain values), on all of them; an error there is raised on all."""
        if self.is_single_process:
            return make()
        box: list[Any] = [None, None]
        if self.is_rank0:
            try:
                box[0] = make()
            except (Exception, StopRequested) as error:
                box[1] = error
        dist.broadcast_object_list(box, src=0, group=self.rank0_group)
        if box[1] is not None:
            raise box[1]
        return box[0]


@contextmanager
def join_processes(device: str, timeout_s: float, stopping: StopRequest | None = None) -> Iterator[World]:
    """The world that torchrun has started this process in, or this process alone."""
    stopping = StopRequest() if stopping is None else stopping
    size, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    if size == 1:
        yield World(0, 1, choose_device(device), stopping=stopping)
        return
    own = _own_device(choose_device(device), local)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    backend = (
        "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
    )  # counts and states travel without waiting for a GPU
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    try:
        yield World(dist.get_rank(), size, own, dist.new_group(backend="gloo", timeout=RANK0_TIMEOUT), stopping)
    finally:
        dist.destroy_process_group()


def choose_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one, the CPU elsewhere."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as cause:
        raise ConfigError(f"device={name!r}: {cause}; write auto, cpu or cuda.") from cause


def _own_device(device: torch.device, local_rank: int) -> torch.device:
    if device.type != "cuda":
        return device
    if device.index is not None:
        raise ConfigError(f"device={device}: under torchrun each process takes its own GPU; write device=cuda or auto.")
    return torch.device("cuda", local_rank)


# Sharding -----------------------------------------------------------------------------------------------------------


def list_blocks(model: OneVision) -> list[nn.Module]:
    """The repeated blocks of encoder and backbone: what is gathered, recomputed and compiled one at a time."""
    return [*_find_blocks(model.encoder), *_find_blocks(model.backbone)]


def _find_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Members of the outermost lists (ModuleList, Sequential) of two or more like modules with weights."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.Sequential) and _are_alike(list(child)):
            yield from child
        else:
            yield from _find_blocks(child)


def _are_alike(modules: list[nn.Module]) -> bool:
    kinds = {type(module) for module in modules}
    return len(modules) > 1 and len(kinds) == 1 and any(True for _ in modules[0].parameters())


def shard_model(model: OneVision, world: World, precision: str) -> None:
    """Spread the weights over all processes: each holds its share and gathers a block only while it runs."""
    if world.is_single_process:
        return
    mesh = init_device_mesh(world.device.type, (world.size,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    settings: dict[str, Any] = {"mesh": mesh}
    if precision == "bfloat16":
        settings["mp_policy"] = policy
    for block in list_blocks(model):
        fully_shard(block, **settings)
    fully_shard(model, **settings)
    for entry in ("compute_row_losses", "compute_row_hits"):  # ways into the model beside its forward
        register_fsdp_forward_method(model, entry)


def load_from_rank0(model: OneVision, whole: OneVision | None, world: World) -> None:
    """Give a sharded model on the meta device the weights and buffers of the whole one that the first process holds."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    model.to_empty(device=world.device)
    full = dict(whole.state_dict()) if whole is not None else {}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, full, options=options)
    theirs = dict(whole.named_buffers()) if whole is not None else {}
    for name, buffer in model.named_buffers():
        if name in theirs:
            buffer.copy_(theirs[name])
        dist.broadcast(buffer, src=0)


def gather_state_dict(model: OneVision, world: World) -> dict[str, Tensor]:
    """The whole state dict on the CPU of the first process; empty on the others."""
    if world.is_single_process:
        return model.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    whole: Any = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return whole


def set_gradient_sync(model: nn.Module, now: bool) -> None:
    """Whether the next backward adds gradients up over processes, or leaves them where they were computed."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
