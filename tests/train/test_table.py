"""The table of what trains is read off the model itself, and off a recipe without any weight."""

import json

import pytest

from mmblocks.errors import ConfigError
from mmblocks.model.trainable import train_only
from mmblocks.train.adapters.lora import prepare
from mmblocks.train.reports.parameter_table import as_text, meta_model, tables_of, training_table, write_table
from mmblocks.train.stages import Stage

WORLD = [{"name": "tinyworld", "task": "single"}]
LORA = {"rate": 2e-4, "rank": 4, "alpha": 8.0}


def stage(train, **others):
    return Stage("x", WORLD, train, steps=1, batch_size=1, **others)


def recipe(model, *trains):
    stages = [{"name": f"s{n}", "data": WORLD, "train": t, "steps": 1, "batch_size": 1} for n, t in enumerate(trains)]
    return {"model": model, "out": "nowhere", "stages": stages}


def by_part(rows):
    return {row.part: row for row in rows}


def test_rows_say_what_learns_how_fast(tiny_model):
    given = stage({"projector": 1e-3, "backbone": {"rate": 1e-5, "weight_decay": 0.2}}, weight_decay=0.1)
    train_only(tiny_model, given.train)
    rows = by_part(training_table(tiny_model, given))
    assert list(rows) == ["encoder", "projector", "marks", "backbone"]
    sizes = {name: sum(p.numel() for p in getattr(tiny_model, name).parameters()) for name in rows}
    assert {name: row.parameters for name, row in rows.items()} == sizes
    assert {name: row.learning for name, row in rows.items()} == {**sizes, "encoder": 0, "marks": 0}
    assert (rows["projector"].rate, rows["projector"].weight_decay) == (1e-3, 0.1)
    assert (rows["backbone"].rate, rows["backbone"].weight_decay) == (1e-5, 0.2)
    assert rows["encoder"].rate is None
    assert rows["encoder"].dtype == "float32"


def test_a_model_that_was_not_frozen_is_told_as_it_is(tiny_model):
    rows = by_part(training_table(tiny_model, stage({"projector": 1e-3})))
    assert rows["encoder"].learning == rows["encoder"].parameters > 0


def test_marks_have_a_rate_and_no_decay(tiny_model):
    rows = by_part(training_table(tiny_model, stage({"marks": 1e-3}, weight_decay=0.1)))
    assert (rows["marks"].rate, rows["marks"].weight_decay) == (1e-3, 0.0)


def test_adapters_are_a_row_of_their_own(tiny_model):
    whole = sum(p.numel() for p in tiny_model.backbone.parameters())
    given = stage({"lora": LORA})
    prepare(tiny_model, given)
    rows = by_part(training_table(tiny_model, given))
    dim, mlp, keys, rank = 32, 48, 16, 4
    per_block = rank * (2 * (dim + dim) + 2 * (dim + keys) + 3 * (dim + mlp))
    assert rows["lora"].parameters == rows["lora"].learning == 2 * per_block
    assert (rows["lora"].lora_rank, rows["lora"].lora_alpha, rows["lora"].layers) == (4, 8.0, 2 * 7)
    assert (rows["backbone"].parameters, rows["backbone"].learning) == (whole, 0)


def test_a_quantized_backbone_keeps_its_number_of_weights(tiny_model):
    whole = sum(p.numel() for p in tiny_model.backbone.parameters())
    given = stage({"lora": {**LORA, "bits": 8}})
    prepare(tiny_model, given)
    rows = by_part(training_table(tiny_model, given))
    assert rows["backbone"].parameters == whole
    assert rows["lora"].bits == 8


@pytest.mark.parametrize(
    "train", [{"projector": 1e-3}, {"marks": 1e-3, "lora": LORA}, {"encoder": 2e-6, "backbone": 1e-5}]
)
def test_a_recipe_gives_the_same_table_without_weights(tiny_spec, tiny_model, train):
    given = stage(train)
    prepare(tiny_model, given)
    assert tables_of(recipe(tiny_spec, train)) == {"s0": training_table(tiny_model, given)}


def test_a_quantized_stage_is_told_from_its_recipe(tiny_spec):
    rows = by_part(tables_of(recipe(tiny_spec, {"lora": {**LORA, "bits": 4}}))["s0"])
    assert rows["lora"].bits == 4
    assert "rank 4, alpha 8, on 14 layers, backbone in 4 bits" in as_text(list(rows.values()))


def test_a_large_models_table_needs_no_memory():
    model = meta_model({"encoder": "siglip_so400m_384", "backbone": "qwen2_7b"})
    assert {p.device.type for p in model.parameters()} == {"meta"}
    rows = by_part(training_table(model, stage({"projector": 1e-3})))
    assert rows["backbone"].parameters == pytest.approx(7.6e9, rel=0.01)


def test_a_model_whose_parts_do_not_fit_has_no_table(tiny_spec):
    with pytest.raises(ConfigError, match=r"model\.projector"):
        meta_model({**tiny_spec, "projector": "mpl"})


def test_the_text_is_aligned_and_ends_with_the_sum(tiny_model):
    given = stage({"projector": 1e-3})
    train_only(tiny_model, given.train)
    head, *rows, total = as_text(training_table(tiny_model, given)).splitlines()
    learns = head.index("learning") + len("learning")
    assert [row[:learns].split()[-1] for row in rows] == ["frozen", "1,600", "frozen", "frozen"]
    assert total[:learns].split()[-1] == "1,600"
    assert total.endswith("% learns")


def test_tables_of_all_stages_are_kept_in_one_file(tiny_model, tmp_path):
    rows = training_table(tiny_model, stage({"projector": 1e-3}))
    write_table(tmp_path, "align", rows)
    write_table(tmp_path, "all", rows)
    kept = json.loads((tmp_path / "trains.json").read_text())
    assert list(kept) == ["align", "all"]
    assert kept["align"][1]["rate"] == 1e-3
