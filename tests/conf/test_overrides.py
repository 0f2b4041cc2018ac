"""Overrides as people write them: stages and sources by number or name, and no `+` for what a schema knows."""

import json

import pytest

from mmblocks import conf
from mmblocks.cli import main
from mmblocks.conf.assemble import compose_unchecked
from mmblocks.conf.overrides import translated
from mmblocks.errors import ConfigError
from mmblocks.sweep.launch import prepare_sweep
from mmblocks.sweep.trials import CELL, Sweep, read_json

TWO = """\
# Two stages with names.
defaults:
  - /train_run
  - override /model/encoder: tiny_conv
  - override /model/projector: linear
  - override /model/backbone: causal_lm
  - override /model/template: chatml
  - _self_
out: runs/two
model:
  backbone: {family: qwen2, vocab_size: 512, dim: 32, depth: 2, heads: 4, kv_heads: 2, mlp_dim: 48, max_tokens: 512,
             text_tokenizer: "mmblocks:tinyworld_text"}
stages:
  - name: align-1
    data:
      - {name: tinyworld, task: caption}
      - {name: llava_json, path: a.json}
    train: {projector: 0.001}
    steps: 3
    batch_size: 2
  - name: v1.5
    data:
      - {name: tinyworld, task: caption}
      - {name: tinyworld, task: single}
    train: {projector: 0.001, backbone: 0.001}
    steps: 3
    batch_size: 2
"""
FIRST, SECOND = "align-1", "v1.5"


@pytest.fixture
def two(recipes):
    (recipes / "two.yaml").write_text(TWO)
    (recipes.parents[1] / "a.json").write_text("[]")
    return "mini/two"


def at(config, key):
    for word in key.split("."):
        config = config[int(word)] if isinstance(config, list) else config[word]
    return config


TOGETHER = {
    "stages.0.data.1.images=DIR": ("stages.0.data.1.images", "DIR"),
    "stages.0.data.llava_json.videos=CLIPS": ("stages.0.data.1.videos", "CLIPS"),
    f"stages.{FIRST}.data.llava_json.weight=3": ("stages.0.data.1.weight", 3),
    f"stages.{FIRST}.steps=5": ("stages.0.steps", 5),
    f"stages.{SECOND}.steps=6": ("stages.1.steps", 6),
    "stages.0.train.lora=2e-4": ("stages.0.train.lora.rate", 2e-4),
    "stages.0.train.lora.rank=8": ("stages.0.train.lora.rank", 8),
    "stages.0.train.projector.weight_decay=0.1": ("stages.0.train.projector", {"rate": 0.001, "weight_decay": 0.1}),
    f"~stages.{SECOND}.train.backbone": ("stages.1.train", {"projector": 0.001, "lora": 1e-4}),
    "stages.1.train={lora: 1e-4}": ("stages.1.train.lora", 1e-4),
    f"+stages.{FIRST}.train.marks=1e-5": ("stages.0.train.marks", 1e-5),
    f"++stages.{FIRST}.train.encoder=1e-5": ("stages.0.train.encoder", 1e-5),
    "evaluate.every=5": ("evaluate.every", 5),
    "evaluate={tiny: 4}": ("evaluate.tiny", 4),
    "evaluate.data=[{name: tinyworld, task: caption}]": ("evaluate.data.0.task", "caption"),
    "evaluate.data.0.turns=2": ("evaluate.data.0.turns", 2),
    "sight.steps=3": ("sight", {"steps": 3}),
    "stages.0.objective.name=dpo": ("stages.0.objective.name", "dpo"),
    "stages.0.objective.beta=0.3": ("stages.0.objective.beta", 0.3),
    "stages.0.tokenizer.image=anyres": ("stages.0.tokenizer.image.name", "anyres"),
    "stages.0.tokenizer.image.merge=flat": ("stages.0.tokenizer.image.merge", "flat"),
    "stages.1.data=[{name: llava_json, path: a.json}]": ("stages.1.data.0.path", "a.json"),
    "stages.1.data.0.images=D": ("stages.1.data.0.images", "D"),
    "model.images.alpha=drop": ("model.images.alpha", "drop"),
    "model.backbone.checkpoint=there": ("model.backbone.checkpoint", "there"),
    "model.backbone.further.attention_dropout=0.1": ("model.backbone.further.attention_dropout", 0.1),
    "model.backbone.further.rope_parameters.rope_theta=5": ("model.backbone.further.rope_parameters.rope_theta", 5),
    "model/encoder=interleaved": ("model.encoder.name", "interleaved"),
    "model.encoder.members=[tiny_conv,tiny_conv]": ("model.encoder.members.0", "tiny_conv"),
    "model.encoder.members.1.dim=32": ("model.encoder.members.1", {"name": "tiny_conv", "dim": 32}),
}
"""Words, and what stands where once all of them were given."""


def test_what_a_schema_knows_needs_no_plus_and_stages_go_by_number_or_name(two):
    made = compose_unchecked(two, [*TOGETHER])
    assert {word: at(made, key) for word, (key, _) in TOGETHER.items()} == {w: v for w, (_, v) in TOGETHER.items()}


def test_names_may_change_on_the_way_may_begin_with_a_digit_and_digits_alone_are_numbers(two):
    words = ["stages.0.name='2nd'", "stages.2nd.steps=9", "stages.1.name='0'", "stages.0.batch_size=4"]
    made = compose_unchecked(two, words)
    assert [(s["name"], s["steps"], s["batch_size"]) for s in made["stages"]] == [("2nd", 9, 4), ("0", 3, 2)]


def test_stages_and_sources_are_taken_out_by_number_or_name(two):
    made = compose_unchecked(two, [f"~stages.{SECOND}.data.0", f"~stages.{FIRST}"])
    assert [(s["name"], [d["task"] for d in s["data"]]) for s in made["stages"]] == [(SECOND, ["single"])]


@pytest.fixture(scope="module")
def composed(tmp_path_factory):
    """The recipe as it stands in its file."""
    path = tmp_path_factory.mktemp("recipe") / "two.yaml"
    path.write_text(TWO)
    return compose_unchecked(str(path))


@pytest.mark.parametrize(
    ("word", "says"),
    [
        (
            "stages.algin-1.steps=5",
            "no stage is called 'algin-1'. Did you mean 'align-1'? There are: 0 (align-1), 1 (v1.5)",
        ),
        ("stages.7.steps=5", "stages.7: there is no stage 7. There are: 0 (align-1), 1 (v1.5)"),
        ("stages.-1.steps=5", "no stage is called '-1'"),
        ("~stages.7", "stages.7: there is no stage 7"),
        ("stages.0.data.2.path=x", "stages.0.data.2: there is no source 2. There are: 0 (tinyworld), 1 (llava_json)"),
        ("stages.0.data.lava_json.path=x", "no source is called 'lava_json'. Did you mean 'llava_json'?"),
        ("stages.1.data.tinyworld.turns=2", "several are called so; write the number of the source"),
        (f"stages.{SECOND}.stpes=5", "stages.v1.5.stpes is not a setting. Did you mean 'steps'?"),
        ("stages.0.data.1.imges=x", "stages.0.data.1.imges is not a setting. Did you mean 'images'?"),
        ("stages.0.train.lroa=1e-4", "stages.0.train.lroa is not a setting. Did you mean 'lora'?"),
        ("stages.0.train.lora.rnk=8", "Did you mean 'rank'?"),
        ("evaluate.evry=5", "evaluate.evry is not a setting. Did you mean 'every'?"),
        ("sight.step=5", "sight.step is not a setting. Did you mean 'steps'?"),
        ("stages.0.objective.bta=1", "stages.0.objective.bta is not a setting."),
        ("model.images.alhpa=drop", "model.images.alhpa is not a setting. Did you mean 'alpha'?"),
    ],
)
def test_what_nobody_knows_is_refused_with_what_there_is(composed, word, says):
    with pytest.raises(ConfigError) as refused:
        translated([word], composed)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        (
            "stages.0.data.1.imges=x",
            "recipe 'mini/two': stages.0.data.1.imges is not a setting. Did you mean 'images'?",
        ),
        ("+stages.0.data.1.imges=x", "has no setting 'imges'. Did you mean 'images'?"),
        ("stages.0.steps", "cannot be read"),
        ("~stages.0.train.lora", "'stages.0.train.lora' does not exist"),
    ],
)
def test_it_is_refused_whoever_finds_it(two, word, says):
    with pytest.raises(ConfigError) as refused:
        conf.compose(two, [word])
    assert says in str(refused.value)


def test_the_same_words_serve_every_command_that_takes_overrides(two, capsys, tmp_path):
    own = "~stages.0.data.llava_json"
    words = [
        own,
        f"stages.{SECOND}.data.0.turns=2",
        f"~stages.{SECOND}.train.backbone",
        f"stages.{SECOND}.train.lora=1e-4",
    ]
    assert main(["check", two, *words]) == 0
    assert main(["recipes", two, *words]) == 0
    assert main(["plan", two, *words, "image=48x48"]) == 0
    assert main(["inspect", two, *words, "--samples", "2", "--out", str(tmp_path / "seen")]) == 0
    capsys.readouterr()


def test_a_sweep_varies_a_stage_by_its_name(two, tmp_path):
    words = ["~stages.0.data.llava_json", f"stages.{SECOND}.steps=5,10", "stages.0.train.marks=1e-4,1e-5"]
    folder = prepare_sweep(two, words, out=tmp_path / "sweep")
    cells = [read_json(folder / cell.name / CELL)["recipe"]["stages"] for cell in Sweep.load(folder).cells]
    assert [(stages[1]["steps"], stages[0]["train"]["marks"]) for stages in cells] == [
        (5, 1e-4),
        (5, 1e-5),
        (10, 1e-4),
        (10, 1e-5),
    ]


def test_what_a_recipe_composes_to_is_the_same_by_number_and_by_name(two):
    by_number = conf.compose(two, ["stages.1.steps=7", "stages.1.data.0.turns=2"])
    assert json.dumps(by_number) == json.dumps(
        conf.compose(two, [f"stages.{SECOND}.steps=7", "stages.1.data.0.turns=2"])
    )
