"""What a training step keeps and takes, beside transformers' LlavaOnevision with the same weights.

Without a GPU both run on the meta device: nothing is computed, and every storage is counted once while it is alive. On a
GPU the allocator says. The peer gets conversations of one length, so that none of its rows is padding.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmblocks.batch import Batch
from mmblocks.errors import ConfigError
from mmblocks.model.costs.activations import count_activations
from mmblocks.model.onevision import OneVision
from mmblocks.shapes import Size, VisualShape
from mmblocks.train.distributed import list_blocks
from mmblocks.train.estimates import meta_stage
from mmblocks.train.stages import Stage
from tests.bench.suites.cases import ANSWER, QUESTION, Case, make_case, make_conversation
from tests.bench.suites.live import count_peak_bytes
from tests.bench.suites.peer import compute_packed_loss, compute_padded_loss, make_peer
from tests.bench.suites.rows import Row
from tests.bench.suites.run import Run
from tests.bench.suites.sizes import Scale, make_model

NAME = "memory"
TOKENS = 16_384
TINY_TOKENS = 1024
CONVERSATIONS = 2
"""That make up a row, each of half its tokens."""
KEPT, PEAK = "kept for backward", "peak of a step"
PARTS = ("encoder", "projector", "learned_tokens", "backbone")
CHECKS = "TRANSFORMERS_DISABLE_TORCH_CHECK"
META = torch.device("meta")

Step = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two models: its steps by setting, what each is given, and the blocks that recomputation computes again."""

    model: nn.Module
    blocks: Sequence[nn.Module]
    steps: Mapping[Any, Step]
    given: Mapping[str, str] = field(default_factory=dict)


def measure(run: Run) -> Iterator[Row]:
    """Bytes of a training step of `TOKENS` tokens in bfloat16: what is kept for backward (counted), and the most at a time.

    The most holds weights and gradients, and no state of an optimizer. Both sides keep everything, or both compute the
    inside of every block again. "best" is the peer with logits of labelled rows only.
    """
    run = replace(run, dtype=torch.bfloat16)
    tokens = TINY_TOKENS if run.tiny else TOKENS
    if not run.on_gpu:
        yield from _measure_sides(replace(run, device=META), tokens, _list_meta_sides)
    if run.on_gpu or run.tiny:  # a proof that what a GPU does would run
        yield from _measure_sides(run, tokens, _list_sides_on_device)


def _measure_sides(
    run: Run, tokens: int, sides: Callable[[Run, int], Iterator[tuple[str, Side, Side]]]
) -> Iterator[Row]:
    for scenario, ours, peer in sides(run, tokens):
        run.require_time(60)
        yield from _compare_sides(run, f"{scenario}, {tokens} tokens", ours, peer)


def list_scenarios(model: OneVision, scale: Scale) -> dict[str, tuple[VisualShape, ...]]:
    """What each conversation of a row shows."""
    side = model.encoder.view_px.height
    return {
        "image in tiles": (VisualShape("image", Size(3 * side, 3 * side)),),
        "four images": (VisualShape("image", Size(side, side)),) * 4,
        "video": (VisualShape("video", Size(side, side), scale.shown.frames, fps=1.0),),
    }


# Both sides beside each other ---------------------------------------------------------------------------------------


def _compare_sides(run: Run, scenario: str, ours: Side, peer: Side) -> Iterator[Row]:
    if run.device == META:
        own = count_kept_bytes(ours, "all")
        for setting in peer.steps:
            found = count_kept_bytes(peer, setting)
            yield run.row(NAME, scenario, KEPT, "bytes", own, found, setting=setting, settings=peer.given[setting])
    for recompute, words in ((False, ""), (True, ", blocks recomputed")):
        own = count_fullest_bytes(ours, "all", recompute)
        for setting in peer.steps:
            found = count_fullest_bytes(peer, setting, recompute)
            told = peer.given[setting] + (", gradient checkpointing" if recompute else "")
            yield run.row(NAME, scenario, f"{PEAK}{words}", "bytes", own, found, setting=setting, settings=told)


def count_kept_bytes(side: Side, setting: str) -> int:
    """Bytes of all that autograd saves in a step on the meta device, weights apart."""
    with _ignore_values():
        return count_activations(side.model, side.blocks, side.steps[setting]).saved


def count_fullest_bytes(side: Side, setting: str, recompute: bool) -> int:
    """Bytes at the fullest moment of a step, weights and gradients included."""
    with _ignore_values(), _checkpoint_blocks(side.blocks if recompute else ()):
        if _find_device(side.model).type == "cuda":
            return _measure_allocated(side.model, side.steps[setting])
        return count_peak_bytes(side.model, side.steps[setting])


def _find_device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _measure_allocated(model: nn.Module, step: Step) -> int:
    """The most that the CUDA allocator has handed out at a time; what stood there beside this model is not its own."""
    model.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step().backward()
    torch.cuda.synchronize()
    model.zero_grad(set_to_none=True)
    return torch.cuda.max_memory_allocated()


@contextmanager
def _checkpoint_blocks(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Blocks keep what enters them and compute the rest again, as training with `recompute` has it."""
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


@contextmanager
def _ignore_values() -> Iterator[None]:
    """transformers compares counts of placeholders, which tensors without values do not have."""
    before = os.environ.get(CHECKS)
    os.environ[CHECKS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[CHECKS]
        else:
            os.environ[CHECKS] = before


# Without data -------------------------------------------------------------------------------------------------------


def make_training_model(scale: Scale) -> OneVision:
    """A size's model on the meta device, in bfloat16, of which everything learns."""
    stage = Stage(
        name="bench",
        data=[{"name": "tinyworld"}],
        train=dict.fromkeys(PARTS, 1e-5),
        steps=1,
        pack_tokens=TOKENS,
        precision="bfloat16",
    )
    return meta_stage.make_meta_stage_model(scale.spec, stage)


def _list_meta_sides(run: Run, tokens: int) -> Iterator[tuple[str, Side, Side]]:
    model = make_training_model(run.scale)
    theirs = make_peer(model).to(torch.bfloat16).train()
    for scenario, shown in list_scenarios(model, run.scale).items():
        row = make_packed_row_of(model, shown, tokens)
        batch = meta_stage.make_meta_batch(model, row)
        ours = Side(model, list_blocks(model), {"all": partial(_compute_total_loss, model, batch)})
        given = {"as shipped": "no padding, all logits", "best": "no padding, labelled logits"}
        yield (
            scenario,
            ours,
            Side(theirs, _list_checkpointed_blocks(theirs), _make_meta_steps(theirs, model, row), given),
        )


def make_packed_row_of(model: OneVision, shown: tuple[VisualShape, ...], tokens: int) -> meta_stage.PackedRow:
    """Conversations of one length in a packed row. Raises `ConfigError` where they show more than fits."""
    visual = sum(routed.plan.num_tokens for routed in model.router.plan(shown))
    text = tokens // CONVERSATIONS - visual
    if text < 1:
        raise ConfigError(
            f"{tokens} tokens for {CONVERSATIONS} conversations of {visual} visual tokens each; "
            f"give more than {CONVERSATIONS * visual}."
        )
    return meta_stage.PackedRow(
        (shown,) * CONVERSATIONS, (text,) * CONVERSATIONS, round(meta_stage.LABELLED_SHARE * tokens)
    )


def _list_checkpointed_blocks(theirs: nn.Module) -> list[nn.Module]:
    """What transformers' gradient checkpointing computes again."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in theirs.modules() if isinstance(module, GradientCheckpointingLayer)]


def _make_meta_steps(theirs: nn.Module, model: OneVision, row: meta_stage.PackedRow) -> dict[str, Step]:
    """The peer's steps on a batch without padding.

    Its attention is told to be causal without a mask, which transformers finds out from the values of a real one.
    """
    inputs = {**_make_pixel_inputs(model, row), "attention_mask": {"full_attention": None}, "use_cache": False}
    length = sum(_list_lengths(model, row)) // CONVERSATIONS
    with META:
        ids = torch.empty(CONVERSATIONS, length, dtype=torch.int64)
        some = torch.empty(row.labels // CONVERSATIONS, dtype=torch.int64)
    inputs["input_ids"] = ids
    return {
        "as shipped": lambda: theirs(**inputs, labels=ids).loss,
        "best": lambda: theirs(**inputs, labels=ids[:, : len(some)], logits_to_keep=some).loss,
    }


def _list_lengths(model: OneVision, row: meta_stage.PackedRow) -> list[int]:
    shown = [sum(routed.plan.num_tokens for routed in model.router.plan(sample)) for sample in row.samples]
    return [visual + text for visual, text in zip(shown, row.text_tokens, strict=True)]


def _make_pixel_inputs(model: OneVision, row: meta_stage.PackedRow) -> dict[str, Any]:
    shown = row.samples[0]
    views = [len(routed.plan.views) for routed in model.router.plan(shown)]
    side = model.encoder.view_px
    with META:
        if shown[0].kind == "video":
            return {"pixel_values_videos": torch.empty(CONVERSATIONS, *views, 3, *side, dtype=torch.bfloat16)}
        pixels = torch.empty(CONVERSATIONS * len(shown), max(views), 3, *side, dtype=torch.bfloat16)
    sizes = [list(visual.size) for visual in shown] * CONVERSATIONS
    return {"pixel_values": pixels, "image_sizes": sizes, "batch_num_images": [len(shown)] * CONVERSATIONS}


# On a device --------------------------------------------------------------------------------------------------------


def _list_sides_on_device(run: Run, tokens: int) -> Iterator[tuple[str, Side, Side]]:
    """The same with random weights and pictures; both sides share their weights, so each is alone with its gradients."""
    model = make_model(run.scale, run.device, run.dtype).train()
    theirs = make_peer(model).train()
    for scenario, shown in list_scenarios(model, run.scale).items():
        case = make_random_case(model, make_packed_row_of(model, shown, tokens)).to(run.device, run.dtype)
        ours = Side(model, list_blocks(model), {"all": partial(_compute_total_loss, model, case.batch)})
        steps = {
            "as shipped": partial(compute_padded_loss, theirs, case),
            "best": partial(compute_packed_loss, theirs, case),
        }
        given = {"as shipped": "padded, all logits", "best": "packed by position ids, labelled logits"}
        yield scenario, ours, Side(theirs, _list_checkpointed_blocks(theirs), steps, given)


def _compute_total_loss(model: OneVision, batch: Batch) -> Tensor:
    return model(batch).total


def make_random_case(model: OneVision, row: meta_stage.PackedRow) -> Case:
    """A row's conversations with random pixels, and as much text as the row says, up to a sentence."""
    rng = np.random.default_rng(0)
    length = partial(_count_words, model)
    answer = ANSWER * max(1, row.labels // CONVERSATIONS // length(ANSWER))
    asked = []
    for shown, text in zip(row.samples, row.text_tokens, strict=True):
        question = QUESTION * max(1, (text - length(answer)) // length(QUESTION))
        asked.append(make_conversation([*(_make_pixels(visual, rng) for visual in shown), question], answer))
    return make_case(model, asked, answers=True)


def _count_words(model: OneVision, text: str) -> int:
    return len(model.backbone.text_tokenizer(text, add_special_tokens=False)["input_ids"])


def _make_pixels(visual: VisualShape, rng: np.random.Generator) -> Any:
    if visual.kind == "video":
        return rng.integers(0, 256, (visual.num_frames, *visual.size, 3), dtype=np.uint8)
    return Image.fromarray(rng.integers(0, 256, (*visual.size, 3), dtype=np.uint8))
