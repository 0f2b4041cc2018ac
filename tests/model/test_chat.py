"""A chat answers as if everything were read anew, and reads only what is new."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import mmblocks
from mmblocks.assets import find_media
from mmblocks.chat import Chat, Reuse, answer, image, video
from mmblocks.components import projectors
from mmblocks.conversation import Conversation, Message, Text
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import ConfigError, DataError
from mmblocks.model.generate import Decoding
from mmblocks.model.generation.weights import WeightSnapshot
from mmblocks.ops.choice import find_requested_backend, use_backends
from mmblocks.train.adapters.lora import add_lora, disable_lora, merge_temporarily
from mmblocks.train.stages import Lora

RED, BLUE, WIDE = (
    Image.new("RGB", (60, 40), "red"),
    Image.new("RGB", (20, 40), "blue"),
    Image.new("RGB", (90, 30), "red"),
)
CLIP = np.arange(5 * 20 * 30 * 3).astype(np.uint8).reshape(5, 20, 30, 3)
SHORT = Decoding(max_new_tokens=6)


@pytest.fixture
def model(tiny_model):
    """Random in every tensor of the backbone, so that what was read matters."""
    with torch.no_grad():
        for parameter in tiny_model.backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return tiny_model


def fresh(model, messages, decoding=SHORT):
    """The answer to the last question of `messages`, nothing remembered."""
    return answer(model, [Conversation(tuple(messages))], decoding)[0]


def answers_as_fresh(chat):
    """Whether the last answer is that of a model that reads the whole conversation anew."""
    return chat.messages[-1].text == fresh(chat.model, chat.messages[:-1], chat.decoding)


@contextmanager
def counted(model):
    """What is run meanwhile: views encoded, and rows of each call of the backbone."""
    seen = {"views": 0, "rows": []}

    def encoded(_module, args, _out):
        seen["views"] += len(args[0])

    def ran(_module, args, out):
        seen["rows"].append(args[0].shape[:2].numel())

    hooks = [
        model.encoder.register_forward_hook(encoded),
        model.backbone.lm.get_decoder().layers[0].register_forward_hook(ran),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def length_of(model, messages):
    return len(Processor.from_model(model).encode_conversation_prompt(Conversation(tuple(messages))))


# Answers --------------------------------------------------------------------------------------------------------------


def test_a_chat_remembers_pictures_and_answers(model):
    chat = Chat(model, decoding=Decoding(max_new_tokens=4))
    first = chat.ask(image(RED), "What is this?")
    chat.ask(video(CLIP), "And this?")
    assert [m.role for m in chat.messages] == ["user", "assistant", "user", "assistant"]
    assert chat.messages[1].text == first
    assert answers_as_fresh(chat)


def test_every_answer_is_that_of_a_model_that_reads_all_anew(model):
    chat = Chat(model, system="Answer in one word.", decoding=SHORT)
    for said in [
        (image(RED), "What colour is it?"),
        ("How many circles are there?",),
        (image(WIDE), image(BLUE), "Which image has a red circle?"),
        (video(CLIP), "What is moving?"),
        ("Is there a green square?",),
    ]:
        chat.ask(*said)
        assert answers_as_fresh(chat)
    assert len({m.text for m in chat.messages[2::2]}) > 2


def test_drawn_answers_are_those_of_a_model_that_reads_all_anew(model):
    chat = Chat(model, decoding=Decoding(max_new_tokens=12, temperature=1.5, top_k=30, seed=4))
    for question in ("What is this?", "How many?", "What colour is the circle?"):
        chat.ask(image(RED), question) if question == "What is this?" else chat.ask(question)
        assert answers_as_fresh(chat)


def test_a_conversation_may_be_changed_behind_the_back_of_a_chat(model):
    chat = Chat(model, decoding=SHORT)
    chat.ask(image(RED), "What is this?")
    chat.ask("How many circles are there?")
    said = chat.messages
    for changed in (
        said[:2],  # a question taken back
        (*said[:3], Message("assistant", (Text("two"),))),  # another answer
        (Message("user", (image(BLUE), *said[0].parts[1:])), *said[1:]),  # another image
        (Message("system", (Text("Answer in one word."),)), *said),
        (),
    ):
        chat.messages = changed
        chat.ask("What colour is the square?")
        assert answers_as_fresh(chat)


def test_what_was_forgotten_has_no_say(model):
    chat = Chat(model, system="Answer in one word.", decoding=SHORT)
    chat.ask(image(RED), "What is this?")
    chat.reset_messages()
    assert chat.ask("How many?") == fresh(model, chat.messages[:-1])
    assert [m.role for m in chat.messages] == ["system", "user", "assistant"]


def test_a_picture_that_changed_on_disk_is_looked_at_again(model, tmp_path):
    path = tmp_path / "image.png"
    RED.save(path)
    chat = Chat(model, decoding=SHORT)
    chat.ask(image(path), "What is this?")
    BLUE.save(path)
    chat.ask("What is it now?")
    assert answers_as_fresh(chat)


# What is run ----------------------------------------------------------------------------------------------------------


def test_a_second_question_costs_its_own_tokens_only(model):
    chat = Chat(model, decoding=SHORT)
    with counted(model) as first:
        chat.ask(video(CLIP), "What is moving?")
    assert first["views"] == 4
    before = length_of(model, chat.messages[:1]) + 5  # of six tokens the last was drawn, and not read
    with counted(model) as second:
        chat.ask("How many circles are there?")
    assert second["views"] == 0
    assert second["rows"][0] == length_of(model, chat.messages[:-1]) - before
    assert second["rows"][1:] == [1] * (len(second["rows"]) - 1)


def test_of_a_new_picture_only_its_own_views_are_encoded(model):
    chat = Chat(model, decoding=SHORT)
    chat.ask(image(RED), image(BLUE), "Which image has a red circle?")
    with counted(model) as run:
        chat.ask(image(WIDE), "And this one?")
    assert run["views"] == 1  # several images: one view each
    assert answers_as_fresh(chat)


def test_a_picture_shown_again_is_not_encoded_again(model):
    chat = Chat(model, decoding=SHORT)
    chat.ask(image(RED), "What is this?")
    chat.reset_messages()
    with counted(model) as run:
        chat.ask(image(RED.copy()), "How many circles are there?")
    assert run["views"] == 0
    assert answers_as_fresh(chat)


def test_a_picture_whose_plan_changes_is_encoded_by_its_new_one(model):
    chat = Chat(model, decoding=SHORT)
    chat.ask(image(WIDE), "What is this?")  # alone: tiles
    chat.ask(image(RED), "And this?")  # two images: one view each
    assert answers_as_fresh(chat)


def test_questions_about_one_clip_encode_it_once(model):
    asked = ["What is moving?", "How many circles are there?", "Is there a green square?"]
    talks = [Conversation((Message("user", (video(CLIP), Text(question))),)) for question in asked]
    with counted(model) as run:
        together = answer(model, talks, SHORT)
    assert run["views"] == 4
    assert together == [answer(model, [talk], SHORT)[0] for talk in talks]
    assert answer(model, [], SHORT) == []


@pytest.mark.parametrize(("reads_questions", "views"), [(False, 1), (True, 2)])
def test_a_projector_that_reads_questions_sees_a_picture_once_for_each(tiny_spec, reads_questions, views):
    spec = {**tiny_spec, "pooling": "none", "tokenizer": {"image": "pad"}}
    if reads_questions:
        spec |= {"projector": {"name": "instruct_qformer", **projectors["instruct_qformer"].tiny}}
    model = mmblocks.build(spec, seed=0).eval()
    talks = [Conversation((Message("user", (image(RED), Text(asked))),)) for asked in ("How many?", "What is it?")]
    with counted(model) as run:
        together = answer(model, [*talks, talks[0]], SHORT)
    assert run["views"] == views
    assert together == [answer(model, [talk], SHORT)[0] for talk in (*talks, talks[0])]


# Limits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reuse", [Reuse(0, 0), Reuse(kv_bytes=20_000), Reuse(visual_bytes=0)], ids=str)
def test_with_tighter_limits_answers_are_the_same(model, reuse):
    chat = Chat(model, decoding=SHORT, reuse=reuse)
    for said in [(image(RED), "What is this?"), (video(CLIP), "And this?"), ("How many?",)]:
        chat.ask(*said)
        assert answers_as_fresh(chat)
        store = chat._cache._step.store
        assert store.slot_bytes * store.capacity <= reuse.kv_bytes


def test_what_does_not_fit_is_read_again(model):
    chat = Chat(model, decoding=SHORT, reuse=Reuse(0, 0))
    chat.ask(image(RED), "What is this?")
    with counted(model) as run:
        chat.ask("How many?")
    assert run["views"] > 0
    assert run["rows"][0] == length_of(model, chat.messages[:-1])


def test_the_picture_least_used_leaves_first(model):
    chat = Chat(model, decoding=SHORT)
    chat.ask(image(RED), "What is this?")
    one = sum(rows.nbytes for rows in chat._cache._visuals._rows.values())
    chat = Chat(model, decoding=SHORT, reuse=Reuse(0, 2 * one))
    encoded = []
    for picture in (
        RED,
        RED.rotate(0).convert("L").convert("RGB"),
        RED,
        RED.transpose(Image.Transpose.ROTATE_180),
        RED,
    ):
        chat.reset_messages()
        with counted(model) as run:
            chat.ask(image(picture), "What is this?")
        encoded.append(run["views"] > 0)
    assert encoded == [True, True, False, False, False]  # turned round, plain red is what it was


def test_a_limit_below_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"kv_bytes=-1.*a limit is a number of bytes"):
        Reuse(kv_bytes=-1)


# When things go wrong -------------------------------------------------------------------------------------------------


def test_saying_nothing_is_an_error(model):
    with pytest.raises(DataError, match="nothing was said"):
        Chat(model).ask()


@pytest.mark.parametrize(
    ("where", "call"),
    [
        ("encoder", 1),
        ("projector.head", 1),
        ("backbone.lm.model.layers.1", 1),
        ("backbone.lm.model.layers.1", 3),
        ("backbone.lm.lm_head", 1),
        ("backbone.lm.lm_head", 3),
    ],
)
def test_after_an_error_in_the_middle_answers_are_right(model, where, call):
    chat = Chat(model, decoding=SHORT)
    chat.ask(image(RED), "What is this?")
    said, calls = chat.messages, []

    def fail(*_):
        calls.append(1)
        if len(calls) == call:
            raise RuntimeError("out of memory")

    hook = model.get_submodule(where).register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        chat.ask(image(BLUE), image(WIDE), "And these?")
    hook.remove()
    assert chat.messages == said
    for question in ("How many circles are there?", "What colour is the square?"):
        chat.ask(question)
        assert answers_as_fresh(chat)


def test_a_broken_picture_leaves_the_chat_as_it_was(model, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"")
    chat = Chat(model, decoding=SHORT)
    chat.ask(image(RED), "What is this?")
    with pytest.raises(DataError, match=r"broken\.png"):
        chat.ask(image(tmp_path / "broken.png"), "And this?")
    chat.ask("How many?")
    assert answers_as_fresh(chat)


# Streams --------------------------------------------------------------------------------------------------------------


def test_streamed_pieces_make_the_answer(model):
    streamed = Chat(model, decoding=SHORT)
    asked = Chat(model, decoding=SHORT)
    for said in [(image(RED), "What is this?"), ("How many?",)]:
        assert "".join(streamed.stream(*said)).strip() == asked.ask(*said)
    assert streamed.messages[1] == asked.messages[1]


def test_a_broken_picture_reaches_the_reader_of_a_stream_as_an_error(model, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"broken\.png"):
        list(Chat(model).stream(image(tmp_path / "broken.png"), "What is this?"))


def test_a_stream_that_is_left_is_not_remembered_and_no_longer_written(model):
    chat = Chat(model, decoding=Decoding(max_new_tokens=500))
    with counted(model) as run:
        stream = chat.stream(image(RED), "What is this?")
        next(stream)
        stream.close()
    assert len(run["rows"]) < 400
    assert chat.messages == ()
    chat.decoding = SHORT
    with counted(model) as again:
        chat.ask(image(RED), "What is this?")
    assert again["views"] == 0
    assert again["rows"][0] == 1  # the question was read; only what it goes on with is asked for
    assert answers_as_fresh(chat)


def test_a_question_between_the_pieces_of_an_answer_is_answered_too(model):
    chat = Chat(model, decoding=SHORT)
    chat.ask(image(RED), "What is this?")
    before = chat.messages
    stream = chat.stream("How many circles are there?")
    first = next(stream)
    between = chat.ask("What colour is the square?")
    assert between == fresh(model, chat.messages[:-1])
    whole = first + "".join(stream)
    assert whole.strip() == chat.messages[-1].text == fresh(model, chat.messages[:-1])
    assert len(chat.messages) == len(before) + 2


def test_a_stream_uses_the_ops_that_were_asked_for_around_it(model):
    asked = []
    hook = model.encoder.register_forward_hook(lambda *_: asked.append(find_requested_backend("attention")))
    with use_backends("reference"):
        list(Chat(model, decoding=SHORT).stream(image(RED), "What is this?"))
    hook.remove()
    assert asked == ["reference"]


# A model that changes -------------------------------------------------------------------------------------------------


def halved(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.5)


def trained_by_a_fused_optimizer(module):
    """torch does not count these writes."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.05, fused=True)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def loaded(module):
    module.load_state_dict({name: torch.randn_like(t) * 0.3 for name, t in module.state_dict().items()})


def replaced(module):
    for name, parameter in module.named_parameters():
        module.get_submodule(name.rpartition(".")[0]).register_parameter(
            name.rpartition(".")[2], nn.Parameter(parameter * 0.7)
        )


def swapped_storage(module):
    for parameter in module.parameters():
        parameter.data = parameter.data * 0.7


@pytest.mark.parametrize("part", ["encoder", "projector", "backbone.lm.model.layers"])
@pytest.mark.parametrize("change", [halved, trained_by_a_fused_optimizer, loaded, replaced, swapped_storage])
def test_a_model_that_changed_answers_as_it_is_now(model, part, change):
    chat = Chat(model, decoding=SHORT)
    chat.ask(image(RED), "What is this?")
    change(model.get_submodule(part))
    with counted(model) as run:
        chat.ask("How many circles are there?")
    assert run["views"] > 0
    assert answers_as_fresh(chat)


def test_a_model_without_values_can_be_asked_too(tiny_spec):
    with torch.device("meta"):
        model = mmblocks.build(tiny_spec)
    before = WeightSnapshot.from_module(model)
    assert before.is_same_for(model)
    model.projector.train(not model.projector.training)
    assert not before.is_same_for(model)


def test_a_changed_mark_counts_as_a_change(model):
    before = WeightSnapshot.from_module(model)
    assert before.is_same_for(model)
    with torch.no_grad():
        model.learned_tokens["newline"][3] += 1
    assert not before.is_same_for(model)


def test_adapters_that_are_switched_or_merged_count_as_a_change(model):
    chat = Chat(model, decoding=SHORT)
    add_lora(model, Lora(lr=1e-3, rank=4))
    with torch.no_grad():
        for name, parameter in model.backbone.lm.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.eval()
    chat.ask(image(RED), "What is this?")
    for mode in (disable_lora, merge_temporarily):
        with mode(model):
            chat.ask("How many?")
            assert answers_as_fresh(chat)
    chat.ask("What colour?")
    assert answers_as_fresh(chat)


def test_another_model_may_take_over(model, tiny_spec):
    chat = Chat(model, decoding=SHORT)
    chat.ask(image(RED), "What is this?")
    chat.model = mmblocks.build(tiny_spec, seed=1).eval()
    chat.ask("How many?")
    assert answers_as_fresh(chat)


def test_inference_mode_may_be_on_for_some_questions(model):
    chat = Chat(model, decoding=SHORT)
    with torch.inference_mode():
        chat.ask(image(RED), "What is this?")
    chat.ask("How many?")
    with torch.inference_mode():
        chat.ask("What colour?")
    assert answers_as_fresh(chat)


def test_text_whose_positions_turn_by_their_length_is_read_anew(tiny_spec):
    scaled = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}
    spec = {**tiny_spec, "backbone": {**tiny_spec["backbone"], "family": "llama", "further": scaled}}
    model = mmblocks.build(spec, seed=0).eval()
    chat = Chat(model, decoding=SHORT)
    chat.ask("How many?")
    with counted(model) as run:
        chat.ask("What colour?")
    assert run["rows"][0] == length_of(model, chat.messages[:-1])


# Files that are gone --------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """An image, another one, a video as a folder of images and one as a file."""
    RED.save(tmp_path / "red.png")
    BLUE.save(tmp_path / "blue.png")
    (tmp_path / "clip").mkdir()
    for i, frame in enumerate(CLIP):
        Image.fromarray(frame).save(tmp_path / "clip" / f"{i}.png")
    (tmp_path / "video.mp4").write_bytes(find_media("video.mp4").read_bytes())
    return tmp_path


def lost(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


SHOWN = {
    "picture": lambda f: [image(f / "red.png")],
    "pictures": lambda f: [image(f / "red.png"), image(str(f / "blue.png"))],
    "clip": lambda f: [video(f / "video.mp4")],
    "frames": lambda f: [video(f / "clip")],
    "image and clip": lambda f: [image(f / "red.png"), video(f / "clip")],
}


@pytest.mark.parametrize("kind", SHOWN)
def test_a_chat_goes_on_from_what_it_kept_when_its_files_are_gone(model, files, kind):
    there, gone = Chat(model, decoding=SHORT), Chat(model, decoding=SHORT)
    for chat in (there, gone):
        chat.ask(*SHOWN[kind](files), "What is this?")
    expected = [there.ask("How many?"), there.ask("What colour?")]
    lost(files)
    assert [gone.ask("How many?"), "".join(gone.stream("What colour?")).strip()] == expected


def test_a_picture_whose_file_is_broken_now_is_the_one_that_was_shown(model, files):
    there, broken = Chat(model, decoding=SHORT), Chat(model, decoding=SHORT)
    for chat in (there, broken):
        chat.ask(image(files / "red.png"), "What is this?")
    expected = there.ask("How many?")
    (files / "red.png").write_bytes(b"no image")
    assert broken.ask("How many?") == expected


@pytest.mark.parametrize("reuse", [Reuse(0, 0), Reuse(visual_bytes=0)])
def test_a_file_that_is_gone_is_named_where_nothing_of_it_is_kept(model, files, reuse):
    chat = Chat(model, decoding=SHORT, reuse=reuse)
    chat.ask(image(files / "red.png"), "What is this?")
    lost(files)
    if reuse.kv_bytes:
        model.backbone.lm.lm_head.weight.data.add_(0.1)  # what was read before is of no use to another model
    for _ in range(2):
        with pytest.raises(DataError, match=r"red\.png: .*no such file"):
            chat.ask("How many?")
    assert len(chat.messages) == 2
    RED.save(files / "red.png")
    chat.ask("How many?")
    assert answers_as_fresh(chat)


def test_a_file_that_is_gone_cannot_be_shown_once_more_after_forget(model, files):
    chat, picture = Chat(model, decoding=SHORT), image(files / "red.png")
    chat.ask(picture, "What is this?")
    lost(files)
    chat.reset_messages()
    with pytest.raises(DataError, match=r"red\.png: there is no such file"):
        chat.ask(picture, "What is this?")
