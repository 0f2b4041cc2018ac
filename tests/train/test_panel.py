"""The panel charges every moment of a step to one phase, and counts what the step had to compute."""

import time

import pytest
import torch
from torch import nn

from mmblocks.compat import make_flop_counter
from mmblocks.data.collate import collate
from mmblocks.data.processor import Processor
from mmblocks.data.sources import sources
from mmblocks.train.panel import PHASES, DeviceClock, HostClock, Panel, Work, gpu_peak


@pytest.fixture
def batch(tiny_model):
    return batch_of(tiny_model, 6)


def batch_of(model, samples, task="single"):
    source = sources.build("tinyworld", task=task)
    return collate([Processor.of(model).training_sample(source[i]) for i in range(samples)])


def step(model, batch, panel):
    panel.count(batch)
    with panel.during("forward"):
        loss = model(batch).mean
    with panel.during("backward"):
        loss.backward()
    with panel.during("optimizer"):
        model.zero_grad()


def seconds(row):
    return {phase: row[f"seconds/{phase}"] for phase in PHASES}


def slow(module, by=0.05):
    """Make the first layer inside a module take longer."""
    first = next(m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    return first.register_forward_hook(lambda *_: time.sleep(by))


def test_the_phases_sum_to_the_wall_time_and_nothing_much_is_other(tiny_model, batch):
    with Panel(tiny_model) as panel:
        panel.row()
        began = time.perf_counter()
        for _ in range(10):
            step(tiny_model, batch, panel)
        row = panel.row()
    assert sum(seconds(row).values()) == pytest.approx(row["seconds/wall"], rel=1e-9)
    assert row["seconds/wall"] == pytest.approx(time.perf_counter() - began, rel=0.05)
    assert row["seconds/other"] < 0.05 * row["seconds/wall"]


@pytest.mark.parametrize("part", ["encoder", "projector"])
def test_a_forward_is_split_by_part(tiny_model, batch, part):
    slow(getattr(tiny_model, part))
    with Panel(tiny_model) as panel:
        step(tiny_model, batch, panel)
        spent = seconds(panel.row())
    assert spent[part] > 0.05
    assert spent["language_model"] > 0


def test_the_backbone_is_the_language_model(tiny_model, batch):
    slow(tiny_model.backbone)
    with Panel(tiny_model) as panel:
        step(tiny_model, batch, panel)
        assert seconds(panel.row())["language_model"] > 0.05


@pytest.mark.parametrize("phase", ["evaluating", "backward"])
def test_only_a_forward_is_split(tiny_model, batch, phase):
    """Evaluation is one figure, and what backward computes again is backward's."""
    slow(tiny_model.encoder)
    with Panel(tiny_model) as panel:
        with panel.during(phase):
            tiny_model(batch)
        spent = seconds(panel.row())
    assert spent[phase] > 0.05
    assert spent["encoder"] == 0


def test_time_is_charged_to_the_innermost_phase_also_after_an_error(tiny_model):
    panel = Panel(tiny_model)

    def fails():
        time.sleep(0.02)
        raise KeyError

    with panel.during("saving"), pytest.raises(KeyError), panel.during("evaluating"):
        fails()
    time.sleep(0.02)
    spent = seconds(panel.row())
    assert spent["evaluating"] > 0.02
    assert spent["saving"] < 0.02
    assert spent["other"] > 0.02


def test_rows_begin_anew_and_the_table_adds_them_up(tiny_model, batch):
    with Panel(tiny_model) as panel:
        walls = []
        for _ in range(2):
            with panel.during("data"):
                time.sleep(0.05)
            walls.append(panel.row()["seconds/wall"])
    assert all(0.05 < wall < 1 for wall in walls)
    lines = panel.table().splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.split()[0] for line in lines[1:]][:3] == ["data", "encoder", "projector"]
    assert f"{sum(walls):.1f}" in next(line for line in lines if line.startswith("wall"))


def test_no_hook_is_left_behind(tiny_model):
    with Panel(tiny_model):
        assert tiny_model.encoder._forward_hooks
    parts = (tiny_model.encoder, tiny_model.projector)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in parts)


def test_it_costs_less_than_a_hundredth_of_a_tiny_step(tiny_model, batch):
    with Panel(tiny_model) as panel:
        took, cost = [], []
        for _ in range(5):
            began = time.perf_counter()
            step(tiny_model, batch, panel)
            took.append(time.perf_counter() - began)
            began = time.perf_counter()
            for _ in range(20):
                panel.count(batch)
                for phase in ("data", "forward", "encoder", "projector", "backward", "optimizer"):
                    with panel.during(phase):
                        pass
            cost.append((time.perf_counter() - began) / 20)
    assert min(cost) < 0.01 * min(took)


def test_compiled_graphs_hold_no_clock_and_run_as_before(tiny_model, batch):
    with Panel(tiny_model) as panel:
        pixels = tiny_model.normalised(batch.pixels)
        plain = tiny_model.encoder(pixels)
        with panel.during("forward"):
            torch.testing.assert_close(
                torch.compile(tiny_model.encoder, backend="eager", fullgraph=True)(pixels), plain, rtol=0, atol=0
            )
    torch.compiler.reset()


# Work and peaks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [(), ("encoder",), ("encoder", "backbone"), ("encoder", "projector", "marks")])
def test_the_work_of_a_step_is_what_torch_counts(tiny_model, frozen):
    for part in frozen:
        getattr(tiny_model, part).requires_grad_(False)
    batch = batch_of(tiny_model, 1, "video")
    with make_flop_counter() as counter:
        tiny_model(batch).mean.backward()
    counted = Work.of(tiny_model).for_batch(batch, batch.packing.lengths)
    # A first layer passes no gradient to its input, and marks are idle: the formula counts the former.
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_mfu_is_work_by_peak_and_time(tiny_model, batch):
    panel = Panel(tiny_model, peak_flops=1e9)
    panel.count(batch)
    row = panel.row()
    work = Work.of(tiny_model).for_batch(batch, batch.packing.lengths)
    assert row["mfu"] == pytest.approx(work / 1e9 / row["seconds/wall"])
    assert panel.row()["mfu"] == 0


def test_packed_batches_hold_no_padding_and_padded_ones_tell(tiny_model, batch):
    from dataclasses import replace

    panel = Panel(tiny_model)
    panel.count(batch)
    assert panel.row()["padding_share"] == 0
    more = batch.num_tokens // 4
    panel.count(replace(batch, input_ids=torch.cat([batch.input_ids, torch.zeros(more, dtype=torch.int64)])))
    assert panel.row()["padding_share"] == pytest.approx(more / (batch.num_tokens + more))


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
    assert gpu_peak(name) == peak


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


def test_on_a_device_time_is_read_from_events_and_what_they_miss_is_other():
    stream = Stream()
    clock = DeviceClock(torch.device("cpu"), stream.event)
    for _ in range(2):
        for phase, ms in (("encoder", 2), ("backward", 3), ("encoder", 4), ("other", 0)):
            clock.switch(phase)
            stream.now += ms
        time.sleep(0.03)
        spent, wall = clock.read()
        assert spent["encoder"] == pytest.approx(0.006)
        assert spent["backward"] == pytest.approx(0.003)
        assert sum(spent.values()) == pytest.approx(wall)
    assert stream.made == 6  # events are used again


def test_a_phase_goes_on_over_a_reading():
    clock = HostClock()
    clock.switch("saving")
    clock.read()
    time.sleep(0.02)
    assert clock.read()[0]["saving"] > 0.02


@pytest.mark.gpu
def test_a_gpus_events_charge_kernels_to_the_phase_that_started_them():
    clock = DeviceClock(torch.device("cuda"))
    a = torch.randn(4096, 4096, device="cuda")
    clock.read()
    clock.switch("backward")
    for _ in range(50):
        a @ a
    clock.switch("other")
    spent, wall = clock.read()
    assert sum(spent.values()) == pytest.approx(wall)
    assert spent["backward"] > 0.5 * wall
