import random
import string

import pytest
import yaml

from mmblocks import conf
from mmblocks.conf.files import find_recipe, find_shipped_folder
from mmblocks.errors import ConfigError

SHIPPED = sorted(
    p.relative_to(find_shipped_folder()).with_suffix("").as_posix() for p in find_shipped_folder().rglob("*.yaml")
)


def test_recipes_ship_with_the_library():
    assert SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_every_recipe_composes_and_takes_another_projector(name):
    assert conf.compose(name, ["model/projector=linear"])["model"]["projector"] == {"name": "linear"}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_recipe_says_what_it_is_in_its_first_line(name):
    assert len(conf.list_recipes()[name]) > 10


@pytest.mark.parametrize("name", SHIPPED)
def test_no_recipe_writes_inside_a_component(name):
    """A setting of one component would stand in the way of choosing another; presets hold settings."""
    assert "model" not in yaml.safe_load(find_recipe(name).path.read_text())


def keys_of(node, path=()):
    """The path of every key of a YAML document."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if isinstance(node, dict):
            yield (*path, key)
        yield from keys_of(value, (*path, key))


def misspelled(node, path):
    """The document with the last key of `path` misspelled."""
    if isinstance(node, list):
        return [misspelled(v, path[1:]) if i == path[0] else v for i, v in enumerate(node)]
    here, below = path[0], path[1:]
    wrong = here if below else here[:-1] + random.choice(string.ascii_lowercase.replace(here[-1], ""))
    return {wrong if k == here else k: misspelled(v, below) if k == here and below else v for k, v in node.items()}


def test_a_misspelled_key_is_refused_wherever_it_stands(recipes):
    random.seed(0)
    document = yaml.safe_load((recipes / "one.yaml").read_text())
    paths = list(keys_of(document))
    assert len(paths) > 12
    for path in paths:
        (recipes / "misspelled.yaml").write_text(yaml.safe_dump(misspelled(document, path), sort_keys=False))
        with pytest.raises(ConfigError):
            conf.compose("mini/misspelled")
