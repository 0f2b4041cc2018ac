"""Evaluation of a model behind an endpoint: the answers of the model itself."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

import mmblocks
from mmblocks.assets import find_media, find_tiny_model
from mmblocks.cli import main
from mmblocks.conversation import Conversation, Message, Text, Visual
from mmblocks.errors import DataError
from mmblocks.eval.endpoint_model import EndpointModel, to_messages
from mmblocks.eval.predictions import read_predictions
from mmblocks.model.generate import Decoding
from mmblocks.server import serve

TEXTS = ("How many shapes are there?", "What colour is the triangle?", "Which way does it move?", "What shape is red?")


@pytest.fixture(scope="module")
def tiny_server():
    with serve(mmblocks.load(find_tiny_model()), port=0, name="tiny") as running:
        yield running


@pytest.fixture
def data(tmp_path):
    """Records about an image and a video, the last of an image that is not there."""
    records = []
    for number, text in enumerate(TEXTS):
        kind = "video" if "move" in text else "image"
        source = str(find_media("video.mp4" if kind == "video" else "image.png")) if number < 3 else "missing.png"
        talk = [{"from": "human", "value": f"<{kind}>\n{text}"}, {"from": "gpt", "value": "3"}]
        records.append({"id": str(number), kind: source, "conversations": talk})
    (tmp_path / "val.json").write_text(json.dumps(records))
    return tmp_path / "val.json"


def evaluate(model, data, folder, *options):
    assert (
        main(["eval", model, f"data={data}", "metric=exact", "max_new_tokens=8", "--out", str(folder), *options]) == 0
    )
    (predictions,) = folder.glob("*/predictions*.jsonl")
    return read_predictions(predictions.parent)


def test_scores_are_those_of_the_model_itself(tiny_server, data, tmp_path):
    local = evaluate(str(find_tiny_model()), data, tmp_path / "local")
    served = evaluate(tiny_server.base_url, data, tmp_path / "served")
    assert served.keys() == local.keys() == {0, 1, 2, 3}
    for number in range(3):
        for name in ("answer", "scores", "answer_tokens", "prompt_tokens", "finish_reason", "key", "prompt"):
            assert getattr(served[number], name) == getattr(local[number], name), name
    assert local[0].answer == "3"
    assert "missing.png" in served[3].fault


def test_a_task_of_likelihoods_is_refused(tiny_server, data, tmp_path, capsys):
    command = ["eval", tiny_server.base_url, f"data={data}", "metric=loss", "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "an endpoint does not tell how likely given answers are" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "cpu"], "--device has no effect on a model behind an endpoint"),
        (["--bits", "8"], "--bits has no effect on a model behind an endpoint"),
        (["--endpoint-model", "other"], "does not know what is asked"),
    ],
)
def test_what_has_no_effect_is_refused(tiny_server, data, tmp_path, capsys, words, message):
    assert main(
        ["eval", tiny_server.base_url, f"data={data}", "metric=exact", "--out", str(tmp_path / "out"), *words]
    ) in (1, 2)
    assert message in capsys.readouterr().err


def test_a_name_of_an_endpoint_without_an_endpoint_is_refused(data, capsys):
    assert main(["eval", f"data={data}", "metric=exact", "--endpoint-model", "tiny"]) == 2
    assert "--endpoint-model goes with the URL" in capsys.readouterr().err


def test_tinyworld_asks_a_model_of_this_process(tiny_server, capsys):
    assert main(["eval", tiny_server.base_url, "tiny"]) == 2
    assert "name another task" in capsys.readouterr().err


def test_an_endpoint_that_is_not_there_is_named(data, capsys, tmp_path):
    assert main(["eval", "http://127.0.0.1:9/v1", f"data={data}", "metric=exact", "--out", str(tmp_path / "out")]) == 1
    assert "The model at http://127.0.0.1:9/v1" in capsys.readouterr().err


def test_decoding_reaches_the_model(tiny_server):
    model, question = (
        EndpointModel.connect(tiny_server.base_url),
        Conversation((Message("user", (Text("How many?"),)),)),
    )
    decoding = Decoding(max_new_tokens=6, temperature=2, top_k=20, seed=5, min_new_tokens=6, repetition_penalty=1.5)
    (got,) = model.respond([question], decoding)
    (want,) = mmblocks.respond(tiny_server.service.engine.model, [question], decoding)
    assert (got.text, got.finish_reason, got.answer_tokens) == (want.text, want.finish_reason, want.answer_tokens)


# Messages ---------------------------------------------------------------------------------------------------------------


def read_uri(uri):
    kind, _, content = uri.partition(";base64,")
    return kind.removeprefix("data:"), base64.b64decode(content)


def send(visual):
    (message,) = to_messages(Conversation((Message("user", (visual, Text("What?"))),)))
    part, text = message["content"]
    assert (message["role"], text) == ("user", {"type": "text", "text": "What?"})
    return part[part["type"]]["url"]


def test_files_are_sent_as_they_are(tmp_path):
    image, video = find_media("image.png"), find_media("video.mp4")
    assert read_uri(send(Visual("image", image))) == ("image/png", image.read_bytes())
    assert read_uri(send(Visual("image", image.read_bytes()))) == ("image/png", image.read_bytes())
    assert read_uri(send(Visual("video", video))) == ("video/mp4", video.read_bytes())
    Image.open(image).convert("RGB").save(tmp_path / "photo.jpg")
    assert read_uri(send(Visual("image", tmp_path / "photo.jpg"))) == (
        "image/jpeg",
        (tmp_path / "photo.jpg").read_bytes(),
    )


def test_what_is_in_memory_is_sent_without_loss():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    kind, content = read_uri(send(Visual("image", Image.fromarray(pixels[0]))))
    assert kind == "image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels[0])
    frames = [np.asarray(Image.open(io.BytesIO(read_uri(uri)[1]))) for uri in send(Visual("video", pixels))]
    assert np.array_equal(np.stack(frames), pixels)


def test_what_cannot_be_sent_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png.* is no image that can be sent"):
        send(Visual("image", tmp_path / "broken.png"))
    with pytest.raises(DataError, match=r"missing\.png"):
        send(Visual("image", tmp_path / "missing.png"))
