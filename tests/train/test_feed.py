"""Batches reach a GPU in one copy each, and a step waits for nothing there: counted on fake tensors, which need no GPU."""

from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from mmblocks.batch import ALIGNMENT_BYTES, Batch, Instructions, list_tensors
from mmblocks.conversation import PreferencePair
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor
from mmblocks.data.sources import sources
from mmblocks.model.onevision import OneVision
from mmblocks.model.trainable import train_only
from mmblocks.train.batches import BatchFeed, StepInput
from mmblocks.train.distributed import World
from mmblocks.train.finite_guard import FiniteGuard
from mmblocks.train.objectives import objectives
from mmblocks.train.optim import make_optimizer
from mmblocks.train.reports.profiler import HostClock, StepProfiler
from mmblocks.train.stages import Stage
from mmblocks.train.step import Stepper

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
STAGE = Stage("x", [], dict.fromkeys(("encoder", "projector", "backbone"), 1e-3), steps=3, global_batch_size=3)
KINDS = {
    "images": ("single", "single", "single"),
    "several images": ("multi", "multi"),
    "videos": ("video", "video"),
    "text": ("text", "text"),
    "mixed": ("single", "text", "video", "multi"),
}


def make_batch(model: OneVision, tasks: tuple[str, ...]) -> Batch:
    processor = Processor.from_model(model)
    return collate([processor.make_training_sample(sources.build("tinyworld", task=t)[i]) for i, t in enumerate(tasks)])


def make_pairs(model: OneVision) -> Batch:
    """Two questions, each with its answer and that to another question."""
    world, processor = sources.build("tinyworld", task="single"), Processor.from_model(model)
    samples = []
    for number in range(2):
        right, other = world[number], world[number + 1000]
        wrong = replace(right, messages=(*right.messages[:-1], other.messages[-1]))
        samples += processor.make_training_samples(PreferencePair(right, wrong))
    return collate(samples)


def make_kind(model: OneVision, kind: str) -> Batch:
    if kind == "pairs":
        return make_pairs(model)
    if kind == "empty":
        return Batch.make_empty(model.encoder.view_px)
    batch = make_batch(model, KINDS.get(kind, KINDS["mixed"]))
    if kind == "features":
        return replace(batch, features=torch.randn(batch.num_views, *model.encoder.grid, model.encoder.dim).bfloat16())
    if kind == "instructions":
        questions = [torch.arange(n % 3) for n in range(batch.num_views)]
        return replace(batch, instructions=Instructions.from_ids(questions))
    return replace(batch, layout=None) if kind == "without layout" else batch


ALL_KINDS = (*KINDS, "pairs", "empty", "features", "instructions", "without layout")


def require_same_batch(one: Batch, other: Batch) -> None:
    """Values, types and shapes of all tensors, and everything else."""
    pairs = zip(*(list_tensors(replace(batch, buffer=None)) for batch in (one, other)), strict=True)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)
    assert repr(one) == repr(other)
    assert [one.plans, one.packing.lengths, one.target_rows.counts] == [
        other.plans,
        other.packing.lengths,
        other.target_rows.counts,
    ]


# A packed batch -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_packed_batch_is_the_same_batch(tiny_model, kind):
    batch = make_kind(tiny_model, kind)
    packed = batch.pack()
    assert packed.buffer is not None
    require_same_batch(packed, batch)
    for tensor in list_tensors(packed):
        assert tensor.untyped_storage().data_ptr() == packed.buffer.data_ptr()
        assert tensor.storage_offset() * tensor.itemsize % ALIGNMENT_BYTES == 0


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_packed_batch_is_moved_in_one_copy(tiny_model, kind):
    packed = make_kind(tiny_model, kind).pack()
    with CountTransfers() as counted:
        moved = packed.to("meta")
    assert (counted.copies, counted.waits) == (1, 0)
    assert {tensor.device.type for tensor in list_tensors(moved)} == {"meta"}
    assert repr(moved) == repr(packed)
    offsets = [[t.storage_offset() for t in list_tensors(batch)] for batch in (packed, moved)]
    assert offsets[0] == offsets[1]


def test_packing_again_changes_nothing(tiny_model):
    packed = make_kind(tiny_model, "mixed").pack()
    require_same_batch(packed.pack(), packed)
    assert [t.shape for t in list_tensors(packed.pack())] == [t.shape for t in list_tensors(packed)]


@pytest.mark.parametrize(
    "change",
    [
        lambda batch: replace(batch, targets=batch.targets.flip(0)),
        lambda batch: replace(batch, targets=batch.input_ids[2:]),
        lambda batch: replace(batch, pixels=batch.pixels.transpose(2, 3)),
        Batch.with_all_views,
    ],
    ids=["new memory", "a part", "another order", "all views"],
)
def test_what_replaces_a_packed_tensor_is_moved_too(tiny_model, change):
    changed = change(make_kind(tiny_model, "videos").pack())
    with FakeTensorMode(allow_non_fake_inputs=True):
        shapes = [(t.shape, t.dtype) for t in list_tensors(changed.to(GPU))]
    assert shapes == [(t.shape, t.dtype) for t in list_tensors(changed)]
    require_same_batch(changed._copy_tensors(torch.clone), changed)


def test_a_packed_batch_comes_from_a_worker_process_in_one_memory(tiny_model):
    batch = make_kind(tiny_model, "mixed")
    loader = DataLoader([StepInput((batch.pack(), None))], batch_size=None, num_workers=1)
    ((received, nothing),) = (step_input.batches for step_input in loader)
    require_same_batch(received, batch)
    assert nothing is None
    assert {tensor.untyped_storage().data_ptr() for tensor in list_tensors(received)} == {received.buffer.data_ptr()}


@pytest.mark.parametrize(
    "kind", [kind for kind in ALL_KINDS if kind != "instructions"]
)  # which its projector does not read
def test_losses_of_packed_batches_are_equal_to_the_bit(tiny_model, kind):
    batch = make_kind(tiny_model, kind if kind != "features" else "images")
    if kind == "features":
        batch = replace(batch, features=tiny_model.encode_pixels(batch.pixels).detach())
    losses = []
    for given in (batch, batch.pack()):
        objective = "dpo" if kind == "pairs" else "answers"
        step = make_stepper(deepcopy(tiny_model), World(0, 1, CPU), objective, nullcontext())
        results = [step(StepInput((given, given)), 1.0, number) for number in range(3)]
        losses.append([None if result is None else float(result.loss) for result in results])
    assert losses[0] == losses[1]


# The way to the device ----------------------------------------------------------------------------------------------


COPIES_OF_A_PASS = 1
"""Of a few numbers: which runs of rows the last layer computes."""


class CountTransfers(TorchDispatchMode):
    """Counts copies from the host to a device, and what waits for the device: other copies, and values that are read."""

    def __init__(self):
        super().__init__()
        self.copies = self.waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name == "_local_scalar_dense" and args[0].device.type != "cpu":
            self.waits += 1  # FakeTensorMode raises, too
        made = func(*args, **kwargs)
        if name in ("_to_copy", "copy_"):
            source = args[name == "copy_"]
            non_blocking = kwargs.get("non_blocking", name == "copy_" and len(args) > 2 and args[2])
            if source.device.type != made.device.type:
                self.copies += source.device.type == "cpu"
                self.waits += not non_blocking
        return made


def make_stepper(model: OneVision, world: World, objective: str, mode: AbstractContextManager) -> Stepper:
    """A stepper with the model and the frozen one of the objective, both moved to a GPU that is a fake under `mode`."""
    train_only(model, STAGE.train)
    made, reference, profiler = objectives.build(objective), deepcopy(model), StepProfiler(model, clock=HostClock())
    made.prepare_model(model, lambda: reference.requires_grad_(False))
    with mode:
        if world.device == GPU:
            place_on_fake_gpu(model)
            place_on_fake_gpu(reference)
        empty = Batch.make_empty(model.encoder.view_px).to(world.device)
    guard = FiniteGuard(at_once=world.device == CPU)
    return Stepper(model, made, make_optimizer(model, STAGE), STAGE, world, profiler, empty, guard=guard)


class Stream:
    """A stream of CUDA without a GPU: it notes what is done with it."""

    def __init__(self, name: str, done: list[str]):
        self.name, self.done = name, done

    def wait_stream(self, other: "Stream") -> None:
        self.done.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def streams(monkeypatch):
    """What happens on CUDA's streams, of which there are two: "computing", the current one, and "copying"."""
    done: list[str] = []
    computing = Stream("computing", done)

    @contextmanager
    def use(stream):
        done.append(f"begin {stream.name}")
        yield
        done.append(f"end {stream.name}")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("copying", done))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(torch.cuda, "stream", use)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: done.append(f"used by {stream.name}"))
    return done


def place_on_fake_gpu(model: nn.Module) -> None:
    """Give a model's tensors the device of a GPU and no values, under `FakeTensorMode`."""
    for part in model.modules():
        for name, own in [*part._parameters.items()]:
            if own is not None:
                empty = torch.empty(own.shape, dtype=own.dtype, device=GPU)
                part._parameters[name] = nn.Parameter(empty, requires_grad=own.requires_grad)
        for name, own in [*part._buffers.items()]:
            if own is not None:
                part._buffers[name] = torch.empty(own.shape, dtype=own.dtype, device=GPU)


@pytest.fixture
def count_step(tiny_model, streams, monkeypatch):
    """Count the transfers of a step on a GPU without one.

    Autograd has no thread for a device that is not there, so that `backward` gives gradients without values;
    `test_a_backward_pass_waits_for_nothing` counts one that is computed.
    """

    def count(batches: tuple[Batch | None, ...], objective: str = "answers") -> CountTransfers:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        step = make_stepper(tiny_model, World(0, 1, GPU), objective, mode)

        def give_gradients(total: torch.Tensor) -> None:
            for parameter in step.parameters:
                parameter.grad = torch.empty_like(parameter)

        monkeypatch.setattr(torch.Tensor, "backward", give_gradients)
        with mode:
            step(StepInput(batches), 1.0, 0)  # the optimizer makes its moments
            with CountTransfers() as counted:
                assert step(StepInput(batches), 1.0, 1) is not None
        return counted

    return count


@pytest.mark.parametrize(
    ("objective", "kind"), [*(("answers", kind) for kind in KINDS), ("answers", "without layout"), ("dpo", "pairs")]
)
def test_a_step_copies_its_batch_once_and_waits_for_nothing(tiny_model, count_step, objective, kind):
    counted = count_step((make_kind(tiny_model, kind).pack(),), objective)
    forward_passes = 2 if objective == "dpo" else 1
    assert (counted.copies, counted.waits) == (1 + COPIES_OF_A_PASS * forward_passes, 0)


def test_every_micro_batch_is_one_copy(tiny_model, count_step):
    batches = (*(make_kind(tiny_model, kind).pack() for kind in ("images", "text", "videos")), None)
    counted = count_step(batches)
    assert (counted.copies, counted.waits) == (
        3 + 4 * COPIES_OF_A_PASS,
        0,
    )  # in the place of no batch runs one on the device


def test_tensors_that_are_not_packed_are_copied_one_by_one(tiny_model, count_step):
    batch = make_kind(tiny_model, "images")
    counted = count_step((batch,))
    assert (counted.copies, counted.waits) == (len(list(list_tensors(batch))) + COPIES_OF_A_PASS, 0)
    assert counted.copies > 10


def test_an_objective_that_copies_or_waits_is_counted(tiny_model, count_step, monkeypatch):
    def compute(self, model, batch):
        result = model(batch)
        torch.tensor([1.0], device=GPU)
        result.total.to(CPU)
        return result

    monkeypatch.setattr(type(objectives.build("answers")), "__call__", compute)
    counted = count_step((make_kind(tiny_model, "images").pack(),))
    assert (counted.copies, counted.waits) == (2 + COPIES_OF_A_PASS, 2)


@pytest.mark.parametrize("kind", [*KINDS, "without layout"])
def test_a_backward_pass_waits_for_nothing(tiny_model, kind):
    train_only(tiny_model, STAGE.train)
    batch, model = make_kind(tiny_model, kind).pack().to("meta"), tiny_model.to("meta")  # reading a value raises there
    with CountTransfers() as counted:
        model(batch).loss.backward()
    assert (counted.copies, counted.waits) == (COPIES_OF_A_PASS, 0)


def test_a_blank_view_is_made_on_the_device(tiny_model):
    packed = make_kind(tiny_model, "text").pack()
    with FakeTensorMode(allow_non_fake_inputs=True):
        batch = packed.to(GPU)
        with CountTransfers() as counted:
            blank = batch.with_blank_view(tiny_model.encoder.view_px)
    assert (counted.copies, counted.waits) == (0, 0)
    assert {tensor.device for tensor in list_tensors(blank)} == {GPU}


def test_a_batch_is_copied_beside_the_computing_which_then_waits_for_it(tiny_model, streams):
    feed, batch = BatchFeed(GPU), make_kind(tiny_model, "images").pack()
    with FakeTensorMode(allow_non_fake_inputs=True):
        moved = feed.move(batch)
    assert streams[:3] == ["begin copying", "end copying", "computing waits for copying"]
    assert streams[3:] == ["used by computing"] * len(list(list_tensors(moved)))


def test_on_a_cpu_a_batch_stays_as_it_is(tiny_model):
    batch = make_kind(tiny_model, "images")
    assert BatchFeed(CPU).move(batch) is batch


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_gpu_is_given_the_same_batch(tiny_model, kind):
    batch = make_kind(tiny_model, kind)
    moved = BatchFeed(GPU).move(batch.pack().pin_memory())
    require_same_batch(moved.to(CPU), batch)
    assert all(tensor.data_ptr() % ALIGNMENT_BYTES == 0 for tensor in list_tensors(moved) if tensor.numel())
