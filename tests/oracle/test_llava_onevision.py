"""Our import of `llava_onevision` computes what transformers computes, for every kind of input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mmblocks.batch import Batch
from mmblocks.conversation import Conversation
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor
from mmblocks.model.convert.transformers.families import import_hf
from mmblocks.model.generate import Decoding, generate
from mmblocks.model.onevision import OneVision
from mmblocks.shapes import Size, VisualShape
from mmblocks.tokenizers.anyres import AnyRes

TOLERANCE = 1e-4  # fp32: attention and interpolation sum in other orders; the logits are of size 1 to 5
SHAPES = [  # (width, height)
    (112, 112),
    (113, 111),
    (40, 30),
    (336, 224),
    (224, 336),
    (500, 333),
    (672, 672),
    (700, 650),
    (900, 100),
    (60, 1000),
    (400, 1),
    (1, 400),
    (1, 1),
    (205, 656),  # transformers keeps two columns more here than the original
]


def picture(width: int, height: int) -> Image.Image:
    """A gradient with noise, different for every size."""
    noise = np.random.default_rng(width * 7919 + height).integers(0, 64, (height, width, 3))
    ramp = np.linspace(0, 190, width * height).reshape(height, width, 1)
    return Image.fromarray((noise + ramp).astype(np.uint8))


def clip(frames: int, width: int, height: int) -> np.ndarray:
    return np.stack([np.asarray(picture(width, height).rotate(20 * i)) for i in range(frames)])


def user(*parts: Any) -> list[dict[str, Any]]:
    """A message of the user: texts, images and videos in their order."""
    return [{"role": "user", "content": [_part(part) for part in parts]}]


def _part(part: Any) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = "image" if isinstance(part, Image.Image) else "video"
    return {"type": kind, kind: part}


def answered(messages: list[dict[str, Any]], answer: str) -> list[dict[str, Any]]:
    return [*messages, {"role": "assistant", "content": answer}]


@dataclass
class Pair:
    """Both models and both ways to prepare a conversation."""

    theirs: Any
    their_processor: Any
    ours: OneVision

    def __post_init__(self) -> None:
        self.our_processor = Processor.from_model(self.ours)

    def our_batch(self, *conversations: list[dict[str, Any]]) -> Batch:
        return collate([self.our_processor.make_prompt_sample(Conversation.from_messages(c)) for c in conversations])

    def their_inputs(self, *conversations: list[dict[str, Any]], opened: bool = True) -> dict[str, Any]:
        """Left-padded inputs of transformers. Images are nested: several of one conversation are not tiled."""
        visuals = {
            kind: [[p[kind] for p in _parts(c) if p["type"] == kind] for c in conversations]
            for kind in ("image", "video")
        }
        clips = [torch.from_numpy(c).permute(0, 3, 1, 2) for row in visuals["video"] for c in row]
        return self.their_processor(
            text=[chatml(c, opened) for c in conversations],
            images=visuals["image"] if any(visuals["image"]) else None,
            videos=clips or None,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )

    def with_our_frames(self, inputs: dict[str, Any], batch: Batch) -> dict[str, Any]:
        """transformers resizes videos with torchvision only; this gives it the frames that PIL resized."""
        frames = self.ours.normalise_pixels(batch.with_all_views().pixels)
        assert (frames - inputs["pixel_values_videos"][0]).abs().max() <= 2 * 2 / 255 + 1e-6  # two grey levels
        return {**inputs, "pixel_values_videos": frames[None]}

    @torch.no_grad()
    def our_logits(self, batch: Batch) -> Tensor:
        return self.ours.compute_logits(batch)

    @torch.no_grad()
    def their_logits(self, inputs: dict[str, Any]) -> Tensor:
        return self.theirs(**inputs).logits[0]


def _parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [part for m in messages if not isinstance(m["content"], str) for part in m["content"]]


def chatml(messages: list[dict[str, Any]], opened: bool = True) -> str:
    """Qwen's prompt, written out by hand."""
    text = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = "".join(p["text"] if p["type"] == "text" else f"<{p['type']}>" for p in content)
        text += f"<|im_start|>{message['role']}\n{content}<|im_end|>\n"
    return text + ("<|im_start|>assistant\n" if opened else "")


@pytest.fixture(scope="module")
def pair(theirs: Any, their_processor: Any, checkpoint: Any) -> Pair:
    return Pair(theirs, their_processor, import_hf(checkpoint))


def require_same(pair: Pair, conversation: list[dict[str, Any]], *, our_frames: bool = False) -> None:
    """Same ids, same placeholders, same logits at every position, same greedy tokens."""
    batch, inputs = pair.our_batch(conversation), pair.their_inputs(conversation)
    if our_frames:
        inputs = pair.with_our_frames(inputs, batch)
    require_same_ids(pair, batch, inputs["input_ids"][0])
    torch.testing.assert_close(pair.our_logits(batch), pair.their_logits(inputs), rtol=0, atol=TOLERANCE)
    assert [list(one.ids) for one in generate(pair.ours, batch, Decoding(max_new_tokens=8))] == [
        their_answer(pair, inputs)
    ]


def require_same_ids(pair: Pair, batch: Batch, theirs: Tensor) -> None:
    config = pair.theirs.config
    visual = torch.isin(theirs, torch.tensor([config.image_token_id, config.video_token_id]))
    assert batch.visual_positions.tolist() == visual.nonzero().flatten().tolist()
    assert batch.input_ids[~visual].tolist() == theirs[~visual].tolist()


def their_answer(pair: Pair, inputs: dict[str, Any], new: int = 8) -> list[int]:
    stop = pair.their_processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    out = pair.theirs.generate(**inputs, do_sample=False, max_new_tokens=new, eos_token_id=stop, pad_token_id=stop)
    ids = out[0, inputs["input_ids"].shape[1] :].tolist()
    return ids[: ids.index(stop)] if stop in ids else ids


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_one_picture_of_any_shape_gives_the_logits_and_greedy_tokens_of_transformers(
    pair: Pair, width: int, height: int
) -> None:
    require_same(pair, user(picture(width, height), "What is this?"))


def test_two_interleaved_pictures_give_the_same_logits_and_tokens(pair: Pair) -> None:
    require_same(pair, user("First ", picture(300, 200), " and then ", picture(90, 250), ": which is wider?"))


def test_a_clip_of_four_frames_gives_the_same_logits_and_tokens(pair: Pair) -> None:
    require_same(pair, user(clip(4, 112, 112), "What happens?"))


def test_a_clip_that_must_be_resized_gives_the_same_logits_given_the_same_frames(pair: Pair) -> None:
    require_same(pair, user(clip(4, 160, 90), "What happens?"), our_frames=True)


def test_text_alone_gives_the_same_logits_and_tokens(pair: Pair) -> None:
    require_same(pair, user("Say something."))


def test_a_picture_beside_a_clip_is_tiled_as_a_single_picture(pair: Pair) -> None:
    require_same(pair, user(picture(300, 120), "then ", clip(3, 112, 112), "?"))


def test_a_packed_mixed_batch_gives_each_sample_the_logits_of_its_row(pair: Pair) -> None:
    conversations = [
        user(picture(300, 200), "What is this?"),
        user("First ", picture(60, 200), " then ", picture(112, 112), "?"),
        user(clip(4, 112, 112), "What happens?"),
        user("Say something."),
    ]
    batch, inputs = pair.our_batch(*conversations), pair.their_inputs(*conversations)
    ours = pair.our_logits(batch).split(batch.packing.lengths)
    with torch.no_grad():
        rows = pair.theirs(**inputs).logits
    for sample, row in zip(ours, rows, strict=True):
        torch.testing.assert_close(sample, row[-len(sample) :], rtol=0, atol=TOLERANCE)
    expected = [their_answer(pair, pair.their_inputs(c)) for c in conversations]
    assert [list(one.ids) for one in generate(pair.ours, batch, Decoding(max_new_tokens=8))] == expected


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_the_views_of_one_picture_are_those_of_the_pil_processor_bit_for_bit(
    pair: Pair, width: int, height: int
) -> None:
    conversation = user(picture(width, height), "?")
    theirs = pair.their_inputs(conversation)["pixel_values"][0]
    ours = pair.our_batch(conversation).with_all_views().pixels
    assert torch.equal(((theirs * 0.5 + 0.5) * 255).round().to(torch.uint8), ours)
    torch.testing.assert_close(
        pair.ours.normalise_pixels(ours), theirs.float(), rtol=0, atol=2e-7
    )  # float32 and its order


def test_the_views_of_two_pictures_are_those_of_the_pil_processor_bit_for_bit(pair: Pair) -> None:
    conversation = user(picture(300, 200), picture(90, 251), "?")
    theirs = pair.their_inputs(conversation)["pixel_values"][:, 0]
    ours = pair.our_batch(conversation).with_all_views().pixels
    assert torch.equal(((theirs * 0.5 + 0.5) * 255).round().to(torch.uint8), ours)


def test_plans_count_as_the_processor_counts_at_the_released_geometry(their_processor: Any) -> None:
    """384 pixels, 27x27 cells, 6x6 pinpoints: random sizes and the one where the original rounds another way."""
    their_processor.num_image_tokens, before = 27 * 27, their_processor.num_image_tokens
    released = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
    their_processor.image_processor.image_grid_pinpoints, tiny = (
        released,
        their_processor.image_processor.image_grid_pinpoints,
    )
    tokenizer = AnyRes(Size(384, 384), Size(27, 27), True, max_tiles=9, rounding="transformers")
    sizes = [Size(147, 3969), Size(3969, 147), Size(1, 1), Size(384, 384), Size(2304, 2304)]
    sizes += [Size(*pair) for pair in np.random.default_rng(5).integers(8, 5000, (1500, 2)).tolist()]
    try:
        theirs = [their_processor._get_number_of_features(*size, 384, 384) for size in sizes]
    finally:
        their_processor.num_image_tokens, their_processor.image_processor.image_grid_pinpoints = before, tiny
    assert [tokenizer.plan(VisualShape("image", size)).num_tokens for size in sizes] == theirs


def test_the_packed_loss_of_a_sample_is_the_loss_of_transformers(pair: Pair) -> None:
    asked, answer = user(picture(300, 200), "What is this?"), "A ramp with noise."
    sample = pair.our_processor.make_training_sample(Conversation.from_messages(answered(asked, answer)))
    inputs = pair.their_inputs(answered(asked, answer), opened=False)
    given = pair.their_inputs(asked)["input_ids"].shape[1]
    learned = len(pair.their_processor.tokenizer(f"{answer}<|im_end|>")["input_ids"])
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[0, given : given + learned] = inputs["input_ids"][0, given : given + learned]
    with torch.no_grad():
        ours, theirs = pair.ours(collate([sample])), pair.theirs(**inputs, labels=labels).loss
    assert ours.num_terms == learned
    torch.testing.assert_close(ours.loss, theirs, rtol=0, atol=1e-5)


def test_the_packed_loss_of_several_samples_is_the_mean_over_all_their_labels(pair: Pair) -> None:
    conversations = [
        answered(user(picture(150, 90), "What?"), "A ramp."),
        answered(user(clip(2, 112, 112), "And?"), "It turns round and round."),
        answered(user("Hello"), "Hi"),
    ]
    samples = [pair.our_processor.make_training_sample(Conversation.from_messages(c)) for c in conversations]
    with torch.no_grad():
        together = pair.ours(collate(samples))
        alone = [pair.ours(collate([s])) for s in samples]
    assert together.num_terms == sum(part.num_terms for part in alone)
    torch.testing.assert_close(together.total, sum(part.total for part in alone), rtol=1e-5, atol=0)
