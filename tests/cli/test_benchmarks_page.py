"""docs/reference/benchmarks.md and its pictures are what the script makes of the tables, whichever tables there are."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.suites.rows import Row, write

ROOT = Path(__file__).parents[2]
TABLES = ROOT / "docs/benchmarks"
SCRIPTS = ROOT / "docs/scripts"


@pytest.fixture(scope="module")
def script():
    """docs/scripts/write_benchmarks.py as a module."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        import write_benchmarks

        yield write_benchmarks
    finally:
        sys.path.remove(str(SCRIPTS))
        for name in ("write_benchmarks", "benchmarks_figures", "benchmarks_targets"):
            sys.modules.pop(name, None)


def row(**fields):
    """A row of a CPU time that is twice as good as the peer's."""
    known = {
        "suite": "prefill",
        "scenario": "video",
        "size": "small",
        "device": "cpu",
        "dtype": "float32",
        "quantity": "time to last logits, 9 tokens, 8 views",
        "unit": "s",
        "ours": 0.5,
        "peer": 1.0,
        "ratio": 2.0,
        "peer_setting": "as shipped",
        "spread": 0.01,
        "command": "mmblocks bench prefill",
        "machine": "a machine",
        "versions": "torch=2",
        "commit": "abc",
        "date": "2026-01-31",
    }
    return Row(**{**known, **fields})


def growing(axis, value):
    """The rows of a point of an axis."""
    flops = [f"prefill of the {part}" for part in ("encoder", "projector", "backbone", "head")]
    own = {"suite": "scale", "scenario": f"{axis}={value}", "size": "7b", "device": "meta", "spread": None}
    counted = {"peer": None, "ratio": None, "peer_setting": "", "ours": 100.0 * value}
    yield from (row(**own, **counted, quantity=name, unit=name) for name in ("tokens", "views"))
    yield row(**own, **counted, quantity="key-value cache", unit="bytes")
    for name in (*flops, "prefill"):
        yield row(**own, quantity=name, unit="FLOPs", ours=1e12 * value, peer=2e12 * value, peer_setting="naive")
    yield row(**own, quantity="kept for backward", unit="bytes", ours=2e9 * value, peer=4e9, peer_setting="naive")


@pytest.fixture
def folder(tmp_path):
    """Tables of everything that the page draws."""
    kept = {"suite": "memory", "scenario": "clip, 16384 tokens", "size": "7b", "device": "meta", "unit": "bytes"}
    write(
        tmp_path / "cpu.csv",
        [row(), row(ratio=1.04, peer_setting="best"), row(ratio=1.2, scenario="images"), row(size="tiny", ratio=1.7)],
    )
    write(tmp_path / "counters.csv", [row(suite="counters", quantity="projector", scenario="clip at width 896")])
    write(tmp_path / "memory.csv", [row(**kept, quantity="peak of a step", ours=2e9, peer=7e9, ratio=3.5)])
    points = [(axis, value) for axis in ("images", "frames", "resolution") for value in (1, 2)]
    write(tmp_path / "scale.csv", [found for point in points for found in growing(*point)])
    return tmp_path


def told(script, folder):
    """The page alone."""
    return script.text(script.Tables.of(folder))


def made(script, folder):
    script.main(folder, folder / "page.md")
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".csv"}


# The page that is checked in ----------------------------------------------------------------------------------------


def test_the_page_is_what_the_script_makes_of_the_tables(script):
    shown = (ROOT / "docs/reference/benchmarks.md").read_text(encoding="utf-8")
    assert shown == script.text(script.Tables.of(TABLES)), "run python docs/scripts/write_benchmarks.py"


def test_the_page_shows_every_picture_and_there_are_no_others(script, tmp_path):
    shown = (ROOT / "docs/reference/benchmarks.md").read_text(encoding="utf-8")
    wanted = {path.name for path in script.pictures(script.Tables.of(TABLES), tmp_path)}
    assert {path.name for path in TABLES.glob("*.svg")} == wanted
    assert all(f"](../benchmarks/{name})" in shown for name in wanted)


# Any page -----------------------------------------------------------------------------------------------------------


def test_without_tables_every_section_says_so(script, tmp_path):
    assert set(made(script, tmp_path)) == {"page.md"}
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert text.count("Not measured yet") == 14
    assert "| prefill, small, as shipped | 1.1x |  | not measured |" in text
    assert "python -m tests.bench" in text.partition("## On a GPU")[2]


def test_the_same_tables_make_the_same_bytes(script, folder):
    first = made(script, folder)
    assert {name for name in first if name.endswith(".svg")} == {"times.svg", "memory.svg", "scale_7b.svg"}
    assert made(script, folder) == first


def test_a_picture_whose_table_is_gone_goes_too(script, tmp_path):
    (tmp_path / "memory.svg").write_text("<svg/>", encoding="utf-8")
    assert set(made(script, tmp_path)) == {"page.md"}


def test_the_worst_row_decides_whether_an_aim_is_reached(script, folder):
    text = told(script, folder)
    assert "| prefill, small, as shipped | 1.1x | 1.2x | reached (small, images, the worst of 2) |" in text
    assert "| prefill, small, at its best | 1.05x | 1.04x | **missed** |" in text
    assert "| prefill, tiny, as shipped | 1.8x | 1.7x | **missed** |" in text
    assert "| peak of a step at 16k tokens, both without gradient checkpointing | 3x | 3.5x | reached |" in text


def test_rows_are_shown_with_what_they_were_measured_with(script, folder):
    text = told(script, folder)
    assert (
        "| small | prefill: video | time to last logits, 9 tokens, 8 views | 500 ms | 1 s | 2.00 | as shipped | 1% |"
        in text
    )
    assert "- `mmblocks bench prefill` on a machine, 2026-01-31, torch=2, commit abc" in text


def test_a_table_of_a_gpu_takes_the_place_of_the_commands(script, folder):
    for table in ("counters", "memory", "scale"):
        (folder / f"{table}.csv").unlink()
    gpu = [row(device="cuda", size="7b", ratio=1.3, machine="a GPU"), row(device="cuda", suite="memory", unit="bytes")]
    write(folder / "gpu.csv", gpu)
    made_now = made(script, folder)
    text = made_now["page.md"].decode().partition("## On a GPU")[2]
    assert "Not run" not in text
    assert "| prefill, 7B, as shipped | 1.25x | 1.3x | reached |" in text
    assert {"times_gpu.svg", "memory_gpu.svg"} <= set(made_now)


@pytest.mark.parametrize(("value", "unit", "shown"), [
    (0.0123, "s", "12.3 ms"),
    (2.5, "s", "2.5 s"),
    (3 * 2**30, "bytes", "3 GiB"),
    (1.5e12, "FLOPs", "1.5 TFLOPs"),
    (729, "rows", "729"),
    (16384, "tokens", "16.4 k"),
    (0.0, "calls", "0"),
    (None, "s", ""),
])  # fmt: skip
def test_values_are_written_with_their_units(script, value, unit, shown):
    assert script._value(value, unit) == shown


def test_every_target_names_a_suite_that_there_is(script):
    import benchmarks_targets

    from tests.bench.suites.suites import SUITES

    groups = (benchmarks_targets.TIMES, benchmarks_targets.COUNTERS, benchmarks_targets.MEMORY, benchmarks_targets.GPU)
    assert {target.suite for group in groups for target in group} <= set(SUITES)


def test_a_target_fits_whole_texts(script):
    import benchmarks_targets

    target = benchmarks_targets.Target("", 1, "prefill", "cpu", scenario="images")
    assert target.rows([row(scenario="images")])
    assert not target.rows([row(scenario="two_images")])
    assert not target.rows([replace(row(scenario="images"), ratio=None)])
