"""`mmblocks chat` and `mmblocks eval` with the bundled model."""

import json

import pytest

from mmblocks.assets import find_media
from mmblocks.cli import main


def test_a_question_on_the_command_line_gets_its_answer(capsys):
    assert main(["chat", "--image", str(find_media("image.png")), "--ask", "How many shapes are there?"]) == 0
    assert capsys.readouterr().out.strip() == "3"


def test_a_clip_is_shown_like_a_picture(capsys):
    assert main(["chat", "--video", str(find_media("video.mp4")), "--ask", "Which way does it move?"]) == 0
    assert capsys.readouterr().out.strip() in ("left", "right", "up", "down")


@pytest.mark.parametrize("content", [b"", b"not an image"])
def test_a_file_that_is_no_picture_is_named(tmp_path, capsys, content):
    (tmp_path / "broken.jpg").write_bytes(content)
    assert main(["chat", "--image", str(tmp_path / "broken.jpg"), "--ask", "What?"]) == 1
    assert "broken.jpg" in capsys.readouterr().err


def test_a_chat_goes_on_after_a_file_that_cannot_be_read(monkeypatch, capsys, tmp_path):
    lines = iter(
        [
            f"/image {tmp_path / 'missing.png'}",
            f"/image {find_media('image.png')}",
            "How many shapes are there?",
            "/new",
            "/what",
            "/quit",
        ]
    )
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    assert main(["chat"]) == 0
    said = capsys.readouterr().out
    assert "missing.png" in said
    assert "\n3\n" in said


def test_a_chat_ends_with_its_input(monkeypatch):
    def ended(_):
        raise EOFError

    monkeypatch.setattr("builtins.input", ended)
    assert main(["chat"]) == 0


def test_the_table_counts_every_question(capsys):
    assert main(["eval", "tiny", "--samples", "12", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert {task: sum(asked for _, asked in kinds.values()) for task, kinds in counts.items()} == {
        "single": 12,
        "multi": 12,
        "video": 12,
    }
    assert main(["eval", "tiny", "--samples", "2"]) == 0
    assert "| **video** | **all** | 2 |" in capsys.readouterr().out
