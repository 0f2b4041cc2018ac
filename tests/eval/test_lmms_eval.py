"""The classes for lmms-eval, against a stand-in of its interface; tests/lmms runs them in lmms-eval itself."""

import importlib
import json
import sys
import tomllib
import types
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import mmblocks
from mmblocks.assets import find_tiny_model
from mmblocks.conversation import Conversation, Message, Text, Visual
from mmblocks.errors import ConfigError, DataError
from mmblocks.eval.lmms.decoding import read_decoding
from mmblocks.eval.lmms.manifest import make_manifest

ROOT = Path(__file__).parents[2]
COLOURS = ("red", "green", "blue")
IMAGES = {name: Image.new("RGB", (48, 48), name) for name in COLOURS}
SETTINGS = {"max_new_tokens": 6, "do_sample": False, "temperature": 0, "top_p": 0, "num_beams": 1, "until": ["\n\n"]}
DECODING = mmblocks.Decoding(max_new_tokens=6, stop=("\n\n",))
DOCUMENTS = [{"colour": name, "question": f"What is {name}?"} for name in COLOURS]
PLACE = ("made_up", "test")


@dataclass
class TokenCounts:
    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass
class GenerationResult:
    text: Any
    token_counts: TokenCounts | None = None


@dataclass
class Instance:
    args: tuple
    metadata: dict = field(default_factory=dict)
    task_name: str = PLACE[0]


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None


class StandInModel:
    is_simple = True

    def __init__(self):
        self.rank, self.task_dict = 0, {}


@pytest.fixture(scope="module")
def stand_in():
    """Modules with what the classes import of lmms-eval, and no more."""
    contents = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.models": {},
        "lmms_eval.api.instance": {
            "GenerationResult": GenerationResult,
            "Instance": Instance,
            "TokenCounts": TokenCounts,
        },
        "lmms_eval.api.model": {"lmms": StandInModel},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }
    ours = ("mmblocks.eval.lmms.simple", "mmblocks.eval.lmms.chat")
    with pytest.MonkeyPatch.context() as patch:
        for name in ours:  # those of an installed lmms-eval are not used here
            patch.delitem(sys.modules, name, raising=False)
        for name, content in contents.items():
            module = types.ModuleType(name)
            vars(module).update(content)
            patch.setitem(sys.modules, name, module)
        yield
        for name in ours:
            sys.modules.pop(name, None)


def find_class(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.fixture(scope="module")
def simple(stand_in):
    model = find_class(make_manifest().simple_class_path)(str(find_tiny_model()), batch_size="1", device="cpu")
    model.task_dict = {"made_up": {"test": DOCUMENTS}}
    return model


@pytest.fixture(scope="module")
def chat(simple):
    model = find_class(make_manifest().chat_class_path)(str(find_tiny_model()), batch_size="auto", device="cpu")
    model.task_dict = simple.task_dict
    return model


def show(document):
    return [IMAGES[document["colour"]]]


def ask_simple(number, settings=SETTINGS, visuals=show, context=None, **metadata):
    text = DOCUMENTS[number]["question"] if context is None else context
    return Instance((text, dict(settings), visuals, number, *PLACE), metadata)


def ask_chat(number, make_messages, settings=SETTINGS):
    return Instance(("", make_messages, dict(settings), number, *PLACE))


def make_conversation(number, context=None):
    text = DOCUMENTS[number]["question"] if context is None else context
    visual = Visual("image", IMAGES[COLOURS[number]])
    return Conversation((Message("user", (visual, Text(f"\n{text}"))),))


def answer(model, *conversations, decoding=DECODING):
    return mmblocks.respond(model.model, conversations, decoding)


# Registration ---------------------------------------------------------------------------------------------------------


def test_the_entry_point_gives_classes_of_the_two_interfaces(simple, chat):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    ((name, value),) = declared["lmms_eval.models"].items()
    assert EntryPoint(name, value, "lmms_eval.models").load() is make_manifest
    assert (type(simple).is_simple, type(chat).is_simple) == (True, False)
    assert make_manifest().model_id == "mmblocks"


def test_an_unknown_argument_is_refused_with_the_closest_name(stand_in):
    with pytest.raises(ConfigError, match=r"'max_frames_num'.*'max_frames'"):
        find_class(make_manifest().simple_class_path)(str(find_tiny_model()), max_frames_num=8)


def test_max_frames_are_those_of_the_tokenizer_of_videos(stand_in):
    model = find_class(make_manifest().simple_class_path)(str(find_tiny_model()), max_frames=3)
    assert model.model.router.video.max_frames == 3


# Generation -----------------------------------------------------------------------------------------------------------


def test_answers_are_those_of_mmblocks_in_the_order_of_the_requests(simple):
    order = (2, 0, 1, 0)
    settings = [{**SETTINGS, "max_new_tokens": 6 if i else 2} for i in range(4)]
    found = simple.generate_until([ask_simple(n, s) for n, s in zip(order, settings, strict=True)])
    expected = [
        answer(simple, make_conversation(n), decoding=replace(DECODING, max_new_tokens=s["max_new_tokens"]))[0]
        for n, s in zip(order, settings, strict=True)
    ]
    assert [one.text for one in found] == [one.text for one in expected]
    counts = [TokenCounts(one.prompt_tokens, one.answer_tokens) for one in expected]
    assert [one.token_counts for one in found] == counts
    assert any(one.text for one in found)


def test_more_requests_than_are_read_at_a_time_keep_their_order(simple, monkeypatch):
    monkeypatch.setattr(simple, "window", 2)
    found = simple.generate_until([ask_simple(n) for n in (1, 2, 0)])
    assert [one.text for one in found] == [one.text for one in answer(simple, *map(make_conversation, (1, 2, 0)))]


def test_until_ends_an_answer(simple):
    (whole,) = answer(simple, make_conversation(0))
    end = whole.text[3:5]
    (found,) = simple.generate_until([ask_simple(0, {**SETTINGS, "until": end})])
    assert found.text == whole.text[: whole.text.index(end)].strip() != whole.text


def test_repeats_of_a_request_are_samples_that_differ(simple):
    request = ask_simple(0, {"do_sample": True, "temperature": 100.0, "max_new_tokens": 6})
    found = simple.generate_until([request] * 3 + [ask_simple(1)])
    assert len(found) == 4
    assert len({one.text for one in found[:3]}) > 1
    assert found[3].text == answer(simple, make_conversation(1))[0].text


def test_markers_say_where_images_stand(simple):
    context = "The first <image> and the second <image>."
    (found,) = simple.generate_until([ask_simple(0, context=context, visuals=lambda _: list(IMAGES.values())[:2])])
    red, green = (Visual("image", IMAGES[name]) for name in COLOURS[:2])
    parts = (Text("The first "), red, Text(" and the second "), green, Text("."))
    assert found.text == answer(simple, Conversation((Message("user", parts),)))[0].text


def test_a_context_of_turns_is_a_conversation(simple):
    turns = [
        {"from": "human", "value": "<image> What?"},
        {"from": "gpt", "value": "red"},
        {"from": "human", "value": "Why?"},
    ]
    (found,) = simple.generate_until([ask_simple(0, context=json.dumps(turns))])
    visual = Visual("image", IMAGES["red"])
    texts = [Message("assistant", (Text("red"),)), Message("user", (Text("Why?"),))]
    expected = Conversation((Message("user", (visual, Text(" What?"))), *texts))
    assert found.text == answer(simple, expected)[0].text


def test_a_text_without_visuals_is_answered(simple):
    (found,) = simple.generate_until([ask_simple(0, visuals=lambda _: None)])
    text = Conversation((Message("user", (Text(DOCUMENTS[0]["question"]),)),))
    assert found.text == answer(simple, text)[0].text


def test_frames_of_a_task_of_videos_are_one_video(simple):
    frames = [IMAGES["red"], IMAGES["green"], IMAGES["blue"]]
    request = ask_simple(0, visuals=lambda _: frames, task_type="video", sample_frames=2)
    as_images = ask_simple(0, visuals=lambda _: frames)
    video, images = simple.generate_until([request]), simple.generate_until([as_images])
    assert video[0].token_counts.input_tokens != images[0].token_counts.input_tokens


def test_a_video_that_cannot_be_read_is_an_error(simple, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"made_up, test, document 1.*broken\.mp4"):
        simple.generate_until([ask_simple(0), ask_simple(1, visuals=lambda _: [str(tmp_path / "broken.mp4")])])
    with pytest.raises(DataError, match=r"gone\.mp4"):
        simple.generate_until([ask_simple(1, visuals=lambda _: [str(tmp_path / "gone.mp4")])])
    with pytest.raises(DataError, match="cannot be shown"):
        simple.generate_until([ask_simple(1, visuals=lambda _: [{"array": [0.0], "sampling_rate": 16000}])])


def test_settings_of_tasks_are_those_of_decoding(caplog):
    assert read_decoding({}) == mmblocks.Decoding(max_new_tokens=1024)
    assert read_decoding({"temperature": 0.7, "top_p": 0.0, "until": None}) == mmblocks.Decoding(max_new_tokens=1024)
    sampled = read_decoding({"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 5, "until": ""})
    assert sampled == mmblocks.Decoding(max_new_tokens=5, temperature=0.7, top_p=0.9)
    for _ in range(2):
        read_decoding({"image_aspect_ratio_for_this_test": "pad", "num_beams": 1})
    assert [record.getMessage().count("image_aspect_ratio_for_this_test") for record in caplog.records] == [1]
    with pytest.raises(ConfigError, match="max_new_tokens='many'"):
        read_decoding({"max_new_tokens": "many"})


# Losses ---------------------------------------------------------------------------------------------------------------


def test_losses_are_means_of_negative_log_probabilities_in_the_order_of_the_requests(simple):
    choices = {0: ["red circle", "blue", "a green ring"], 1: ["blue", "red"]}
    requests = [
        Instance((DOCUMENTS[n]["question"], c, show, n, *PLACE)) for n in (1, 0) for c in choices[n]
    ]  # fmt: skip
    found = simple.loglikelihood(requests)
    scores = mmblocks.score(simple.model, [make_conversation(1), make_conversation(0)], [choices[1], choices[0]])
    expected = [(-one.log_prob / one.tokens, one.is_greedy) for own in scores for one in own]
    assert all(isinstance(one, GenerationResult) for one in found)
    assert [one.text for one in found] == [(pytest.approx(loss, abs=1e-4), greedy) for loss, greedy in expected]
    assert all(loss > 0 for loss, _ in expected)


def test_a_choice_without_its_question_is_scored_alone(simple):
    (found,) = simple.loglikelihood([Instance(("", "red"))])
    ((expected,),) = mmblocks.score(simple.model, [Conversation((Message("user", (Text(""),)),))], [["red"]])
    assert found.text == (pytest.approx(-expected.log_prob / expected.tokens, abs=1e-4), expected.is_greedy)


def test_a_function_of_the_document_gives_the_continuation(simple):
    request = Instance((DOCUMENTS[2]["question"], lambda document: document["colour"], show, 2, *PLACE))
    (found,) = simple.loglikelihood([request])
    ((expected,),) = mmblocks.score(simple.model, [make_conversation(2)], [["blue"]])
    assert found.text[0] == pytest.approx(-expected.log_prob / expected.tokens, abs=1e-4)


# Several rounds -------------------------------------------------------------------------------------------------------


def play_simple(document, previous_output, round_idx, previous_round_info):
    """Another round with the answer of the one before in its question, until there are as many as the colour has letters."""
    info = (previous_round_info or 0) + 1
    assert (info, len(previous_output)) == (round_idx, round_idx)
    is_over = round_idx == len(document["colour"]) - 1
    return show(document), f"And then {previous_output[-1]}?", is_over, previous_output, info


def play_chat(document, round_idx=None, previous_output=None, previous_round_info=None):
    def make_messages(text):
        part = {"type": "image", "url": IMAGES[document["colour"]]}
        return [{"role": "user", "content": [part, {"type": "text", "text": text}]}]

    if round_idx is None:
        return make_messages(document["question"])
    _, text, is_over, outputs, info = play_simple(document, previous_output, round_idx, previous_round_info)
    return None if is_over else make_messages(text), is_over, outputs, info


def expect_rounds(model, number):
    texts = [answer(model, make_conversation(number))[0].text]
    while len(texts) < len(COLOURS[number]) - 1:
        texts.append(answer(model, make_conversation(number, f"And then {texts[-1]}?"))[0].text)
    return texts


def test_each_round_asks_with_the_answers_before_it(simple, chat):
    rounds = [Instance((DOCUMENTS[n]["question"], SETTINGS, show, play_simple, n, *PLACE)) for n in (1, 0)]
    expected = [expect_rounds(simple, n) for n in (1, 0)]
    assert [len(texts) for texts in expected] == [4, 2]
    assert [one.text for one in simple.generate_until_multi_round(rounds)] == expected
    assert [one.text for one in chat.generate_until_multi_round([ask_chat(n, play_chat) for n in (1, 0)])] == expected


# Messages -------------------------------------------------------------------------------------------------------------


def test_images_in_front_of_a_text_make_the_prompt_of_the_simple_class(simple, chat):
    assert chat.generate_until([ask_chat(n, play_chat) for n in (0, 2)]) == simple.generate_until(
        [ask_simple(0), ask_simple(2)]
    )


def test_images_among_texts_stay_in_their_places(chat):
    red, green = ({"type": "image", "url": IMAGES[name]} for name in COLOURS[:2])
    first, last = ({"type": "text", "text": text} for text in ("First ", " or this?"))
    system = {"role": "system", "content": "Be short."}
    messages = [system, {"role": "user", "content": [first, red, last, green]}]
    (found,) = chat.generate_until([ask_chat(0, lambda _: messages)])
    visuals = [Visual("image", IMAGES[name]) for name in COLOURS[:2]]
    parts = (Text("First "), visuals[0], Text(" or this?"), visuals[1])
    expected = Conversation((Message("system", (Text("Be short."),)), Message("user", parts)))
    assert found.text == answer(chat, expected)[0].text


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "audio", "url": "speech.wav"}, "cannot be shown"),
        ({"type": "video", "url": "clip.mp4", "start_time": 1.0}, "part of a video"),
        ({"type": "video", "url": "gone.mp4"}, r"gone\.mp4"),
    ],
)
def test_what_cannot_be_shown_is_an_error(chat, part, message):
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]
    with pytest.raises(DataError, match=message):
        chat.generate_until([ask_chat(0, lambda _: messages)])
