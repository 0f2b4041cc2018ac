"""What commands build, check and import until they have started, counted; `python -m tests.bench startup` asks the clock."""

from collections import Counter

import pytest

from mmblocks import conf, registry
from mmblocks.cli import main
from mmblocks.model.checks import composition as model_check
from mmblocks.train import loop, run, stages
from mmblocks.train.checks import run as train_check
from tests.bench.suites.startup import COMMAND, Start, run_start

NEVER = {
    "bitsandbytes",
    "datasets",
    "decord",
    "matplotlib",
    "pandas",
    "peft",
    "scipy",
    "sklearn",
    "tensorboard",
    "timm",
    "wandb",
    "xformers",
    "mmblocks.sweep.launch",
    "mmblocks.data.video",
    "mmblocks.eval.runs",
    "mmblocks.eval.tinyworld",
    "mmblocks.model.convert",
    "mmblocks.train.loop",
}
"""Packages and modules that no start needs. transformers itself imports torch._dynamo, sympy and torchvision."""
CHECKED_THEN_PLANNED = f"""{COMMAND}
main(["check", "tiny/onevision"])
finish(main(["plan", "onevision/7b", "image=100x100"]))
"""
FREE = {"mmblocks.chat", "mmblocks.data.sample.processor", "mmblocks.train.features"}


@pytest.fixture
def counted(monkeypatch):
    """How often functions are called, by name."""
    calls: Counter[str] = Counter()

    def count(module, name):
        own = getattr(module, name)

        def counting(*given, **named):
            calls[name] += 1
            return own(*given, **named)

        monkeypatch.setattr(module, name, counting)

    count(model_check, "_build_components")
    count(train_check, "_find_faults")
    for module in (stages, train_check):
        count(module, "find_run_faults")
    return calls


@pytest.fixture
def schemas_read(monkeypatch):
    """How often each constructor's signature was read, from here on as in a new process."""
    for one in [*registry_of_everything()]:
        for entry in one._entries.values():
            entry.__dict__.pop("parameters", None)
    reads: Counter[object] = Counter()
    own = registry.read_parameters
    monkeypatch.setattr(registry, "read_parameters", lambda builder: reads.update([builder]) or own(builder))
    return reads


def registry_of_everything():
    from mmblocks.components import REGISTRIES
    from mmblocks.data.sources import sources
    from mmblocks.train.objectives import objectives

    return (*REGISTRIES.values(), sources, objectives)


def entries_by_builder():
    return Counter(entry.builder for one in registry_of_everything() for entry in one._entries.values())


# Built and checked ----------------------------------------------------------------------------------------------------


def test_check_builds_the_composition_once_whatever_its_stages_and_its_export_ask(counted, capsys):
    raw = conf.compose("tiny/onevision", ["export=transformers"])
    raw["stages"][1]["tokenizer"] = {"image": "square"}
    (fault,) = train_check.check_run(raw)
    assert fault.key == "export"
    assert counted["_build_components"] == 1
    assert main(["check", "tiny/onevision"]) == 0
    assert counted["_build_components"] == counted["_find_faults"] == 2


def test_plan_builds_the_composition_once(counted, capsys):
    assert main(["plan", "tiny/onevision", "image=100x100"]) == 0
    assert counted["_build_components"] == 1


def test_the_tables_of_all_stages_are_made_from_one_build(counted, capsys):
    assert main(["plan", "tiny/onevision", "--trains"]) == 0
    assert counted["_build_components"] == 1


def test_a_run_is_checked_once_and_its_composition_built_once_for_all_stages(counted, tiny_spec, tmp_path):
    source = {"name": "tinyworld", "task": "single"}
    short = {"data": [source], "train": {"projector": 1e-3}, "steps": 1, "global_batch_size": 1}
    packed = {"data": [source], "train": {"projector": 1e-3}, "steps": 1, "step_tokens": 400, "pack_tokens": 400}
    run({"model": tiny_spec, "out": str(tmp_path), "stages": [{"name": "a", **short}, {"name": "b", **packed}]})
    assert counted == {"_build_components": 1, "_find_faults": 1, "find_run_faults": 1}


def test_a_run_with_faults_is_refused_before_it_is_read(tiny_spec, tmp_path, monkeypatch):
    from mmblocks.errors import ConfigError

    monkeypatch.setattr(loop, "read_checked_run", None)  # calling it would fail otherwise
    with pytest.raises(ConfigError, match="this run cannot work:\n  - stages: at least one stage is needed"):
        run({"model": tiny_spec, "out": str(tmp_path), "stages": []})


def test_other_tokenizers_of_a_composition_are_tried_beside_what_was_built(tiny_spec):
    seen = model_check.dry_build(tiny_spec)
    changed = seen.with_tokenizers({"image": "square", "video": "pad"})
    whole = model_check.dry_build(
        {**tiny_spec, "tokenizer": {**tiny_spec["tokenizer"], "image": "square", "video": "pad"}}
    )
    assert [str(fault) for fault in changed.faults] == [str(fault) for fault in whole.faults] != []
    assert (changed.encoder, changed.backbone) == (seen.encoder, seen.backbone)
    assert type(changed.tokenizers["image"]) is type(whole.tokenizers["image"])


# Read -----------------------------------------------------------------------------------------------------------------


def test_each_constructor_is_read_once_by_composing_and_checking(schemas_read, capsys):
    assert main(["check", "tiny/onevision"]) == 0
    assert schemas_read
    entries = entries_by_builder()
    assert {b: n for b, n in schemas_read.items() if n > entries[b]} == {}


def test_a_component_registered_anew_is_read_anew(schemas_read):
    lamps = registry.Registry("lamp", "tests.no_such_package")
    lamps.__dict__["_component_infos"] = {}

    def lamp(watts: int = 5) -> int:
        return watts

    lamps.register("desk", source="")(lamp)
    assert [s.name for s in lamps.list_settings("desk")] == [s.name for s in lamps.list_settings("desk")] == ["watts"]
    lamp.__annotations__["watts"] = float
    lamps.register("desk", source="")(lamp)
    assert lamps.list_settings("desk")[0].annotation is float
    assert schemas_read[lamp] == 2


def test_composing_makes_no_node_of_a_component_that_is_not_chosen(monkeypatch):
    from mmblocks.conf import groups

    made = []
    own = groups._make_component_node
    monkeypatch.setattr(groups, "_make_component_node", lambda kind, name: made.append((kind, name)) or own(kind, name))
    conf.compose("tiny/onevision")
    assert 0 < len(set(made)) <= 2 * len(conf.GROUPS)  # what the schema chooses, and what the recipe does instead


# Imported -------------------------------------------------------------------------------------------------------------


def imported_among(modules, names):
    """Names that are imported, modules inside of them counting as them."""
    return {name for name in names if name in modules or any(m.startswith(f"{name}.") for m in modules)}


def test_list_imports_neither_torch_nor_hydra():
    _, modules = run_start(Start(("list",)))
    assert imported_among(modules, NEVER | FREE | {"torch", "transformers", "hydra", "numpy", "PIL"}) == set()
    assert imported_among(modules, {"mmblocks.cli.listing"})  # what is imported is seen


def test_check_and_plan_import_nothing_that_trains_reads_media_or_converts():
    _, modules = run_start(Start((), CHECKED_THEN_PLANNED))
    assert imported_among(modules, NEVER | FREE) == set()


def test_chat_about_a_picture_imports_neither_hydra_nor_what_reads_clips(tmp_path):
    from mmblocks.assets import find_media

    words = ("chat", "--image", str(find_media("image.png")), "--ask", "What?", "--max-new-tokens", "1")
    _, modules = run_start(Start(words))
    assert imported_among(modules, NEVER | {"hydra", "omegaconf", "mmblocks.conf", "mmblocks.train"}) == set()
