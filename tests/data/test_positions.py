"""Visuals where they were written, or in front of the text."""

import pytest
from PIL import Image

from mmblocks.conversation import Conversation, Message, Text, Visual
from mmblocks.data.sample.processor import Processor
from mmblocks.data.sample.visual_placement import place_visuals

A, B, CLIP = Visual("image", "a.png"), Visual("image", "b.png"), Visual("video", "c.mp4")


def asked(*parts):
    return Conversation((Message("user", tuple(Text(p) if isinstance(p, str) else p for p in parts)),))


def shown(conversation):
    """Visuals by their sources, texts as they are."""
    return [p.text if isinstance(p, Text) else p.source for m in conversation.messages for p in m.parts]


@pytest.mark.parametrize(
    ("parts", "front"),
    [
        ((A, "\nWhat?"), ["a.png", "\nWhat?"]),
        (("What is in ", A, "?"), ["a.png", "\nWhat is in the image?"]),
        (
            ("Before ", A, " and after ", B, ": what differs?"),
            ["a.png", "b.png", "\nBefore image 1 and after image 2: what differs?"],
        ),
        ((A, "\nFirst.\n", B, "\nSecond."), ["a.png", "b.png", "\nFirst.\n\nSecond."]),
        (("Is ", A, " in ", CLIP, "?"), ["a.png", "c.mp4", "\nIs the image in the video?"]),
        (("\n", A), ["a.png"]),
        (("No image.",), ["No image."]),
    ],
)
def test_visuals_go_to_the_front_and_the_text_stays_readable(parts, front):
    assert shown(place_visuals(asked(*parts), "front")) == front


def test_each_question_keeps_its_own_visuals_and_answers_are_left_alone():
    messages = (
        Message("user", (Text("See "), A)),
        Message("assistant", (Text("I made "), B)),
        Message("user", (Text("And "), Visual("image", "d.png"))),
    )
    assert shown(place_visuals(Conversation(messages), "front")) == [
        *("a.png", "\nSee image 1"),
        *("I made ", "b.png"),
        *("d.png", "\nAnd image 3"),
    ]


def test_as_written_changes_nothing():
    conversation = asked("What is in ", A, "?")
    assert place_visuals(conversation, "as_written") is conversation


def test_mixed_moves_half_of_the_conversations_and_always_the_same():
    talks = [Conversation(asked("Look: ", A, f" {i}").messages, f"file:{i}") for i in range(400)]
    moved = [place_visuals(talk, "mixed", seed=1) != talk for talk in talks]
    assert moved == [place_visuals(talk, "mixed", seed=1) != talk for talk in talks]
    assert moved != [place_visuals(talk, "mixed", seed=2) != talk for talk in talks]
    assert 160 < sum(moved) < 240


def test_a_stages_processor_moves_visuals_of_its_samples(tiny_model):
    picture = Image.new("RGB", (24, 24))
    parts = [
        {"type": "text", "text": "what is in "},
        {"type": "image", "image": picture},
        {"type": "text", "text": " ?"},
    ]
    talk = [{"role": "user", "content": parts}, {"role": "assistant", "content": "red"}]
    first_visual_row = [
        processor.make_training_sample(Conversation.from_messages(talk)).encoded.visual_positions[0].item()
        for processor in (Processor.from_model(tiny_model), Processor.from_model(tiny_model, visuals="front"))
    ]
    header = len(tiny_model.backbone.text_tokenizer.encode("<|im_start|>user\n"))
    assert first_visual_row[1] == header < first_visual_row[0]
