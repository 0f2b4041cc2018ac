"""What a run chooses for its device where the recipe says "auto"."""

import logging
import os

import pytest
import torch

import mmblocks.cores
from mmblocks.train.automatic import choose_workers, resolve_automatic
from mmblocks.train.optim import make_optimizer
from mmblocks.train.stages import read_run

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def curriculum(spec, stage=None, **run):
    given = {"name": "a", "data": [{"name": "tinyworld", "task": "single"}], "train": {"projector": 1e-3}, "steps": 1}
    return read_run({"model": spec, "out": "x", "stages": [{**given, "global_batch_size": 1, **(stage or {})}], **run})


def test_a_cpu_computes_in_float32_and_reads_by_itself(tiny_spec):
    chosen = resolve_automatic(curriculum(tiny_spec), CPU)
    assert (chosen.run.num_workers, chosen.stages[0].precision) == (0, "float32")


def test_what_a_recipe_says_is_kept(tiny_spec):
    given = curriculum(tiny_spec, {"precision": "bfloat16"}, workers=3)
    assert resolve_automatic(given, CPU) == given


@pytest.mark.parametrize(("cores", "processes", "workers"), [(16, 1, 8), (16, 4, 3), (4, 1, 3), (2, 2, 1), (1, 1, 1)])
def test_a_gpu_is_fed_by_the_cores_that_its_process_has(cores, processes, workers, monkeypatch):
    monkeypatch.setattr(mmblocks.cores, "count_cores", lambda: cores)
    monkeypatch.setitem(os.environ, "LOCAL_WORLD_SIZE", str(processes))
    assert choose_workers(CUDA) == workers


@pytest.mark.parametrize("has_units", [True, False])
def test_a_gpu_computes_in_bfloat16_where_it_has_units_for_it(has_units, tiny_spec, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_units)
    with caplog.at_level(logging.INFO):
        chosen = resolve_automatic(curriculum(tiny_spec, workers=0), CUDA)
    assert chosen.stages[0].precision == ("bfloat16" if has_units else "float32")
    assert ("precision=auto: bfloat16, on cuda" in caplog.text) == has_units


def test_the_optimizer_is_fused_on_cuda_alone(tiny_spec, tiny_model):
    assert make_optimizer(tiny_model, curriculum(tiny_spec).stages[0]).defaults["fused"] is None
