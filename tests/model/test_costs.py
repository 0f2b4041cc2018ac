"""The cost module says what torch counts: FLOPs of forward and backward for every choice of parts, bytes on the meta device."""

from itertools import chain, combinations

import pytest
import torch
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

import mmblocks
from mmblocks.compat import make_flop_counter
from mmblocks.conf import compose
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor
from mmblocks.data.sources import sources
from mmblocks.model.checks.composition import dry_build
from mmblocks.model.costs.devices import DEVICES, find_device_rates, find_peak_flops
from mmblocks.model.costs.flops import FORWARD, ForwardFlops, PassCounts
from mmblocks.model.costs.state import ParameterCount, StateBytes
from mmblocks.model.trainable import train_only
from mmblocks.train.adapters.lora import add_lora
from mmblocks.train.distributed import list_blocks
from mmblocks.train.estimates.memory import estimate_stage_memory, estimate_stage_states, read_stages
from mmblocks.train.reports.profiler import StepProfiler, TrainingFlops
from mmblocks.train.stages import Lora

TRAINABLE = ("encoder", "projector", "learned_tokens", "backbone")
SUBSETS = [names for size in range(len(TRAINABLE) + 1) for names in combinations(TRAINABLE, size)]


@pytest.fixture
def spec(tiny_spec):
    """Deep and wide enough that first layers, whose inputs need no gradients, are a small share."""
    encoder = {"name": "siglip", "image_px": 56, "patch_px": 14, "dim": 96, "depth": 5, "heads": 4, "mlp_dim": 384}
    backbone = {**tiny_spec["backbone"], "depth": 6, "dim": 64, "mlp_dim": 192}
    return {**tiny_spec, "encoder": encoder, "backbone": backbone}


@pytest.fixture
def model(spec):
    return mmblocks.build(spec, seed=0).train()


def batch_of(model, task="video"):
    source = sources.build("tinyworld", task=task)
    return collate([Processor.from_model(model).make_training_sample(source[i]) for i in range(2)])


def counted_by_torch(model, batch):
    """FLOPs of forward and backward, of attention the causal half, as the cost module counts it."""
    with make_flop_counter() as counter:
        loss = model(batch).loss
        if loss.requires_grad:
            loss.backward()
    by_operator = {str(operator): n for operator, n in counter.get_flop_counts()["Global"].items()}
    causal = sum(n for name, n in by_operator.items() if "varlen_attention" in name)
    return sum(by_operator.values()) - causal / 2


def counted(model, batch, passes):
    flops = ForwardFlops.from_dry_build(dry_build(model.spec))
    return flops.count_batch(batch, batch.packing.lengths, batch.target_rows.counts, passes)


@torch.no_grad()
@pytest.mark.parametrize("task", ["single", "multi", "video"])
def test_a_forward_pass_costs_what_torch_counts(model, task):
    batch = batch_of(model, task)
    assert counted(model, batch, FORWARD) == pytest.approx(counted_by_torch(model, batch), rel=0.01)


@pytest.mark.parametrize("learning", SUBSETS, ids=lambda names: "+".join(names) or "nothing")
def test_forward_and_backward_cost_what_torch_counts_whatever_learns(model, learning):
    train_only(model, learning)
    batch = batch_of(model)
    passes = PassCounts.from_learning(dict.fromkeys(learning, 1.0))
    # 0.04: inputs of the first layers need no gradients; attention's backward computes its scores once more
    assert counted(model, batch, passes) == pytest.approx(counted_by_torch(model, batch), rel=0.04)


def test_adapters_cost_the_way_back_and_no_gradients_of_weights(model):
    add_lora(model, Lora(1e-3, rank=2))
    train_only(model, ["lora"])
    batch = batch_of(model)
    # 0.1: what the adapters themselves multiply does not count
    assert counted(model, batch, PassCounts.from_learning({"lora": 1.0})) == pytest.approx(
        counted_by_torch(model, batch), rel=0.1
    )


@pytest.mark.parametrize("learning", [("projector",), TRAINABLE], ids="+".join)
def test_gradient_checkpointing_costs_another_forward_pass_of_the_blocks_that_backward_reaches(model, learning):
    train_only(model, learning)
    for block in list_blocks(model):
        block.forward = again_in_backward(block.forward)
    passes = PassCounts.from_learning(dict.fromkeys(learning, 1.0), gradient_checkpointing=True)
    batch = batch_of(model)
    with set_checkpoint_early_stop(False):  # else torch leaves out the last product of each block
        # 0.05: as above, and gradients of pixels, which nobody needs, are a tenth of so small an encoder
        assert counted(model, batch, passes) == pytest.approx(counted_by_torch(model, batch), rel=0.05)


def again_in_backward(forward):
    return lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


# MFU ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learning", [("projector",), ("backbone",), TRAINABLE], ids="+".join)
@pytest.mark.parametrize("task", ["single", "text", "video"])
def test_the_profiler_never_counts_more_than_is_computed(model, learning, task):
    train_only(model, learning)
    batch = batch_of(model, "single" if task == "text" else task)
    if task == "text":
        batch = text_alone(model)
    needed = TrainingFlops.from_model(model).count_flops(batch, batch.packing.lengths)
    # 3 %: gradients of pixels, which nobody needs, are a tenth of so small an encoder, and a thousandth of a real one
    assert 0.85 * counted_by_torch(model, batch) < needed < 1.03 * counted_by_torch(model, batch)


def text_alone(model):
    from mmblocks.conversation import Conversation

    words = [{"role": "user", "content": "red " * 20}, {"role": "assistant", "content": "blue " * 20}]
    sample = Processor.from_model(model).make_training_sample(Conversation.from_messages(words, "text"))
    return collate([sample])


def test_there_is_no_mfu_where_no_peak_is_known(model):
    assert find_device_rates(torch.device("cpu")) is None
    assert find_peak_flops(torch.device("cpu")) is None
    assert "mfu" not in StepProfiler(model).read_metrics()
    assert all(rates.peak_flops > (rates.reached_flops or 0) for rates in DEVICES.values())


# Bytes --------------------------------------------------------------------------------------------------------------


def test_weights_gradients_and_moments_are_float32_and_frozen_parts_are_only_stored(model):
    train_only(model, ["projector"])
    count = ParameterCount.from_parameters(model.parameters())
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in model.parameters()}
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning)
    for parameter in learning:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [s[name] for s in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert StateBytes.from_numbers(count.whole, count.learning) == StateBytes(
        weights=sum(storages.values()),
        gradients=sum(p.grad.untyped_storage().nbytes() for p in learning),
        optimizer=sum(t.untyped_storage().nbytes() for t in moments),
    )


@pytest.mark.parametrize("name", ["tiny/onevision", "onevision/0_5b"])
def test_both_pages_of_plan_say_the_same_of_a_stage(name):
    recipe = compose(name)
    states = estimate_stage_states(recipe, dry_build(recipe["model"]))
    stages = {stage.name: stage for stage in read_stages(recipe)}
    assert list(states) == list(stages)
    chosen = [*stages][-1]
    (memory,) = estimate_stage_memory(recipe["model"], stages[chosen], [1])
    assert states[chosen].total == memory.state_bytes


def test_adapters_are_part_of_a_stages_state(tiny_spec):
    lora = {"name": "a", "data": [{"name": "tinyworld"}], "train": {"lora": {"lr": 1e-3, "rank": 2}}, "steps": 1}
    recipe = {"model": tiny_spec, "stages": [{**lora, "global_batch_size": 1}]}
    state = estimate_stage_states(recipe, dry_build(tiny_spec))["a"]
    whole = sum(p.numel() for p in chain.from_iterable(part.parameters() for part in parts_of(tiny_spec)))
    assert 0 < state.gradients < state.weights - 4 * whole + 1 < 4 * whole
    assert state.optimizer == 2 * state.gradients


def parts_of(spec):
    seen = dry_build(spec)
    return seen.encoder, seen.projector, seen.backbone
