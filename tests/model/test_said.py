"""What can be said to a model, and how everything else is refused."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmblocks.assets import find_media
from mmblocks.chat import Chat, Reuse, answer, image, video
from mmblocks.chat.inputs import to_part
from mmblocks.conversation import Conversation, Message, Text, Visual
from mmblocks.errors import ConfigError, DataError
from mmblocks.model.generate import Decoding

SHORT = Decoding(max_new_tokens=3)
PICTURE = np.arange(30 * 40 * 3).astype(np.uint8).reshape(30, 40, 3)
CLIP = np.arange(5 * 20 * 30 * 3).astype(np.uint8).reshape(5, 20, 30, 3)
ASKED = Conversation.from_messages([{"role": "user", "content": "What is this?"}])


def png(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def gif(frames):
    file = io.BytesIO()
    first, *others = [Image.fromarray(frame) for frame in frames]
    first.save(file, "GIF", save_all=True, append_images=others, duration=100)
    return file.getvalue()


def test_a_picture_is_the_same_in_every_form(tiny_model, tmp_path):
    (tmp_path / "image.png").write_bytes(png(PICTURE))
    forms = [image(tmp_path / "image.png"), tmp_path / "image.png", png(PICTURE), Image.fromarray(PICTURE), PICTURE]
    forms += [bytearray(png(PICTURE)), Visual("image", Image.fromarray(PICTURE)), image(PICTURE)]
    said = [Chat(tiny_model, decoding=SHORT).ask(form, "What is this?") for form in forms]
    assert said == said[:1] * len(forms)


def test_a_clip_is_the_same_in_every_form(tiny_model, tmp_path):
    (tmp_path / "frames").mkdir()
    for i, frame in enumerate(CLIP):
        (tmp_path / "frames" / f"{i}.png").write_bytes(png(frame))
    for forms in (
        [CLIP, video(CLIP), tmp_path / "frames"],
        [find_media("video.mp4"), find_media("video.mp4").read_bytes()],
    ):
        said = ["".join(Chat(tiny_model, decoding=SHORT).stream(form, "What is this?")) for form in forms]
        assert said == said[:1] * len(forms)


@pytest.mark.parametrize(
    ("said", "kind"),
    [(find_media("video.mp4"), "video"), (png(PICTURE), "image"), (gif(CLIP), "video"), (gif(CLIP[:1]), "image")],
)
def test_files_and_bytes_are_a_picture_or_a_clip_by_what_is_in_them(said, kind, tmp_path):
    assert to_part(said).kind == kind
    (tmp_path / "unnamed").write_bytes(said.read_bytes() if isinstance(said, Path) else said)
    assert to_part(tmp_path / "unnamed").kind == kind


def test_a_str_is_a_text_even_where_it_is_a_path():
    assert to_part(str(find_media("video.mp4"))) == Text(str(find_media("video.mp4")))


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (None, "None cannot be said; give a text, a PIL image, a pathlib.Path"),
        (5, "5 cannot be said"),
        (1.5, "cannot be said"),
        (True, "True cannot be said"),
        (object(), "cannot be said"),
        (["What?"], r"Give several one by one"),
        ((PICTURE, "What?"), "one by one"),
        ({"type": "text", "text": "What?"}, "read by Conversation.from_messages"),
        ((c for c in "ab"), "cannot be said"),
        ({"a"}, "cannot be said"),
        (ASKED, "Conversations are answered by `answer`"),
        (Message("user", (Text("What?"),)), "Conversations are answered by"),
        (torch.zeros(3, 4, 4), r"permute\(1, 2, 0\)\.numpy\(\)"),
        (PICTURE[:, :, 0], r"uint8 \(30, 40\) cannot be shown; give uint8 \(height, width, 3\) for an image"),
        (PICTURE.astype(float), "float64"),
        (PICTURE.transpose(2, 0, 1), r"\(3, 30, 40\)"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
        (np.zeros((1, 2, 4, 4, 3), np.uint8), r"\(1, 2, 4, 4, 3\)"),
        (np.array("text"), "cannot be shown"),
        (Path("nowhere.png"), r"nowhere\.png: there is no such file"),
        (Path(__file__), "neither an image .* nor a video"),
        (b"", "zero bytes"),
        (b"no image", "neither an image"),
    ],
    ids=lambda value: f"{type(value).__name__}" if not isinstance(value, str) else value[:20],
)
def test_anything_else_is_refused_with_what_is_taken(tiny_model, said, says):
    chat = Chat(tiny_model, decoding=SHORT)
    for ask in (chat.ask, lambda *parts: list(chat.stream(*parts))):
        with pytest.raises(DataError, match=says):
            ask(said, "What is this?")
    assert chat.messages == ()


@pytest.mark.parametrize(
    "given",
    [
        None,
        5,
        "What?",
        b"",
        {},
        {"role": "user"},
        ASKED,
        [None],
        ["What?"],
        [[ASKED]],
        [{"role": "user", "content": "a"}],
    ],
)
def test_answers_are_given_to_conversations_alone(tiny_model, given):
    with pytest.raises(DataError, match="conversations: "):
        answer(tiny_model, given, SHORT)


def test_conversations_may_come_in_any_order_that_can_be_listed(tiny_model):
    assert answer(tiny_model, (one for one in [ASKED]), SHORT) == answer(tiny_model, [ASKED], SHORT)
    assert answer(tiny_model, []) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: Text(None),
        lambda: Text(5),
        lambda: Message("nobody", ()),
        lambda: Message("user", "What?"),
        lambda: Message("user", ("What?",)),
        lambda: Message("user", None),
        lambda: Conversation.from_messages(None),
        lambda: Conversation.from_messages("What?"),
        lambda: Conversation.from_messages({"role": "user", "content": "What?"}),
        lambda: Conversation.from_messages(["What?"]),
        lambda: Conversation.from_messages([None]),
        lambda: image(None),
        lambda: image(5),
        lambda: image(CLIP),
        lambda: image([PICTURE]),
        lambda: video(None),
        lambda: video(PICTURE),
        lambda: video(CLIP, fps=0),
        lambda: video(CLIP, fps=float("nan")),
        lambda: video(CLIP, fps="5"),
    ],
)
def test_what_is_no_part_of_a_conversation_is_refused_when_it_is_made(make):
    with pytest.raises(DataError):
        make()


@pytest.mark.parametrize(
    "settings", [{"decoding": {"max_new_tokens": 3}}, {"decoding": 5}, {"reuse": 5}, {"reuse": {}}]
)
def test_a_chat_takes_settings_of_their_own_kinds(tiny_model, settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Chat(tiny_model, **settings)


@pytest.mark.parametrize("value", [-1, 1.5, True, "5", None, float("nan"), 10**20])
def test_what_is_kept_is_a_number_of_bytes(value):
    for name in ("kv_bytes", "visual_bytes"):
        with pytest.raises(ConfigError, match="a limit is a number of bytes"):
            Reuse(**{name: value})
