"""The demo asks what TinyWorld asks, and the bundled model answers right."""

import random
import runpy
from pathlib import Path

import pytest

import mmblocks
from mmblocks.assets import find_media
from mmblocks.cli import main
from mmblocks.cli.demo import list_scenes
from mmblocks.conversation import Conversation, Text
from mmblocks.data.tinyworld import ask, make_record


def read(messages):
    """What a message says, with <> in the place of a visual."""
    return "".join(part.text if isinstance(part, Text) else "<>" for part in messages[0].parts)


def all_questions(askers, subject):
    """Every question that these askers put to a subject, with its exact answer."""
    asked = [asker(subject, random.Random(seed)) for asker in askers.values() for seed in range(50)]
    return dict(pair for pair in asked if pair)


@pytest.fixture(scope="module")
def exact():
    """What TinyWorld asks about the scenes of the demo, and answers."""
    made = runpy.run_path(str(Path(__file__).parents[2] / "examples/make_demo_media.py"))
    picture, *several = [scene for _, scene in made["PICTURES"].values()]
    one = all_questions(ask.SINGLE | ask.CAPTIONS, picture)
    return one | all_questions(ask.MULTI, tuple(several)) | all_questions(ask.VIDEO, made["CLIP"])


def test_the_demo_asks_what_tinyworld_asks(exact):
    questions = [question for _, _, questions in list_scenes() for question in questions]
    assert set(questions) <= set(exact)
    assert exact["Where is the red circle?"] == "red circle middle left"


@pytest.mark.parametrize("task", ["single", "video"])
def test_a_chat_asks_about_a_visual_as_training_does(task, tiny_model):
    made = make_record(task, 0)["messages"]
    trained = Conversation.from_messages(made).messages
    chat = mmblocks.Chat(tiny_model)
    chat.ask(mmblocks.image(find_media("first.png")), read(trained).removeprefix("<>").strip())
    assert read(chat.messages) == read(trained)


def test_a_chat_asks_about_named_pictures_as_training_does(tiny_model):
    named = [Conversation.from_messages(make_record("multi", i)["messages"]).messages for i in range(40)]
    trained = next(read(m) for m in named if read(m).startswith("Picture 1: <>\nPicture 2: <>\n"))
    chat = mmblocks.Chat(tiny_model, decoding=mmblocks.Decoding(max_new_tokens=1))
    picture = mmblocks.image(find_media("first.png"))
    chat.ask("Picture 1: ", picture, "Picture 2: ", picture, trained.rpartition("\n")[2])
    assert read(chat.messages) == trained


def test_the_demo_answers_every_question_right(exact, capsys):
    assert main(["demo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    questions = {line.removeprefix("  you: "): i for i, line in enumerate(lines) if line.startswith("  you: ")}
    said = {question: lines[i + 1].removeprefix("  it:  ") for question, i in questions.items()}
    assert said == {question: exact[question] for question in questions}
    assert len(said) == 7
