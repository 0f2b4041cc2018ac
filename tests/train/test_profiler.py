"""The panel charges every moment of a step to one phase, and counts what the step had to compute."""

import time

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmblocks.compat import make_flop_counter
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor
from mmblocks.data.sources import sources
from mmblocks.model.costs.devices import find_gpu_rates
from mmblocks.train.reports.profiler import PHASES, DeviceClock, HostClock, StepProfiler, TrainingFlops


@pytest.fixture
def batch(tiny_model):
    return batch_of(tiny_model, 6)


def batch_of(model, samples, task="single"):
    source = sources.build("tinyworld", task=task)
    return collate([Processor.from_model(model).make_training_sample(source[i]) for i in range(samples)])


def step(model, batch, panel):
    panel.count_batch(batch)
    with panel.time_phase("forward"):
        loss = model(batch).loss
    with panel.time_phase("backward"):
        loss.backward()
    with panel.time_phase("optimizer"):
        model.zero_grad()


def seconds(row):
    return {phase: row[f"seconds/{phase}"] for phase in PHASES}


class FakeTime:
    """Nanoseconds that pass only when a test says so."""

    def __init__(self):
        self.ns = 0

    def now_ns(self):
        return self.ns

    def sleep(self, by_s):
        self.ns += round(by_s * 1e9)


class OneMillisecondPerOperation(TorchDispatchMode):
    """Every operation of torch takes a millisecond of the fake time, and nothing else takes any."""

    def __init__(self, fake_time):
        super().__init__()
        self.fake_time = fake_time

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.fake_time.sleep(0.001)
        return operation(*args, **(kwargs or {}))


@pytest.fixture
def fake_time():
    return FakeTime()


def panel_of(model, fake_time, **settings):
    return StepProfiler(model, clock=HostClock(fake_time.now_ns), **settings)


def slow(module, fake_time):
    """Make the first layer inside a module take 50 ms; all else takes no time."""
    first = next(m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    return first.register_forward_hook(lambda *_: fake_time.sleep(0.05))


def test_the_phases_sum_to_the_wall_time_and_nothing_much_is_other(tiny_model, batch, fake_time):
    with panel_of(tiny_model, fake_time) as panel, OneMillisecondPerOperation(fake_time):
        panel.read_metrics()
        began = fake_time.ns
        for _ in range(10):
            step(tiny_model, batch, panel)
        row = panel.read_metrics()
    assert sum(seconds(row).values()) == pytest.approx(row["seconds/wall"], rel=1e-9)
    assert row["seconds/wall"] == (fake_time.ns - began) / 1e9
    assert row["seconds/other"] < 0.05 * row["seconds/wall"]
    assert all(row[f"seconds/{phase}"] > 0 for phase in ("encoder", "projector", "language_model", "backward"))


@pytest.mark.parametrize("part", ["encoder", "projector"])
def test_a_forward_is_split_by_part(tiny_model, batch, fake_time, part):
    slow(getattr(tiny_model, part), fake_time)
    slow(tiny_model.backbone, fake_time)
    with panel_of(tiny_model, fake_time) as panel:
        step(tiny_model, batch, panel)
        spent = seconds(panel.read_metrics())
    assert spent == dict.fromkeys(PHASES, 0.0) | {part: 0.05, "language_model": 0.05}


def test_the_backbone_is_the_language_model(tiny_model, batch, fake_time):
    slow(tiny_model.backbone, fake_time)
    with panel_of(tiny_model, fake_time) as panel:
        step(tiny_model, batch, panel)
        spent = seconds(panel.read_metrics())
    assert spent == dict.fromkeys(PHASES, 0.0) | {"language_model": 0.05}


@pytest.mark.parametrize("phase", ["evaluating", "backward"])
def test_only_a_forward_is_split(tiny_model, batch, fake_time, phase):
    """Evaluation is one figure, and what backward computes again is backward's."""
    slow(tiny_model.encoder, fake_time)
    with panel_of(tiny_model, fake_time) as panel:
        with panel.time_phase(phase):
            tiny_model(batch)
        spent = seconds(panel.read_metrics())
    assert spent == dict.fromkeys(PHASES, 0.0) | {phase: 0.05}


def test_time_is_charged_to_the_innermost_phase_also_after_an_error(tiny_model, fake_time):
    panel = panel_of(tiny_model, fake_time)

    def fails():
        fake_time.sleep(0.02)
        raise KeyError

    with panel.time_phase("saving"), pytest.raises(KeyError), panel.time_phase("evaluating"):
        fails()
    fake_time.sleep(0.03)
    spent = seconds(panel.read_metrics())
    assert spent == dict.fromkeys(PHASES, 0.0) | {"evaluating": 0.02, "other": 0.03}


def test_rows_begin_anew_and_the_table_adds_them_up(tiny_model, fake_time):
    with panel_of(tiny_model, fake_time) as panel:
        walls = []
        for took in (0.5, 0.7):
            with panel.time_phase("data"):
                fake_time.sleep(took)
            walls.append(panel.read_metrics()["seconds/wall"])
    assert walls == [0.5, 0.7]
    lines = panel.format_totals().splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.split()[0] for line in lines[1:]][:3] == ["data", "encoder", "projector"]
    assert next(line for line in lines if line.startswith("wall")).split() == ["wall", "1.2", "100.0", "%"]


def test_no_hook_is_left_behind(tiny_model):
    with StepProfiler(tiny_model):
        assert tiny_model.encoder._forward_hooks
    parts = (tiny_model.encoder, tiny_model.projector)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in parts)


def test_it_costs_less_than_a_hundredth_of_a_tiny_step(tiny_model, batch):
    """In processor time of this thread, which other processes do not change."""
    with StepProfiler(tiny_model) as panel:
        took, cost = [], []
        for _ in range(5):
            began = time.thread_time()
            step(tiny_model, batch, panel)
            took.append(time.thread_time() - began)
            began = time.thread_time()
            for _ in range(20):
                panel.count_batch(batch)
                for phase in ("data", "forward", "encoder", "projector", "backward", "optimizer"):
                    with panel.time_phase(phase):
                        pass
            cost.append((time.thread_time() - began) / 20)
    assert min(cost) < 0.01 * min(took)


def test_compiled_graphs_hold_no_clock_and_run_as_before(tiny_model, batch):
    with StepProfiler(tiny_model) as panel:
        pixels = tiny_model.normalise_pixels(batch.pixels)
        plain = tiny_model.encoder(pixels)
        with panel.time_phase("forward"):
            torch.testing.assert_close(
                torch.compile(tiny_model.encoder, backend="eager", fullgraph=True)(pixels), plain, rtol=0, atol=0
            )
    torch.compiler.reset()


# Work and peaks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frozen", [(), ("encoder",), ("encoder", "backbone"), ("encoder", "projector", "learned_tokens")]
)
def test_the_work_of_a_step_is_what_torch_counts(tiny_model, frozen):
    for part in frozen:
        getattr(tiny_model, part).requires_grad_(False)
    batch = batch_of(tiny_model, 1, "video")
    with make_flop_counter() as counter:
        tiny_model(batch).loss.backward()
    counted = TrainingFlops.from_model(tiny_model).count_flops(batch, batch.packing.lengths)
    # A first layer passes no gradient to its input, and marks are idle: the formula counts the former.
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_mfu_is_work_by_peak_and_time(tiny_model, batch, fake_time):
    panel = panel_of(tiny_model, fake_time, peak_flops=1e9)
    panel.count_batch(batch)
    fake_time.sleep(0.25)
    row = panel.read_metrics()
    work = TrainingFlops.from_model(tiny_model).count_flops(batch, batch.packing.lengths)
    assert row["mfu"] == pytest.approx(work / 1e9 / 0.25)
    assert panel.read_metrics()["mfu"] == 0


def test_packed_batches_hold_no_padding_and_padded_ones_tell(tiny_model, batch):
    from dataclasses import replace

    panel = StepProfiler(tiny_model)
    panel.count_batch(batch)
    assert panel.read_metrics()["padding_share"] == 0
    more = batch.num_tokens // 4
    panel.count_batch(replace(batch, input_ids=torch.cat([batch.input_ids, torch.zeros(more, dtype=torch.int64)])))
    assert panel.read_metrics()["padding_share"] == pytest.approx(more / (batch.num_tokens + more))


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("Somebody's card", None),
    ],
)
def test_peaks_are_known_by_the_name_of_a_gpu(name, peak):
    rates = find_gpu_rates(name)
    assert (rates and rates.peak_flops) == peak


# Clocks --------------------------------------------------------------------------------------------------------------


class Stream:
    """A device that works behind the process: events happen at `now`, whenever they were recorded."""

    def __init__(self):
        self.now, self.made = 0.0, 0

    def event(self):
        self.made += 1
        stream = self

        class Event:
            def record(self):
                self.at = stream.now

            def synchronize(self):
                pass

            def elapsed_time(self, other):
                return other.at - self.at

        return Event()


def test_on_a_device_time_is_read_from_events_and_what_they_miss_is_other(fake_time):
    stream = Stream()
    clock = DeviceClock(torch.device("cpu"), stream.event, fake_time.now_ns)
    for _ in range(2):
        for phase, ms in (("encoder", 2), ("backward", 3), ("encoder", 4), ("other", 0)):
            clock.switch_phase(phase)
            stream.now += ms
        fake_time.sleep(0.03)
        spent, wall = clock.read_times()
        assert wall == 0.03
        assert spent == pytest.approx({"encoder": 0.006, "backward": 0.003, "other": 0.021})
    assert stream.made == 6  # events are used again


def test_a_phase_goes_on_over_a_reading(fake_time):
    clock = HostClock(fake_time.now_ns)
    clock.switch_phase("saving")
    clock.read_times()
    fake_time.sleep(0.02)
    assert clock.read_times() == ({"saving": 0.02}, 0.02)


def test_without_another_clock_it_is_the_time_of_the_process():
    before = time.perf_counter_ns()
    clock = HostClock()
    began = time.perf_counter_ns()
    until = began + 1
    while time.perf_counter_ns() < until:
        pass
    ended = time.perf_counter_ns()
    _, wall = clock.read_times()
    assert ended - began <= round(wall * 1e9) <= time.perf_counter_ns() - before


@pytest.mark.gpu
def test_a_gpus_events_charge_kernels_to_the_phase_that_started_them():
    clock = DeviceClock(torch.device("cuda"))
    a = torch.randn(4096, 4096, device="cuda")
    clock.read_times()
    clock.switch_phase("backward")
    for _ in range(50):
        a @ a
    clock.switch_phase("other")
    spent, wall = clock.read_times()
    assert sum(spent.values()) == pytest.approx(wall)
    assert spent["backward"] > 0.5 * wall
