"""What commands ask for: without arguments an error names what is required, and nothing else."""

import pytest

from mmblocks.cli import COMMANDS, main

REQUIRED = {
    "show": ["kind", "name"],
    "check": ["recipe"],
    "plan": ["recipe"],
    "inspect": ["recipe"],
    "train": ["recipe"],
    "sweep": ["recipe"],
    "diff": ["one", "other"],
    "convert": ["FROM", "TO"],
    "swap": ["MODEL", "--out"],
    "new": ["kind", "name"],
    "completion": ["shell"],
}
"""Command -> what cannot be left out; the others need nothing."""


@pytest.fixture
def run_command(monkeypatch, capsys):
    """Run a command whose own work is left out; its exit code and what it wrote to standard error."""

    def run(name, *arguments):
        monkeypatch.setattr(COMMANDS[name].import_module(), "run", lambda args: 0)
        try:
            code = main([name, *arguments])
        except SystemExit as end:
            code = end.code
        return code, capsys.readouterr().err

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_without_arguments_a_command_names_what_it_requires_and_nothing_else(name, run_command):
    code, error = run_command(name)
    if name not in REQUIRED:
        assert (code, error) == (0, "")
        return
    assert code == 2
    last_line = error.splitlines()[-1]
    assert last_line.startswith(f"mmblocks {name} needs ")
    named = [part.partition(": ")[0] for part in last_line.removeprefix(f"mmblocks {name} needs ").split("; ")]
    assert [word for word in named if word in REQUIRED[name]] == REQUIRED[name]
    assert not {"overrides", "words", "visuals", "SLOT=NAME"} & set(named)


def test_a_missing_recipe_is_answered_with_where_recipes_are_listed(run_command):
    assert run_command("train") == (
        2,
        "usage: mmblocks train [-h] recipe [overrides ...]\n"
        "mmblocks train needs recipe: a name from `mmblocks recipes`, or a path to a YAML file\n",
    )


@pytest.mark.parametrize(
    ("given", "missing"),
    [(["model"], "--out"), (["--out", "new"], "MODEL"), (["--out", "new", "--seed", "1"], "MODEL")],
)
def test_what_was_given_is_not_asked_for_again(given, missing, run_command):
    code, error = run_command("swap", *given)
    assert code == 2
    assert error.splitlines()[-1].startswith(f"mmblocks swap needs {missing}: ")


@pytest.mark.parametrize(
    "words", [["r", "--one-at-a-time", "a=1,2"], ["--one-at-a-time", "r", "a=1,2"], ["r", "a=1,2", "--one-at-a-time"]]
)
def test_options_may_stand_between_overrides(words, run_command):
    assert run_command("sweep", *words) == (0, "")


def test_another_mistake_is_argparses_to_tell(run_command):
    code, error = run_command("train", "tiny/onevision", "--sedd", "1")
    assert code == 2
    assert "unrecognized arguments: --sedd" in error
