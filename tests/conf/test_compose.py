import itertools
import json
import subprocess
import sys

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

from mmblocks import conf
from mmblocks.components import REGISTRIES
from mmblocks.conf.groups import list_options
from mmblocks.errors import ConfigError
from mmblocks.settings import REQUIRED
from mmblocks.train.stages import read_run

pytestmark = pytest.mark.usefixtures("recipes")


def test_a_recipe_composes_to_plain_values_of_a_run():
    config = conf.compose("mini/one")
    assert json.loads(json.dumps(config)) == config
    assert read_run(config).stages[0].data == [{"name": "tinyworld", "task": "caption", "weight": 2}]
    assert config["model"]["projector"] == {"name": "linear"}
    assert config["model"]["tokenizer"]["video"]["name"] == "frames"


def test_defaults_of_a_component_are_those_of_its_constructor():
    config = conf.compose("mini/one", ["model/projector=mlp"])
    assert config["model"]["projector"] == {"name": "mlp", "depth": 2}


def test_a_presets_values_are_its_defaults():
    config = conf.compose("mini/one", ["model/tokenizer/image=anyres_max"])
    given = {s.name: s.default for s in REGISTRIES["tokenizer"].list_settings("anyres_max")}
    assert config["model"]["tokenizer"]["image"] == {"name": "anyres_max", **given}


def chosen(group):
    """Overrides that choose each component of a group, and every seventh preset."""
    kind = conf.GROUPS[group][0]
    names = list(list_options(group))
    presets = [name for name in names if REGISTRIES[kind].find_info(name).preset_of]
    for name in [name for name in names if name not in presets] + presets[::7]:
        required = [s for s in REGISTRIES[kind].list_settings(name) if s.default is REQUIRED]
        tiny = REGISTRIES[kind][name].tiny
        given = [f"{group.replace('/', '.')}.{s.name}={json.dumps(tiny[s.name]).replace(' ', '')}" for s in required]
        yield group, name, [f"{group}={name}", *[g.replace('"', "") for g in given]]


def test_any_component_can_be_chosen():
    for together in itertools.zip_longest(*map(chosen, conf.GROUPS)):
        picked = [choice for choice in together if choice]
        config = conf.compose("mini/one", [override for *_, overrides in picked for override in overrides])
        assert all(at(config, group)["name"] == name for group, name, _ in picked)


def at(config, group):
    for key in group.split("/"):
        config = config[key]
    return config


def test_settings_of_a_component_are_overridden_and_converted():
    config = conf.compose("mini/one", ["model/projector=mlp", "model.projector.depth=3", "stages.0.steps=9"])
    assert config["model"]["projector"]["depth"] == 3
    assert config["stages"][0]["steps"] == 9


def test_lists_can_be_given_where_a_setting_takes_them():
    config = conf.compose("mini/one", ["model.tokenizer.image.pinpoints=[[48,24],[24,48]]"])
    assert config["model"]["tokenizer"]["image"]["pinpoints"] == [[48, 24], [24, 48]]


def test_a_part_can_be_added_to_what_a_stage_trains():
    config = conf.compose("mini/one", ["+stages.0.train.backbone=1e-5"])
    assert config["stages"][0]["train"] == {"projector": 0.001, "backbone": 1e-5}


def test_recipes_build_on_recipes():
    config = conf.compose("mini/child")
    assert (config["model"]["projector"]["name"], config["seed"], config["out"]) == ("mlp", 7, "runs/mini")


def test_a_recipe_is_found_by_its_path(recipes, tmp_path, monkeypatch):
    monkeypatch.chdir(recipes)
    assert conf.compose(str(tmp_path / "recipes/mini/one.yaml")) == conf.compose("one.yaml")


def test_recipes_are_listed_with_their_first_comment():
    assert conf.list_recipes()["mini/one"] == "One stage on drawn shapes."


def test_composing_again_gives_the_same_and_leaves_hydra_as_it_was():
    assert conf.compose("mini/one") == conf.compose("mini/one")
    assert not GlobalHydra.instance().is_initialized()


def test_composing_inside_a_program_that_uses_hydra_leaves_that_programs_hydra_alone(recipes):
    with hydra.initialize_config_dir(str(recipes), version_base="1.3"):
        conf.compose("mini/one")
        assert hydra.compose("one").seed == 0


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model/projector=mlpp", "no projector is called 'mlpp'. Did you mean 'mlp'? Known: c_abstractor, conv_pooler"),
        ("modle/projector=mlp", "no component group 'modle/projector'. Did you mean 'model/projector'?"),
        ("model/tokenizer/video=anyres", "the tokenizer 'anyres' does not serve 'video'. Known: frames"),
        ("model.pooling.strid=3", "model.pooling.strid is not a setting. Did you mean 'stride'?"),
        ("+model.pooling.strid=3", "pooling 'bilinear' has no setting 'strid'. Did you mean 'stride'?"),
        ("model.pooling.stride=abc", "model.pooling.stride='abc' is not int"),
        ("model.pooling.stride=2.5", "model.pooling.stride=2.5 is not int"),
        ("model.tokenizer.image.merge=unpadd", "merge='unpadd' is not one of unpad,"),
        ("model.pooling=max", "Write model/pooling=max"),
        ("model.pooling.name=max", "Write model/pooling=max"),
        ("~model/pooling", "model.pooling has no value; set it in the recipe or add model/pooling=NAME"),
        ("+model.audio=1", "model.audio is not a setting. Known: backbone, encoder"),
        ("bugdet=1", "bugdet is not a setting. Did you mean 'budget'?"),
        ("+bugdet=1", "bugdet is not a setting. Did you mean 'budget'?"),
        ("seed=abc", "seed='abc' is not int"),
        ("seed=${nowhere}", "seed: Interpolation key 'nowhere' not found"),
        ("seed=[", "override 'seed=[' cannot be read"),
        ("seed", "override 'seed' cannot be read"),
        ("seed=0,1", "override 'seed=0,1' names several values; `mmblocks sweep` runs each"),
        ("out=???", "out has no value"),
        ("model=3", "recipe 'mini/one': "),
        ("stages=[]", "at least one stage is needed"),
        ("stages.0.stpes=3", "Did you mean 'steps'?"),
        ("stages.0.targets=all", "targets='all' is not one of answers, original"),
        ("stages.0.train.projectr=0.1", "Did you mean 'projector'?"),
        ("+stages.0.train.encodr=0.1", "no such part. Did you mean 'encoder'?"),
        ("stages.0.data.0.name=tinywrld", "no source is called 'tinywrld'. Did you mean 'tinyworld'?"),
        ("stages.0.data.0.task=captions", "task='captions' is not one of"),
        ("stages.0.data.0.weight=-1", "weight=-1 is no share of the samples"),
        ("~stages.0.data.0.name", "Write a name, or a mapping with a 'name'"),
    ],
)
def test_an_override_that_does_not_fit_is_refused_with_its_cure(override, says):
    with pytest.raises(ConfigError) as refused:
        conf.compose("mini/one", [override])
    assert says in str(refused.value)


def test_an_unknown_recipe_is_refused_with_the_closest_name():
    with pytest.raises(ConfigError, match=r"no recipe is called 'mini/oen'\. Did you mean 'mini/one'\?"):
        conf.compose("mini/oen")
    with pytest.raises(ConfigError, match=r"no recipe file 'nowhere\.yaml'"):
        conf.compose("nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed: [", "this is not YAML"),
        ("seed: 3\n", "a recipe starts with a list 'defaults:'"),
        ("- a\n", "a recipe starts with a list 'defaults:'"),
        ("defaults: [/train_rum]\n", "asks for 'train_rum', which does not exist"),
        ("defaults: [/train_run]\nout: x\nbugdet: 2\n", "bugdet is not a setting. Did you mean 'budget'?"),
        ("defaults: [/train_run]\nout: x\nseed: abc\n", "seed='abc' is not int"),
        ("defaults: [/train_run]\nmodel: {pooling: {strid: 2}}\n", "pooling.strid is not a setting. Did you mean"),
        ("defaults: [/train_run, override /model/pooling: maxx]\nout: x\n", "no pooling is called 'maxx'"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, says):
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(ConfigError) as refused:
        conf.compose("odd.yaml")
    assert says in str(refused.value)


def test_importing_a_config_does_not_import_what_components_need_later():
    heavy = {"transformers", "timm", "xformers", "decord", "triton", "fastapi"}
    code = "from mmblocks import conf; import sys; conf.compose('mini/one'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert heavy.isdisjoint(loaded)
