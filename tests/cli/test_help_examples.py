"""Every example in the help of a command can be typed: its words are parsed, and those of `EXAMPLES` run."""

import re
import shlex

import pytest
from PIL import Image

from mmblocks.assets import find_media
from mmblocks.cli import COMMANDS, main
from mmblocks.cli.examples import EXAMPLES

NEEDS_A_CHECKPOINT = {"convert"}
RUNS_UNTIL_IT_IS_STOPPED = {"serve"}
LINE = re.compile(r"^ *(?:cd .* && )?(?:torchrun .* -m )?(mmblocks .*)$", re.MULTILINE)
"""An example in a help text: a line that begins with the command, as a shell or torchrun starts it."""


def help_of(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


def lines_in(text):
    """The commands in a help text, without what is said of them behind two spaces."""
    return [re.split(r"  +| > ", line)[0] for line in LINE.findall(text)]


def parsed(line):
    """The arguments of a command line, by the parser of its command."""
    _, name, *arguments = shlex.split(line)
    return COMMANDS[name].make_parser().parse_command(arguments)


def test_every_command_has_an_example_and_every_example_a_command():
    assert list(EXAMPLES) == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_shows_an_example_and_every_line_of_it_is_parsed(command, capsys):
    lines = lines_in(help_of(command, capsys))
    assert [line for line in lines if line.split()[1] == command]
    for line in lines:
        assert parsed(line)


def test_the_help_of_mmblocks_ends_with_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    *_, title, line = capsys.readouterr().out.splitlines()
    assert title == "example:"
    assert parsed(line.strip()).ask == "How many shapes are there?"


def test_a_line_that_no_parser_takes_is_seen(capsys):
    with pytest.raises(SystemExit):
        parsed("mmblocks eval tiny --limt 3")
    assert "--limt" in capsys.readouterr().err


def test_every_example_runs_in_the_order_of_the_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.open(find_media("image.png")).convert("RGB").save("my.jpg")
    for name, line in EXAMPLES.items():
        if name not in NEEDS_A_CHECKPOINT | RUNS_UNTIL_IT_IS_STOPPED:
            code = main(shlex.split(line)[1:])
            said = capsys.readouterr()
            assert code == 0, (line, said.err[-2000:])
            assert said.out.strip(), line
    made = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("**/config.json")}
    assert {"runs/quick/model/config.json", "swapped/config.json"} <= made
    assert {"inspect", "my_projector"} <= {path.name for path in tmp_path.iterdir()}
