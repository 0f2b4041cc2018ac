"""Recipes say what papers and scripts say; each number stands in recipe_facts.json beside its source.

Where a recipe does otherwise, the fact has `ours` and `why`, and docs/reference/recipes.md shows both.
"""

import functools
import json
from pathlib import Path

import pytest

from mmblocks.conf import compose, list_recipes
from mmblocks.conf.assemble import compose_unchecked
from mmblocks.model.budget import estimate_budget, parse_visual_shape
from mmblocks.model.checks.composition import dry_build
from mmblocks.shapes import Size, VisualShape
from mmblocks.train.checks.run import check_run
from mmblocks.train.stages import read_run

FACTS = json.loads(Path(__file__).with_name("recipe_facts.json").read_text(encoding="utf-8"))
PUBLISHED = FACTS["recipes"]
STAGES = [(name, i) for name, facts in PUBLISHED.items() for i in range(len(facts["stages"]))]
SIDES = range(100, 2500, 300)


def stages_of(name):
    return [{**FACTS["common"], **stage} for stage in PUBLISHED[name]["stages"]]


def facts_in(node):
    """Every fact below a node."""
    if isinstance(node, dict) and "published" in node and "source" in node:
        yield node
    elif isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            yield from facts_in(child)


def expected(fact):
    return fact.get("ours", fact["published"])


# What a recipe says -------------------------------------------------------------------------------------------------


@functools.cache
def composed(name):
    return compose(name)


@functools.cache
def examined(name, number):
    """The model of a stage, with the stage's tokenizers."""
    recipe = composed(name)
    chosen = recipe["stages"][number].get("tokenizer") or {}
    seen = dry_build({**recipe["model"], "tokenizer": {**recipe["model"]["tokenizer"], **chosen}})
    seen.require_no_faults()
    return seen


def tokens_of(name, number, words):
    return sum(
        r.plan.num_tokens for r in examined(name, number).router.plan([parse_visual_shape(w) for w in words.split()])
    )


def most_views(name, number):
    shapes = [VisualShape("image", Size(height, width)) for height in SIDES for width in SIDES]
    router = examined(name, number).router
    return max(len(routed.plan.views) for shape in shapes for routed in router.plan([shape]))


def framing(name, number):
    shown = Size(480, 640)
    (view,) = examined(name, number).router.plan([VisualShape("image", shown)])[0].plan.views
    if view.framed != shown:
        return "padded"
    return "squashed" if view.window.size == view.canvas else "cropped"


def value(name, number, fact):
    """What the recipe has for a fact."""
    curriculum = read_run(composed(name))
    stage, run, seen = curriculum.stages[number], curriculum.run, examined(name, number)
    video = seen.router.video
    answers = {
        "learns": lambda: {**{p: learning.lr for p, learning in stage.trained_parts.items()}, **lora_rate(stage)},
        "batch": lambda: stage.global_batch_size,
        "epochs": lambda: stage.epochs,
        "max_tokens": lambda: min(stage.max_tokens or seen.backbone.max_tokens, seen.backbone.max_tokens),
        "template": lambda: stage.template or name_of(run.model["template"]),
        "data": lambda: Path(stage.data[0]["path"]).name,
        "most_views": lambda: most_views(name, number),
        "framing": lambda: framing(name, number),
        "frames": lambda: video.max_frames,
        "fps": lambda: video.fps,
        "newline": lambda: video.newline,
        "tells_times": lambda: video.tell_times is not None,
        "gradient_checkpointing": lambda: run.gradient_checkpointing,
        "save_every": lambda: run.save_every,
    }
    if fact.startswith("lora_"):
        return getattr(stage.lora, fact.removeprefix("lora_"))
    return answers[fact]() if fact in answers else getattr(stage, fact)


def lora_rate(stage):
    return {} if stage.lora is None else {"lora": stage.lora.lr}


def name_of(spec):
    return spec if isinstance(spec, str) else spec["name"]


# Fidelity -----------------------------------------------------------------------------------------------------------


def test_every_recipe_but_the_tiny_ones_has_its_facts():
    assert PUBLISHED.keys() == {name for name in list_recipes() if not name.startswith("tiny/")}


@pytest.mark.parametrize("name", PUBLISHED)
def test_stages_are_the_published_ones(name):
    assert [stage["name"] for stage in composed(name)["stages"]] == [stage["name"] for stage in stages_of(name)]


@pytest.mark.parametrize(("name", "number"), STAGES)
def test_a_stage_has_the_published_settings(name, number):
    facts = {k: fact for k, fact in stages_of(name)[number].items() if k not in ("name", "tokens")}
    found = {k: value(name, number, k) for k in facts}
    assert found == {k: expected(fact) for k, fact in facts.items()}


@pytest.mark.parametrize(("name", "number"), STAGES)
def test_a_stage_takes_the_published_tokens(name, number):
    published = expected(stages_of(name)[number]["tokens"])
    assert {words: tokens_of(name, number, words) for words in published} == published


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_has_the_published_parts(name):
    model, seen = composed(name)["model"], examined(name, 0)
    found = {
        "encoder": seen.encoder.checkpoint,
        "layer": model["encoder"]["layer"],
        "projector": name_of(model["projector"]),
        "backbone": seen.backbone.checkpoint,
        "pooling": name_of(model["pooling"]),
        "starts_from": composed(name)["weights"],
    }
    facts = PUBLISHED[name]["model"]
    assert {k: found[k] for k in facts} == {k: expected(fact) for k, fact in facts.items()}


def test_the_vision_tower_learns_at_a_fifth_wherever_it_has_a_rate_of_its_own():
    for name, number in STAGES:
        learns = value(name, number, "learns")
        if "encoder" in learns and name != "onevision/dpo":
            assert learns["encoder"] * 5 == pytest.approx(learns["backbone"])


def test_the_budget_of_a_conversation_says_the_same():
    words = ("image=1000x700", "video=1280x720@60s")
    budget = estimate_budget(composed("onevision/0_5b")["model"], [parse_visual_shape(word) for word in words])
    assert [visual.tokens for visual in budget.visuals] == [4941, 6273]


# Deviations ---------------------------------------------------------------------------------------------------------


def test_every_number_has_a_source_and_every_deviation_a_reason():
    facts = list(facts_in(FACTS))
    assert len(facts) > 200
    for fact in facts:
        assert len(fact["source"]) > 5, fact
        assert ("ours" in fact) == ("why" in fact), fact
        if "ours" in fact:
            assert fact["ours"] != fact["published"], fact
            assert len(fact["why"]) > 5, fact


def test_what_is_published_nowhere_is_a_deviation():
    assert all("ours" in f or f["source"].endswith("16 bits") for f in facts_in(FACTS) if f["published"] is None)


# Ready to run -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_nothing_but_data_and_earlier_weights_is_missing(name, tmp_path, monkeypatch):
    raw = compose_unchecked(name)
    monkeypatch.chdir(tmp_path)
    faults = {fault.key: str(fault) for fault in check_run(raw)}
    absent = {
        f"stages.{i}.data.{j}.{setting}": source[setting]
        for i, stage in enumerate(raw["stages"])
        for j, source in enumerate(stage["data"])
        for setting in ("path", "images", "videos")
        if setting in source
    }
    if raw["weights"] != "pretrained":
        absent["weights"] = raw["weights"]
    assert faults.keys() == absent.keys()
    assert all(path in faults[key] for key, path in absent.items())


@pytest.mark.parametrize(("name", "number"), STAGES)
def test_the_largest_single_visual_fits_into_a_row(name, number):
    stage, router = read_run(composed(name)).stages[number], examined(name, number).router
    shapes = [VisualShape("image", Size(height, width)) for height in SIDES for width in SIDES]
    if "video" in json.dumps(expected(stages_of(name)[number]["tokens"])):
        shapes.append(parse_visual_shape("video=1280x720@3600s"))
    plans = [routed.plan for shape in shapes for routed in router.plan([shape])]
    assert max(plan.num_tokens for plan in plans) < stage.pack_tokens
    assert max(len(plan.views) for plan in plans) <= stage.pack_views
    assert value(name, number, "max_tokens") <= max(stage.pack_tokens, 8192)
