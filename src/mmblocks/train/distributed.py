"""One process or many under torchrun: the process group, values that processes share, and the sharded model (FSDP2).

A single process joins no group and shards nothing; apart from that both run the same code.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from mmblocks.errors import ConfigError
from mmblocks.model.onevision import OneVision
from mmblocks.train.stop_signals import StopRequest, StopRequested

RANK0_TIMEOUT = timedelta(days=2)
"""How long the first process may work alone, such as measuring millions of records."""
REPORT_METHODS = ("compute_row_losses", "compute_row_hits")
"""Methods of the model, beside its forward pass, that evaluation and the visual ablation call."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class World:
    """The processes of a run: this one's rank, how many there are, and this one's device.

    rank0_group: the process group in which others wait, with a long timeout, for what rank 0 does alone.
    stopping: whether this process has received a signal to stop.
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
        """The sum of each value over all processes, in float64."""
        if self.is_single_process:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(numbers)
        return numbers.tolist()

    def is_asked_to_stop(self) -> bool:
        """Whether any process has received a signal to stop; the same answer on all of them."""
        return self.sum_over_processes(float(bool(self.stopping))) != [0.0]

    def gather_values(self, value: T) -> list[T]:
        """The picklable values of all processes, on all of them."""
        if self.is_single_process:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.rank0_group)
        return values

    def wait_for_all(self) -> None:
        """Return when every process has come here."""
        if not self.is_single_process:
            dist.barrier()

    def run_on_rank0(self, make: Callable[[], T]) -> T:
        """Call `make` on rank 0 and return its picklable result on all processes; an error there is raised on all."""
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
    """The process group that torchrun has started this process in, or this process alone."""
    stopping = StopRequest() if stopping is None else stopping
    size, own_device = int(os.environ.get("WORLD_SIZE", "1")), choose_device(device)
    if size == 1:
        yield World(0, 1, own_device, stopping=stopping)
        return
    backend = "gloo"
    if own_device.type == "cuda":
        if own_device.index is not None:
            raise ConfigError(
                f"device={own_device}: under torchrun each process takes its own GPU; write device=cuda or auto."
            )
        own_device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(own_device)
        backend = "cpu:gloo,cuda:nccl"  # counts and states are sent without waiting for a GPU
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    try:
        yield World(dist.get_rank(), size, own_device, dist.new_group(backend="gloo", timeout=RANK0_TIMEOUT), stopping)
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


# Sharding -----------------------------------------------------------------------------------------------------------


def list_blocks(model: OneVision) -> list[nn.Module]:
    """The repeated blocks of encoder and backbone, which are sharded, checkpointed and compiled one by one."""
    return [*_find_blocks(model.encoder), *_find_blocks(model.backbone)]


def _find_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Members of the outermost lists (ModuleList, Sequential) of two or more modules of one class with weights."""
    for child in module.children():
        members = list(child) if isinstance(child, nn.ModuleList | nn.Sequential) else []
        if len(members) > 1 and len(set(map(type, members))) == 1 and any(True for _ in members[0].parameters()):
            yield from members
        else:
            yield from _find_blocks(child)


def shard_model(model: OneVision, world: World, precision: str, methods: Iterable[str] = ()) -> None:
    """Shard the weights over all processes: each holds its share and gathers a block only while it runs.

    methods: what the stage's objective calls on the model beside its forward pass (`Objective.model_methods`).
    """
    if world.is_single_process:
        return
    settings: dict[str, Any] = {"mesh": init_device_mesh(world.device.type, (world.size,))}
    if precision == "bfloat16":
        settings["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in list_blocks(model):
        fully_shard(block, **settings)
    fully_shard(model, **settings)
    for method in {*REPORT_METHODS, *methods}:
        register_fsdp_forward_method(model, method)


def load_from_rank0(model: OneVision, whole: OneVision | None, world: World) -> None:
    """Give a sharded model on the meta device the weights and buffers of the whole one that rank 0 holds."""
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


def gather_state_dict(model: OneVision, world: World, *, on_all: bool = False) -> dict[str, Tensor]:
    """The whole state dict on the CPU of rank 0, empty on the others; or on the device of each process."""
    if world.is_single_process:
        return model.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=not on_all)
    return cast(dict[str, Tensor], get_model_state_dict(model, options=options))


def set_gradient_sync(model: nn.Module, now: bool) -> None:
    """Whether the next backward reduces gradients over processes, or leaves them where they were computed."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
