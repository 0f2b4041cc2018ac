"""How images are read belongs to a model: recipes say it, folders keep it, commands may say otherwise once."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image, ImageDraw

import mmblocks
from mmblocks import conf
from mmblocks.assets import find_tiny_model as bundled
from mmblocks.chat import Chat, answer, image
from mmblocks.cli import main
from mmblocks.conversation import Conversation
from mmblocks.data.inspect.figures import inspect_conversation
from mmblocks.data.inspect.record_page import make_page
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import ConfigError, DataError
from mmblocks.image_reading import ImageReading
from mmblocks.model.checkpoint import load, read_spec, save
from mmblocks.model.checks.composition import find_faults
from mmblocks.model.generate import Decoding
from mmblocks.model.spec import ModelSpec
from mmblocks.model.swapping.recompose import recompose_model

DROP = {"alpha": "drop", "grey": [0, 1023], "max_px": 5000, "exif": False, "resize": "torch", "decode": "reduced"}


@pytest.fixture
def logo(tmp_path):
    """Black strokes on a transparent sheet whose hidden colour is black."""
    image = Image.new("RGBA", (48, 48), (0, 0, 0, 0))
    ImageDraw.Draw(image).line((5, 5, 43, 43), fill=(0, 0, 0, 255), width=4)
    image.save(tmp_path / "logo.png")
    return tmp_path / "logo.png"


def asked(path, answer=None):
    talk = [{"role": "user", "content": [{"type": "image", "image": str(path)}, {"type": "text", "text": "What?"}]}]
    return Conversation.from_messages(talk if answer is None else [*talk, {"role": "assistant", "content": answer}])


def whitest(model, path):
    return int(Processor.from_model(model).make_prompt_sample(asked(path)).pixels.max())


def test_a_transparent_sheet_is_seen_white_unless_the_model_says_otherwise(tiny_model, tiny_spec, logo):
    assert whitest(tiny_model, logo) == 255
    assert whitest(mmblocks.build({**tiny_spec, "images": {"alpha": "drop"}}), logo) == 0
    assert (
        Processor.from_spec({**tiny_spec, "images": {"alpha": "drop"}}).make_prompt_sample(asked(logo)).pixels.max()
        == 0
    )


def test_a_saved_model_keeps_how_it_reads_images(tiny_spec, tmp_path, logo):
    save(mmblocks.build({**tiny_spec, "images": DROP}), tmp_path / "model")
    assert json.loads((tmp_path / "model/config.json").read_text())["model"]["images"] == DROP
    assert load(tmp_path / "model").images == ImageReading.from_dict(DROP)
    other = load(tmp_path / "model", images={"alpha": "white"})
    assert other.images == ImageReading.from_dict({**DROP, "alpha": "white"})
    assert (whitest(load(tmp_path / "model"), logo), whitest(other, logo)) == (0, 255)


def test_a_model_saved_without_these_settings_gets_the_default(tiny_model, tmp_path):
    save(tiny_model, tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    del config["model"]["images"]
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    assert read_spec(tmp_path / "model").images == ImageReading()


def test_a_recipe_says_how_a_saved_model_reads_images(tiny_model, tiny_spec):
    assert recompose_model(
        tiny_model, ModelSpec.from_dict({**tiny_spec, "images": DROP})
    ).images == ImageReading.from_dict(DROP)


def test_a_recipe_holds_these_settings_with_their_types():
    raw = conf.compose("tiny/onevision", ["model.images.alpha=drop", "model.images.grey=[0,1023]"])
    assert raw["model"]["images"] == {**ImageReading().to_dict(), "alpha": "drop", "grey": [0, 1023]}
    assert ModelSpec.from_dict(raw["model"]).images == ImageReading(alpha="drop", grey=(0, 1023))
    assert conf.compose_for_planning("llava_next/vicuna_7b")["model"]["images"] == ImageReading().to_dict()


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("model.images.alpha=black", "model.images.alpha: alpha='black' is not one of white, drop"),
        ("model.images.grey=[9,3]", r"model.images.grey: grey=\[9, 3\] is no range"),
        ("model.images.max_px=0", "max_px=0 lets no image pass"),
        ("model.images.max_px=many", "model.images.max_px='many' is not int"),
        ("model.images.alfa=drop", "model.images.alfa is not a setting. Did you mean 'alpha'"),
        ("+model.images.alfa=drop", "model.images.alfa is not a setting. Did you mean 'alpha'"),
    ],
)
def test_a_fault_of_a_recipe_is_named(override, fault):
    with pytest.raises(ConfigError, match=fault):
        conf.compose("tiny/onevision", [override])


def test_faults_are_among_those_of_the_composition(tiny_spec):
    found = find_faults({**tiny_spec, "projector": "mlpp", "images": {"alpha": "black"}})
    assert {fault.key for fault in found} == {"model.projector", "model.images.alpha"}
    with pytest.raises(ConfigError, match=r"model\.images\.alpha: alpha='black'"):
        mmblocks.build({**tiny_spec, "images": {"alpha": "black"}})


def test_a_record_is_drawn_as_it_is_read(tiny_spec, logo):
    pages = {
        alpha: make_page(
            inspect_conversation(asked(logo, "A line."), Processor.from_spec({**tiny_spec, "images": {"alpha": alpha}}))
        )
        for alpha in ("white", "drop")
    }
    assert pages["white"] != pages["drop"]


# --- asking


def test_a_chat_looks_again_when_images_are_read_otherwise(tiny_model, logo):
    chat = Chat(tiny_model, decoding=Decoding(max_new_tokens=3))
    chat.ask(image(logo), "What?")
    keys = set(chat._cache._numbers)
    tiny_model.spec = replace(tiny_model.spec, images=ImageReading(alpha="drop"))
    said = chat.ask("And?")
    assert not keys & chat._cache._numbers.keys()
    assert said == answer(tiny_model, [Conversation(chat.messages[:-1])], Decoding(max_new_tokens=3))[0]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La", "I;16", "I", "F", "1", "CMYK", "LAB"])
def test_an_image_in_memory_of_any_mode_can_be_asked_about_again(tiny_model, mode):
    plain = Image.new("RGBA", (30, 20), (9, 9, 9, 99))
    by = {"La": "LA", "I;16": "L"}.get(mode)
    shown = (plain.convert(by) if by else plain).convert(mode)
    tiny_model.spec = replace(tiny_model.spec, images=ImageReading(grey="stretch"))
    chat = Chat(tiny_model, decoding=Decoding(max_new_tokens=2))
    chat.ask(image(shown), "What?")
    numbers = dict(chat._cache._numbers)
    chat.ask("And?")
    assert dict(chat._cache._numbers) == numbers  # the same image: it is not read again


def test_images_that_differ_in_what_is_transparent_alone_are_two():
    from mmblocks.conversation import Visual
    from mmblocks.data.media.identity import identify_visual

    plain = Image.new("L", (4, 4), 7)
    keyed, turned = plain.copy(), plain.copy()
    keyed.info["transparency"] = 7
    turned.getexif()[0x0112] = 6
    names = [identify_visual(Visual("image", one)) for one in (plain, keyed, turned, plain.convert("P"), plain.copy())]
    assert len(set(names)) == 4
    assert names[0] == names[4]


@pytest.mark.parametrize(("options", "fault"), [([], True), (["--max-px", "64"], True), (["--max-px", "2304"], False)])
def test_the_command_takes_the_limit_that_its_error_names(options, fault, tmp_path, capsys):
    folder = tmp_path / "model"
    save(load(bundled(), images={"max_px": 2303}), folder)
    Image.new("RGB", (48, 48)).save(tmp_path / "plan.png")
    given = ["chat", "--model", str(folder), "--image", str(tmp_path / "plan.png"), "--ask", "What?", *options]
    assert main(given) == int(fault)
    assert ("--max-px 2304 of `mmblocks chat`" in capsys.readouterr().err) == fault


@pytest.mark.parametrize(
    ("options", "images"),
    [
        ([], ImageReading()),
        (["--alpha", "drop"], ImageReading(alpha="drop")),
        (["--grey", "stretch"], ImageReading(grey="stretch")),
        (["--grey", "0,1023"], ImageReading(grey=(0, 1023))),
        (["--grey=-100,400.5", "--max-px", "9"], ImageReading(grey=(-100, 400.5), max_px=9)),
        (["--grey", "[0,4095]"], ImageReading(grey=(0, 4095))),
    ],
)
def test_options_of_a_command_are_settings(options, images, monkeypatch):
    from mmblocks.cli import chat

    seen = []
    monkeypatch.setattr(chat, "_print_answer", lambda chat, shown, text: seen.append(chat.model.images) or 0)
    assert main(["chat", "--ask", "What?", *options]) == 0
    assert seen == [images]


@pytest.mark.parametrize(
    ("option", "fault"), [("5", "grey"), ("1,2,3", "grey"), ("9,3", "is no range"), ("dark", "dark")]
)
def test_an_option_that_means_nothing_is_named(option, fault, capsys):
    assert main(["chat", "--ask", "What?", "--grey", option]) == 2
    assert fault in capsys.readouterr().err


@pytest.mark.parametrize("url", ["https://127.0.0.1/a.png", "s3://bucket/a.png"])
@pytest.mark.parametrize("kind", ["--image", "--video"])
def test_a_url_is_refused_before_a_model_is_read(url, kind, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mmblocks.model.checkpoint.load", lambda *_, **__: pytest.fail("the model was read"))
    assert main(["chat", kind, url, "--ask", "What?"]) == 1
    assert f"{url}: mmblocks opens no URLs; download the {kind[2:]}" in capsys.readouterr().err


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": {"url": "https://127.0.0.1/a.png"}}])
def test_a_url_in_a_message_is_named(part, tiny_model):
    talk = Conversation.from_messages([{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}])
    with pytest.raises(DataError, match=r"conversation: https://127\.0\.0\.1/a\.png: mmblocks opens no URLs"):
        answer(tiny_model, [talk])


# --- changing a folder


def test_a_converted_model_keeps_what_the_command_says(tiny_model, tmp_path, capsys):
    save(tiny_model, tmp_path / "model")
    given = [str(tmp_path / "model"), str(tmp_path / "new"), "--no-check", "--alpha", "drop"]
    assert main(["convert", *given]) == 2
    assert "write one with --to mmblocks" in capsys.readouterr().err
    assert main(["convert", *given, "--to", "mmblocks"]) == 0
    assert read_spec(tmp_path / "new").images == ImageReading(alpha="drop")


def test_a_swap_changes_how_images_are_read_and_nothing_else(tiny_model, tmp_path, capsys):
    save(tiny_model, tmp_path / "model")
    model, new = str(tmp_path / "model"), tmp_path / "new"
    assert main(["swap", model, "images.grey=[0,4095]", "--out", str(new)]) == 0
    assert read_spec(new).images == ImageReading(grey=(0, 4095))
    for name, weight in load(new).state_dict().items():
        assert torch.equal(weight, tiny_model.state_dict()[name])
    assert main(["swap", model, "images.alpha=black", "--out", str(tmp_path / "x")]) == 2
    assert main(["swap", model, "images=drop", "--out", str(tmp_path / "x")]) == 2
    assert "Write for example images.alpha=drop" in capsys.readouterr().err
