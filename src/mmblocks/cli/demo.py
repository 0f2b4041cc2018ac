"""`mmblocks demo`: the bundled tiny model answers questions about an image, two images and a video."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmblocks.conversation import Visual
    from mmblocks.model.onevision import OneVision

NEXT_STEPS = """
Your turn:
  ask your own       mmblocks chat --image my.jpg            (a photograph of any size; this tiny model knows coloured shapes)
  in the browser     mmblocks serve                          (a page, and OpenAI's API; pip install 'mmblocks[serve]')
  see the parts      mmblocks list        mmblocks show projector mlp
  swap a part        mmblocks train tiny/onevision model/projector=linear
  count tokens       mmblocks plan onevision/7b image=1920x1080 video=1280x720@30s
  how it was trained mmblocks recipes tiny/onevision         (made-up images, the paper's own curriculum; the scores: mmblocks eval tiny)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "No network and no GPU needed."


def run(args: argparse.Namespace) -> int:
    import torch

    from mmblocks.assets import find_tiny_model
    from mmblocks.model.checkpoint import load

    torch.set_num_threads(1)  # a tiny model runs faster on one thread
    start = time.perf_counter()
    model = load(find_tiny_model())
    print(f"A tiny OneVision model, read from {find_tiny_model()}\n")
    print(describe_parts(model))
    for title, content, questions in list_scenes():
        ask_questions(model, title, content, questions)
    print(f"\nDone in {time.perf_counter() - start:.1f} s.")
    print(NEXT_STEPS)
    return 0


def describe_parts(model: OneVision) -> str:
    """The parts of a model and their parameters, one line each."""
    from mmblocks.model.build import count_parameters
    from mmblocks.registry import split_spec

    slots = {key.removeprefix("model."): split_spec(part)[0] for key, (_, part) in model.spec.list_slots().items()}
    counted = {name: count_parameters(getattr(model, name)) for name in ("encoder", "projector", "backbone")}
    rows = [
        f"  {slot:<22} {name:<16} " + (f"{counted[slot]:>10,} parameters" if slot in counted else "")
        for slot, name in slots.items()
    ]
    return "\n".join([*rows, f"  {'all parts':<22} {'':<16} {count_parameters(model):>10,} parameters"])


def list_scenes() -> list[tuple[str, list[str | Visual], list[str]]]:
    """Titles, content and questions of the demo; examples/make_demo_media.py draws the files."""
    from mmblocks.assets import find_media
    from mmblocks.chat import image, video

    return [
        (
            "One image of 1024x768 pixels",
            [image(find_media("image.png"))],
            ["How many shapes are there?", "What colour is the triangle?", "Where is the red circle?"],
        ),
        (
            "Two images in one conversation",
            ["Picture 1: ", image(find_media("first.png")), "Picture 2: ", image(find_media("second.png"))],
            ["What is in picture 1?", "Which picture shows a purple square?"],
        ),
        ("A video of two seconds", [video(find_media("video.mp4"))], ["What is moving?", "Which way does it move?"]),
    ]


def ask_questions(model: OneVision, title: str, content: list[str | Visual], questions: list[str]) -> None:
    """Print the visuals with their tokens, and the answer to each question in a new chat."""
    from mmblocks.chat import Chat
    from mmblocks.conversation import Conversation, Message, Visual
    from mmblocks.data.sample.processor import Processor

    visuals = tuple(part for part in content if isinstance(part, Visual))
    plans = Processor.from_model(model).plan(Conversation((Message("user", visuals),), title))
    print(f"\n{title}")
    for visual, routed in zip(visuals, plans, strict=True):
        views = len(routed.plan.views)
        print(
            f"  {visual.source.name}: {views} view{'s' * (views > 1)}, {routed.plan.num_tokens} tokens ({routed.scenario})"
        )
    for question in questions:
        print(f"  you: {question}\n  it:  {Chat(model).ask(*content, question)}")
