import subprocess
import sys

import pytest

import mmblocks
from mmblocks.cli import COMMANDS, main
from mmblocks.components import REGISTRIES
from mmblocks.data.sources import sources
from mmblocks.ops.choice import list_ops
from mmblocks.ops.selftest import BackendResult

HEAVY = {"torch", "numpy", "transformers", "timm", "hydra", "omegaconf", "xformers", "decord", "av", "PIL"}


def told(*arguments, capsys):
    """Exit code, standard output and standard error of a command."""
    code = main(arguments)
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture
def say(capsys):
    return lambda *arguments: told(*arguments, capsys=capsys)


# The frame ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["list"], ["list", "projector"], ["train", "--help"]])
def test_light_commands_import_nothing_heavy(arguments):
    code = f"""
import sys
from mmblocks.cli import main
try:
    code = main({arguments})
except SystemExit as end:
    code = end.code
print(code, *({HEAVY} & set(sys.modules)), file=sys.stderr)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == "0\n"


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda c: c.name)
def test_every_command_of_the_table_has_a_module_and_help(command, capsys):
    assert callable(command.import_module().run)
    with pytest.raises(SystemExit) as end:
        main([command.name, "--help"])
    assert end.value.code == 0
    assert f"mmblocks {command.name}" in capsys.readouterr().out


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"mmblocks {mmblocks.__version__}\n"


def test_no_command_shows_all_of_them(say):
    code, out, _ = say()
    assert code == 2
    assert all(f"  {name} " in out for name in COMMANDS)


def test_an_unknown_command_is_answered_with_the_closest(say):
    code, _, err = say("lsit")
    assert code == 2
    assert "no command is called 'lsit'. Did you mean 'list'?" in err


def test_errors_are_messages_without_a_traceback(say):
    code, out, err = say("show", "projector", "mlpp")
    assert (code, out) == (2, "")
    assert err.startswith("mmblocks: no projector is called 'mlpp'. Did you mean 'mlp'? Known: ")
    assert "Traceback" not in err


def test_errors_can_be_traced_for_debugging(monkeypatch):
    monkeypatch.setenv("MMBLOCKS_DEBUG", "1")
    with pytest.raises(mmblocks.errors.UnknownComponentError):
        main(["show", "projector", "mlpp"])


def test_output_can_be_cut_off_by_its_reader():
    shell = f"{sys.executable} -m mmblocks list | head -1"
    done = subprocess.run(shell, shell=True, capture_output=True, text=True)
    assert done.stdout == "encoder:\n"
    assert done.stderr == ""


# list and show ------------------------------------------------------------------------------------------------------


def test_list_names_every_component_of_every_kind(say):
    code, out, _ = say("list")
    lines = [line.split()[0] for line in out.splitlines()]
    assert code == 0
    for kind, registry in {**REGISTRIES, "source": sources}.items():
        assert lines[lines.index(f"{kind}:") + 1 :][: len(registry)] == list(registry)


def test_list_shows_one_kind_with_sizes_and_summaries(say, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = say("list", "backbone")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "qwen2_7b 28 layers x 3584 causal_lm, weights of Qwen/Qwen2-7B-Instruct" in lines
    assert "encoder:" not in out


def test_an_unknown_kind_is_answered_with_the_closest(say):
    assert "no kind of component is called 'projectors'. Did you mean 'projector'?" in say("list", "projectors")[2]


def test_show_explains_a_component(say):
    code, out, _ = say("show", "projector", "mlp")
    assert code == 0
    assert "depth  int  = 2" in out
    assert "wired:    in_dim, out_dim" in out
    assert "https://arxiv.org/abs/2310.03744" in out
    assert "mlp.py" in out


def test_show_says_of_what_a_preset_is_one(say):
    assert say("show", "backbone", "qwen2_7b")[1].startswith("backbone qwen2_7b, a preset of qwen2_0_5b\n")


def test_show_marks_settings_that_must_be_given(say):
    assert "required" in say("show", "source", "tinyworld")[1]


# doctor -------------------------------------------------------------------------------------------------------------


def test_doctor_reports_versions_devices_and_paths(say):
    code, out, _ = say("doctor")
    assert code == 0
    for word in ("torch", "transformers", "cuda", "xformers library", "video readers", "bundled model"):
        assert f"  {word} " in out


def test_doctor_says_of_every_way_of_every_op_whether_it_runs(say):
    _, out, _ = say("doctor")
    shown = [line.split() for line in out.partition("\nops:\n")[2].partition("\nlast decoder layer")[0].splitlines()]
    assert [line[0] for line in shown] == [
        word for op in list_ops() for word in (op.name, *(w.name for w in op.backends))
    ]
    assert all(line[1:] == ["runs", "here"] for line in shown if line[0] == "reference")


def test_doctor_tests_itself(say):
    code, out, _ = say("doctor", "--selftest")
    assert code == 0
    assert out.endswith("self-test: every backend agrees with its reference\n")
    for op in ("attention", "rows_attention", "fixed_attention", "gather_lerp"):
        assert f"  {op} reference " in out.partition("self-test on cpu:")[2]


def test_doctor_tunes_attention(say, tmp_path):
    path = tmp_path / "orders.json"
    code, out, _ = say("doctor", "--tune-attention", str(path))
    assert code == 0
    assert "attention head_dim 64, causal, forward and backward: reference" in out
    assert f"set MMBLOCKS_ATTENTION_TABLE={path} to use it" in out
    assert path.exists()


def test_doctor_fails_when_a_way_is_off(say, monkeypatch):
    off = BackendResult("attention", "varlen", "causal, float16", error=0.5, tolerance=0.004)
    monkeypatch.setattr("mmblocks.ops.selftest.run_selftests", lambda device: [off])
    code, out, _ = say("doctor", "--selftest")
    assert code == 1
    assert "causal, float16: error 0.5, tolerance 0.004" in out
    assert out.endswith("self-test: 1 cases are off\n")
