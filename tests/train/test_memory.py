"""What a step needs is known without weights: as much as a real step keeps, dealt out as FSDP2 deals it out."""

import json
import multiprocessing
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.checkpoint import checkpoint

import mmblocks
from mmblocks.backbones.fused_layers import use_own_layers
from mmblocks.cli import main
from mmblocks.cli.memory_report import compute_stage_memory, read_ranks
from mmblocks.conf import compose
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor
from mmblocks.data.sources import sources
from mmblocks.errors import ConfigError
from mmblocks.model.costs.state import count_shard_elements
from mmblocks.train.distributed import World, list_blocks, shard_model
from mmblocks.train.estimates.memory import estimate_stage_memory
from mmblocks.train.estimates.meta_stage import (
    count_batch_activations,
    make_meta_batch,
    make_meta_stage_model,
    make_packed_row,
)
from mmblocks.train.stages import Stage

FORK_SERVER = multiprocessing.get_context("forkserver")
FORK_SERVER.set_forkserver_preload([__name__])
EVERYTHING = {"encoder": 1e-3, "projector": 1e-3, "learned_tokens": 1e-3, "backbone": 1e-3}
SIGLIP = {"name": "siglip", "image_px": 30, "patch_px": 14, "dim": 16, "depth": 4, "heads": 2, "mlp_dim": 24}


def stage(train=EVERYTHING, **settings):
    settings = {"steps": 1, "global_batch_size": 2, **settings}
    return Stage(name="stage", data=[{"name": "tinyworld"}], train=train, **settings)


@pytest.fixture(params=["tiny_conv", "siglip"])
def spec(request, tiny_spec):
    return tiny_spec if request.param == "tiny_conv" else {**tiny_spec, "encoder": SIGLIP}


@pytest.fixture
def model(spec):
    return mmblocks.build(spec, seed=0).train()


@pytest.fixture
def batch(model):
    single, video = (sources.build({"name": "tinyworld", "task": task}) for task in ("single", "video"))
    return collate([Processor.from_model(model).make_training_sample(c) for c in (single[0], single[1], video[0])])


def without_data(batch):
    """The same batch with nothing but its sizes."""
    return replace(batch.to("meta"), packing=batch.packing)


def count_for_cpu(meta_model, batch):
    """What a step keeps whose layers are transformers' own."""
    with use_own_layers():
        return count_batch_activations(meta_model, without_data(batch))


# Against a real step ------------------------------------------------------------------------------------------------


def saved_bytes(model, batch):
    """What autograd really saves in a forward pass, each storage once, weights apart."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    seen, alive = {}, []

    def keep(tensor):
        alive.append(tensor)
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(batch)
    return sum(size for place, size in seen.items() if place not in own)


def allocated_bytes(model, batch):
    """What the allocator has given away in a forward pass and not got back."""
    model(batch)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        loss = model(batch)
    assert loss.num_terms
    return sum(event.self_cpu_memory_usage for event in seen.key_averages())


@pytest.mark.parametrize("train", [EVERYTHING, {"projector": 1e-3}, {"backbone": 1e-3}], ids=lambda t: "+".join(t))
def test_what_is_counted_without_data_is_what_a_real_step_saves(spec, model, batch, train):
    mmblocks.model.trainable.train_only(model, train)
    counted = count_for_cpu(make_meta_stage_model(spec, stage(train)), batch)
    # 1e-3: labelled rows are picked by number here and by a mask there, which is a byte a token
    assert counted.count_peak_bytes(gradient_checkpointing=False) == pytest.approx(saved_bytes(model, batch), rel=1e-3)


def test_the_allocator_agrees(spec, model, batch):
    counted = count_for_cpu(make_meta_stage_model(spec, stage()), batch)
    # 5e-3: the batch itself was there before
    assert counted.count_peak_bytes(gradient_checkpointing=False) == pytest.approx(
        allocated_bytes(model, batch), rel=5e-3
    )


def test_with_recomputation_only_what_enters_a_block_is_kept(spec, model, batch):
    counted = count_for_cpu(make_meta_stage_model(spec, stage()), batch)
    for block in list_blocks(model):
        block.forward = again_in_backward(block.forward)
    # 2e-2: the batch itself was there before
    assert counted.entering == pytest.approx(allocated_bytes(model, batch), rel=2e-2)
    assert counted.count_peak_bytes(gradient_checkpointing=True) < counted.count_peak_bytes(
        gradient_checkpointing=False
    )


def test_on_a_gpu_fused_layers_keep_less(spec):
    on_gpu, on_cpu = (
        estimate_stage_memory(spec, stage(pack_tokens=512), [1], on_gpu=on_gpu)[0] for on_gpu in (True, False)
    )
    assert on_gpu.activations < on_cpu.activations
    assert replace(on_gpu, activations=0) == replace(on_cpu, activations=0)


def again_in_backward(forward):
    return lambda *args, **kwargs: checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def test_a_frozen_encoder_keeps_nothing(spec):
    frozen, learning = (
        estimate_stage_memory(spec, stage(train), [1])[0].activations for train in ({"projector": 1e-3}, EVERYTHING)
    )
    trained = make_meta_stage_model(spec, stage({"projector": 1e-3}))
    batch = make_meta_batch(trained, make_packed_row(trained, stage({"projector": 1e-3}), 1))
    features = batch.pixels.shape[0] * trained.encoder.grid.area * trained.encoder.dim * 4
    assert features <= frozen < learning


# Against FSDP2 ------------------------------------------------------------------------------------------------------


def send_local_sizes(sender, spec, last, ranks):
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    model = make_meta_stage_model(spec, last)
    shard_model(model, World(0, ranks, torch.device("cpu")), last.precision)
    sender.send([p.to_local().numel() for p in model.parameters()])


def local_sizes(spec, last, ranks):
    """Elements of each parameter on rank 0 of a group of which only that process exists.

    In a process of its own, since torch remembers places in a group. It is forked from a server without threads: a process that
    is forked from one with threads can fail at any time.
    """
    receiver, sender = FORK_SERVER.Pipe(duplex=False)
    process = FORK_SERVER.Process(target=send_local_sizes, args=(sender, spec, last, ranks))
    process.start()
    sender.close()  # a process that fails then ends `recv`
    sizes = receiver.recv()
    process.join()
    return sizes


@pytest.mark.parametrize("ranks", [2, 3, 7, 64])
def test_shares_are_those_of_fsdp2(tiny_spec, ranks):
    model = make_meta_stage_model(tiny_spec, stage())
    shares = [count_shard_elements(p, ranks) for p in model.parameters()]
    assert shares == local_sizes(tiny_spec, stage(precision="float32"), ranks)


@pytest.mark.parametrize(("name", "ranks", "billions"), [("onevision/7b", 128, 8.03), ("onevision/72b", 256, 73.18)])
def test_the_large_recipes_are_wrapped_block_by_block(name, ranks, billions):
    recipe = compose(name)
    last = Stage(**recipe["stages"][-1])
    model = make_meta_stage_model(recipe["model"], last)
    (memory,) = estimate_stage_memory(recipe["model"], last, [ranks], gradient_checkpointing=True)
    blocks, count = len(list_blocks(model)), sum(p.numel() for p in model.parameters())
    assert blocks == 26 + {"onevision/7b": 28, "onevision/72b": 80}[name]
    assert count / 1e9 == pytest.approx(billions, rel=1e-3)
    assert memory.weights == 4 * sum(local_sizes(recipe["model"], last, ranks))
    assert memory.optimizer == 2 * memory.weights


# Over ranks and settings --------------------------------------------------------------------------------------------


def test_ranks_share_the_state_and_nothing_else(tiny_spec):
    capped = stage(pack_tokens=512)
    two, four = estimate_stage_memory(tiny_spec, capped, [2, 4])
    assert two.state_bytes == pytest.approx(2 * four.state_bytes, rel=0.05)  # odd sizes are padded
    assert (two.activations, two.gathered, two.passing) == (four.activations, four.gathered, four.passing)
    assert two.total_bytes == two.state_bytes + two.gathered + two.passing + two.activations


def test_adapters_learn_and_the_weights_around_them_are_stored_in_four_bits(tiny_spec):
    full, lora, qlora = (
        estimate_stage_memory(tiny_spec, stage(train, pack_tokens=512), [1])[0]
        for train in (
            {"backbone": 1e-3},
            {"lora": {"lr": 1e-3, "rank": 2}},
            {"lora": {"lr": 1e-3, "rank": 2, "bits": 4}},
        )
    )
    blocks = 2 * (
        4 * 32 * 32 - 2 * 32 * 16 + 3 * 32 * 48
    )  # two layers: queries, keys and values of half the heads, MLP
    assert lora.gradients < full.gradients / 3
    assert lora.weights > full.weights
    assert lora.weights - qlora.weights == pytest.approx(blocks * (4 - 0.5 - 1 / 64), rel=1e-3)


def test_preferences_need_a_second_model_and_an_average_a_second_set_of_weights(tiny_spec):
    plain = estimate_stage_memory(tiny_spec, stage(pack_tokens=512), [2])[0]
    dpo = estimate_stage_memory(tiny_spec, stage(pack_tokens=512, objective="dpo"), [2])[0]
    averaged = estimate_stage_memory(tiny_spec, stage(pack_tokens=512), [2], ema=True)[0]
    assert (plain.copies, dpo.copies, averaged.copies) == (0, plain.weights, plain.weights)


@pytest.mark.parametrize(("tokens", "views"), [(512, None), (512, 30), (512, 5), (1000, 40), (40, 3)])
def test_a_row_is_filled_up_to_its_caps_and_not_beyond(tiny_spec, tokens, views):
    capped = stage(pack_tokens=tokens, pack_views=views)
    model = make_meta_stage_model(tiny_spec, capped)
    batch = make_meta_batch(model, make_packed_row(model, capped, 1))
    assert batch.num_tokens == tokens
    assert batch.packing.cu_seqlens[-1] == tokens
    assert views is None or len(batch.pixels) <= views


def test_a_stage_without_caps_reads_its_samples_in_one_row(tiny_spec):
    one, four = estimate_stage_memory(tiny_spec, stage(global_batch_size=8), [1, 4])
    assert one.tokens == 4 * four.tokens


# On the command line ------------------------------------------------------------------------------------------------


def test_plan_prints_the_memory_of_every_stage(capsys):
    assert main(["plan", "tiny/onevision", "ranks=1,2", "--memory"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("text: GiB", "align: GiB", "onevision_again: GiB"))
    assert main(["plan", "tiny/onevision", "ranks=2", "--memory", "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert [row["ranks"] for row in plain["onevision"]] == [2]
    assert plain["onevision"][0]["state"] > plain["align"][0]["state"]


def test_a_system_has_no_memory_of_training():
    with pytest.raises(ConfigError, match=r"a system has no stages; name a recipe"):
        compute_stage_memory({"model": {}}, [1])


def test_a_number_of_ranks_that_is_none_is_refused():
    with pytest.raises(ConfigError, match=r"ranks=many.*ranks=64"):
        read_ranks(["ranks=many"])
