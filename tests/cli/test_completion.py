"""Tab: what is suggested, and that bash and zsh get it from the script that `mmblocks completion` prints."""

import os
import shutil
import subprocess
import sys
from argparse import Namespace

import pytest

from mmblocks.cli import COMMANDS, main
from mmblocks.cli.completion import SHELLS, make_parser
from mmblocks.cli.suggestions import SUGGESTIONS, suggest_changes, suggest_eval_words, suggest_names, suggest_overrides
from mmblocks.components import REGISTRIES

HEAVY = {"torch", "numpy", "transformers", "timm", "hydra", "omegaconf", "PIL"}
NOTHING = Namespace()


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A shell's environment in which `mmblocks` is this interpreter's, and a folder with a recipe of the user's."""
    folder = tmp_path_factory.mktemp("shell")
    script = folder / "bin/mmblocks"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mmblocks "$@"\n')
    script.chmod(0o755)
    recipe = folder / "recipes/ours/first.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text("defaults: [/train_run]\n")
    return {**os.environ, "PATH": f"{script.parent}{os.pathsep}{os.environ['PATH']}", "PWD": str(folder)}


def run_shell(command, environment):
    done = subprocess.run(command, env=environment, cwd=environment["PWD"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


# What is suggested --------------------------------------------------------------------------------------------------


def test_overrides_are_groups_and_settings_of_a_run():
    suggested = suggest_overrides("", NOTHING)
    assert {"model/encoder=", "model/tokenizer/multi_image=", "seed=", "out="} <= set(suggested)
    assert "model=" not in suggested


def test_values_are_components_of_the_group():
    assert suggest_overrides("model/projector=", NOTHING) == [f"model/projector={n}" for n in REGISTRIES["projector"]]


def test_values_of_a_sweep_are_completed_behind_each_comma():
    assert "model/projector=linear,mlp" in suggest_overrides("model/projector=linear,m", NOTHING)


def test_values_are_choices_where_a_setting_has_some():
    assert suggest_overrides("compile=", NOTHING) == ["compile=true", "compile=false"]
    assert "stages.3.schedule=cosine" in suggest_overrides("stages.3.schedule=", NOTHING)
    assert suggest_overrides("seed=", NOTHING) == suggest_overrides("no_such_key=", NOTHING) == []


def test_settings_of_stages_are_offered_when_a_stage_is_begun():
    assert {"stages.0.steps=", "stages.0.train.lora="} <= {*suggest_overrides("stages.", NOTHING)}


def test_stages_are_offered_by_the_names_that_the_recipe_gives_them():
    offered = suggest_overrides("stages.", Namespace(recipe="tiny/onevision"))
    assert {"stages.single_image.steps=", "stages.align.train.projector="} <= {*offered}
    assert "stages.align.schedule=linear" in suggest_overrides("stages.align.schedule=", NOTHING)


def test_settings_of_what_is_measured_and_of_sight_are_offered():
    assert {"evaluate.every=", "encoder_pretraining.steps="} <= {*suggest_overrides("", NOTHING)}


def test_eval_is_offered_tasks_and_metrics():
    offered = suggest_eval_words("", NOTHING)
    assert {"pope", "tiny", "data="} <= {*offered}
    assert {"metric=loss", "metric=contains"} <= {*suggest_eval_words("metric=", NOTHING)}


def test_swap_is_offered_slots_and_their_components():
    assert "tokenizer.image=" in suggest_changes("", NOTHING)
    assert suggest_changes("tokenizer.image=", NOTHING) == [f"tokenizer.image={n}" for n in REGISTRIES["tokenizer"]]
    assert suggest_changes("no_slot=", NOTHING) == []


def test_names_are_of_the_kind_before_them():
    assert "mlp" in suggest_names("", Namespace(kind="projector"))
    assert "llava_next/vicuna_7b" in suggest_names("", Namespace(kind="system"))
    assert list(suggest_names("", Namespace(kind="no_kind"))) == []


@pytest.mark.parametrize("key", SUGGESTIONS, ids=" ".join)
def test_suggestions_are_for_arguments_that_exist(key):
    command, argument = key
    (commands,) = [action for action in make_parser(command)._actions if isinstance(action.choices, dict)]
    assert argument in {action.dest for action in commands.choices[command]._actions}


def test_nothing_heavy_is_imported_to_suggest():
    code = f"""
import sys
from argparse import Namespace
from mmblocks.cli import COMMANDS
from mmblocks.cli.completion import make_parser
from mmblocks.cli.suggestions import SUGGESTIONS
for command in COMMANDS:
    make_parser(command)
for suggest in SUGGESTIONS.values():
    for prefix in ("", "stages.", "model/encoder="):
        suggest(prefix, Namespace(kind="projector"))
print(*({HEAVY} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


# In a shell ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_printed(shell, capsys):
    assert main(["completion", shell]) == 0
    assert capsys.readouterr().out.startswith("#compdef mmblocks\n")


PRESSED = {
    "mmblocks tr": ["train"],
    "mmblocks train ours/": ["ours/first"],
    "mmblocks train tiny/o": ["tiny/onevision"],
    "mmblocks train tiny/onevision model/proj": ["model/projector="],
    "mmblocks train tiny/onevision model/projector=mlp_": ["mlp_residual"],  # bash replaces what is behind the =
    "mmblocks sweep tiny/onevision --one-at-a-time model/pooling=bi": ["bilinear", "bilinear_antialiased"],
    "mmblocks sweep tiny/onevision --score text": ["textvqa"],
    "mmblocks eval mms": ["mmstar"],
    "mmblocks show projector ldp": ["ldp", "ldpv2"],
    "mmblocks check llava_v1": ["llava_v1/vicuna_7b", "llava_v1/vicuna_13b", "llava_v1/llama2_7b"],
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes(environment):
    press = """
source <(mmblocks completion bash)
for line in "$@"; do
    COMP_LINE=$line COMP_POINT=${#line} COMP_TYPE=9 COMPREPLY=()
    _python_argcomplete mmblocks
    echo "${COMPREPLY[*]}"
done
complete -p mmblocks
"""
    *lines, registered = run_shell(["bash", "-c", press, "bash", *PRESSED], environment).splitlines()
    assert registered.endswith(" mmblocks")
    assert {line: shown.split() for line, shown in zip(PRESSED, lines, strict=True)} == PRESSED


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh")
def test_zsh_knows_who_completes_mmblocks(environment):
    code = 'autoload -U compinit; compinit -u -D; eval "$(mmblocks completion zsh)"; print $_comps[mmblocks]'
    assert run_shell(["zsh", "-f", "-c", code], environment) == "_python_argcomplete\n"


def test_every_command_can_be_completed():
    (commands,) = [action for action in make_parser("")._actions if isinstance(action.choices, dict)]
    assert list(commands.choices) == list(COMMANDS)
