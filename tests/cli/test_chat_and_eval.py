"""`mmblocks chat` and `mmblocks eval` with the bundled model."""

import json
import os
import subprocess
import sys
from contextlib import suppress

import pytest

import mmblocks
from mmblocks.assets import find_media
from mmblocks.cli import chat, main


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
    assert main(["eval", "tiny", "--limit", "12", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert {task: sum(asked for _, asked in kinds.values()) for task, kinds in counts.items()} == {
        "single": 12,
        "multi": 12,
        "video": 12,
    }
    assert main(["eval", "tiny", "--limit", "2"]) == 0
    assert "| **video** | **all** | 2 |" in capsys.readouterr().out


# Who answers, and editing of lines -------------------------------------------------------------------------------------

RECALLED = """
from mmblocks.cli.line_editing import edit_lines
with edit_lines("chat_history"):
    print(f"<{input('you: ')}>")
"""


def test_the_bundled_model_says_what_it_is_and_how_to_load_another(capsys):
    assert main(["chat", "--image", str(find_media("image.png")), "--ask", "How many shapes are there?"]) == 0
    said = capsys.readouterr()
    assert said.out == "3\n"  # the answer alone
    assert "coloured shapes only" in said.err
    assert "mmblocks chat --model MODEL" in said.err


def test_a_chat_with_the_bundled_model_begins_with_what_it_is(monkeypatch, capsys):
    monkeypatch.setattr("builtins.input", lambda _: "/quit")
    assert main(["chat"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{chat.BUNDLED}\n\n{chat.HELP}\n"
    assert said.err == ""


def test_a_model_of_ones_own_is_not_said_to_be_the_bundled_one(tiny_spec, tmp_path, capsys):
    folder = mmblocks.save(mmblocks.build(tiny_spec, seed=0), tmp_path / "mine")
    assert main(["chat", "--model", str(folder), "--ask", "What?", "--max-new-tokens", "1"]) == 0
    assert capsys.readouterr().err == ""


def test_lines_are_recalled_from_the_last_chat_and_can_be_edited(tmp_path):
    (tmp_path / "mmblocks").mkdir()
    (tmp_path / "mmblocks/chat_history").write_text("What is moving?\n")
    up, left, delete = "\x1b[A", "\x1b[D", "\x7f"
    assert "<What is moving!?>" in typed_in_a_terminal(f"{up}{left}x{delete}!\r", tmp_path)
    assert (tmp_path / "mmblocks/chat_history").read_text().splitlines() == ["What is moving?", "What is moving!?"]


def test_a_first_chat_makes_a_history_that_others_cannot_read(tmp_path):
    typed_in_a_terminal("Where is it?\r", tmp_path)
    history = tmp_path / "mmblocks/chat_history"
    assert history.read_text() == "Where is it?\n"
    assert history.stat().st_mode & 0o077 == 0


def test_a_history_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "mmblocks").write_text("a file where the folder would be")
    assert "<hello>" in typed_in_a_terminal("hello\r", tmp_path)


def test_a_python_without_readline_reads_lines_as_they_are(tmp_path):
    assert "<hello>" in typed_in_a_terminal("hello\r", tmp_path, before="import sys; sys.modules['readline'] = None")
    assert not (tmp_path / "mmblocks").exists()


def test_where_the_input_is_no_terminal_nothing_is_kept(tmp_path):
    code = f"{RECALLED}\nimport sys; print('readline' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], input="hello\n", env=environment(tmp_path), capture_output=True, text=True
    )
    assert done.stdout == "you: <hello>\nFalse\n"
    assert not (tmp_path / "mmblocks").exists()


def typed_in_a_terminal(keys, state, before=""):
    """What a terminal shows in which these keys are typed at `RECALLED`."""
    pty = pytest.importorskip("pty")  # Windows has none
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", f"{before}\n{RECALLED}"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(state)) as child:
        os.close(theirs)
        shown = b""
        while b"you: " not in shown:
            shown += os.read(ours, 1000)
        os.write(ours, keys.encode())
        with suppress(OSError):  # the other side is closed
            while more := os.read(ours, 1000):
                shown += more
    os.close(ours)
    assert child.returncode == 0, shown
    return shown.decode()


def environment(state):
    return {**os.environ, "XDG_STATE_HOME": str(state), "TERM": "xterm", "INPUTRC": os.devnull}
