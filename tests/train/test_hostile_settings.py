"""Every setting of every schema of a run, given numbers that mean nothing and values of other types."""

import math
import typing

import pytest

from mmblocks import conf
from mmblocks.image_reading import ImageReading, find_reading_faults
from mmblocks.settings import list_settings
from mmblocks.train.checks.run import _dry_build_model, _find_faults
from mmblocks.train.stages import EncoderPretraining, Evaluation, Lora, PartSettings, Stage, TrainRun

NEVER = {
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "20 digits": 10**20,
    "-20 digits": -(10**20),
    "1e308": 1e308,
    "true": True,
    "text": "5",
    "list": [],
    "mapping": {"a": 1},
}
"""What no number of a run can be, but for these."""
TAKEN = {("1e308", "max_grad_norm"), ("1e308", "alpha"), ("20 digits", "lr")}
"""A norm and a factor of any size; a learning rate so high is stopped by the first loss that is not finite."""
PERHAPS = {"-1": -1, "0": 0, "1": 1, "1e-300": 1e-300, "none": None, "empty": ""}
SCHEMAS = {
    "": TrainRun,
    "stages.0": Stage,
    "stages.0.train.projector": PartSettings,
    "stages.0.train.lora": Lora,
    "encoder_pretraining": EncoderPretraining,
    "evaluate": Evaluation,
}


def takes_numbers(annotation):
    return annotation in (int, float) or any(a in (int, float) for a in typing.get_args(annotation))


def settings():
    for where, schema in SCHEMAS.items():
        for setting in list_settings(schema).values():
            if takes_numbers(setting.annotation):
                yield pytest.param(where, setting.name, id=f"{where}.{setting.name}".lstrip("."))


def find_errors(raw, seen):
    """The faults of a recipe, without the warning that its adapters stand on a random backbone."""
    return [fault for fault in _find_faults(raw, seen) if fault.severity != "warning"]


@pytest.fixture(scope="module")
def composed():
    """A recipe with every schema in it, and the dry build of its model."""
    raw = conf.compose("tiny/onevision", ["~stages.text.train.backbone", "stages.0.train.projector.lr=1e-3"])
    raw["stages"][0]["train"]["lora"] = {"lr": 1e-4}
    raw["evaluate"] = {"every": 5, "tiny": 2, "samples": 3}
    return raw, _dry_build_model(raw)


def with_value(raw, where, name, value):
    def changed(node, words):
        if not words:
            return {**node, name: value}
        if isinstance(node, list):
            return [changed(one, words[1:]) if str(i) == words[0] else one for i, one in enumerate(node)]
        return {**node, words[0]: changed(node[words[0]], words[1:])}

    return changed(raw, [word for word in where.split(".") if word])


def test_the_recipe_itself_is_without_fault(composed):
    assert find_errors(*composed) == []


@pytest.mark.parametrize(("where", "name"), settings())
def test_a_number_that_means_nothing_is_a_fault_that_names_its_key(composed, where, name):
    raw, seen = composed
    for called, value in NEVER.items():
        if (called, name) in TAKEN:
            continue
        faults = [str(fault) for fault in find_errors(with_value(raw, where, name, value), seen)]
        assert any(name in fault for fault in faults), (called, faults)


@pytest.mark.parametrize(("where", "name"), settings())
def test_small_numbers_and_nothing_are_taken_or_refused_but_end_nothing(composed, where, name):
    raw, seen = composed
    for value in PERHAPS.values():
        assert all(str(fault) for fault in find_errors(with_value(raw, where, name, value), seen))


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("beta2", 1, "beta2=1 is no decay"),
        ("beta2", -0.1, "beta2=-0.1 is no decay"),
        ("epochs", 10**18, "epochs=1000000000000000000 is too large. Write 1000000 or less"),
        ("warmup", math.nan, "warmup=nan is no number to compute with"),
        ("weight_decay", math.nan, "weight_decay=nan"),
    ],
)
def test_a_stage_says_what_to_write_instead(composed, key, value, says):
    raw, seen = composed
    assert says in "\n".join(map(str, find_errors(with_value(raw, "stages.0", key, value), seen)))


@pytest.mark.parametrize("out", ["", " ", "a\0b", "x" * 5000])
def test_a_run_needs_a_folder_that_can_be_one(composed, out):
    raw, seen = composed
    assert [fault.key for fault in find_errors({**raw, "out": out}, seen)] == ["out"]


@pytest.mark.parametrize("setting", [*list_settings(ImageReading).values()], ids=lambda s: s.name)
def test_how_images_are_read_takes_no_number_that_means_nothing(setting):
    for value in [math.nan, math.inf, 10**20, -1, 0, "5", [], [math.nan, 1], [0, 10**20], None]:
        assert [*find_reading_faults({setting.name: value})], value


@pytest.mark.parametrize("weight", [math.nan, math.inf, 0, -1, 10**20, True, "5", None])
def test_a_source_has_a_share(composed, weight):
    raw, seen = composed
    faults = find_errors(with_value(raw, "stages.0.data.0", "weight", weight), seen)
    assert [fault.key for fault in faults] == ["stages.0.data.0.weight"]
