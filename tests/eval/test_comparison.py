"""The table and the image of a sweep, from results written by hand."""

import csv
import io
import itertools
import json
from dataclasses import replace

import pytest
from PIL import Image

from mmblocks.sweep.comparison import compare_trials, find_pareto_front, format_csv, format_markdown, write_comparison
from mmblocks.sweep.comparison_picture import make_figure
from mmblocks.sweep.trials import Axis, Sweep, cross_axes

TOKENS = {"linear": 10, "mlp": 10, "gated": 40}
SCORES = {("linear", "0"): 0.25, ("linear", "1"): 0.75, ("mlp", "0"): 0.25, ("mlp", "1"): 0.25, ("gated", "0"): 1.0}
TINY = {"name": "tiny", "limit": 20}
CRASHED = "gated", "1"


@pytest.fixture
def folder(tmp_path):
    """Three projectors with two seeds each; one cell has failed."""
    cells = cross_axes([Axis("model/projector", tuple(TOKENS)), Axis("seed", ("0", "1"))])
    Sweep("mini", ("budget=0.5",), tuple(cells), TINY, ("image=96x72",)).save(tmp_path)
    for cell in cells:
        projector, seed = cell.choices.values()
        tokens = TOKENS[projector]
        cost = {"visual_tokens": tokens, "parameters": 1000, "flops": None if projector == "mlp" else 2e6 * tokens}
        put(tmp_path / cell.name / "trial.json", {"cost": cost})
        put(tmp_path / cell.name / "result.json", result((projector, seed)))
    return tmp_path


def result(chosen):
    if chosen == CRASHED:
        return {"status": "failed", "reason": "it rained"}
    values = {"exact answers": 100 * SCORES[chosen], "training loss": 2.0}
    return {"status": "done", "scoring": TINY, "values": values, "peak_bytes": 5_000_000, "seconds": 3.0}


def put(path, value):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def test_seeds_are_one_row_with_mean_least_and_greatest(folder):
    rows = list(csv.DictReader(io.StringIO(format_csv(compare_trials(folder)))))
    assert [(r["projector"], r["trials"], r["finished"]) for r in rows] == [
        ("linear", "2", "2"),
        ("mlp", "2", "2"),
        ("gated", "2", "1"),
    ]
    assert [float(rows[0][f"exact answers{end}"]) for end in ("", "_min", "_max")] == [50, 25, 75]
    assert rows[1]["flops"] == ""
    assert float(rows[2]["peak_bytes"]) == 5e6


def test_people_read_shares_in_percent_and_why_a_cell_is_missing(folder):
    text = format_markdown(compare_trials(folder))
    assert "# mini with budget=0.5" in text
    assert (
        "| 1 | linear | 2 | 50.0 (25.0 to 75.0) | 2.000 | 10 | 1.0 k | 20.0 M | 5.0 MB | 3 s | tokens, FLOPs |" in text
    )
    assert "| 3 | gated | 1 of 2 | 100.0 | 2.000 |" in text
    assert "5 of 6 trials have finished" in text
    assert "- projector-gated_seed-1: it rained" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_a_cell_scored_in_another_way_counts_as_not_finished(folder):
    sweep = Sweep.load(folder)
    Sweep(sweep.recipe, (), sweep.trials, {"name": "loss"}, sweep.visuals).save(folder)
    assert set(compare_trials(folder).missing) == {cell.name for cell in sweep.trials}


def test_the_front_is_what_no_other_point_beats():
    cheap, good, beaten, unknown, as_good = (1, 5), (3, 9), (3, 5), None, (1, 5)
    assert find_pareto_front([cheap, good, beaten, unknown, as_good]) == {0, 1, 4}
    assert find_pareto_front([(7, 0), None]) == {0}
    assert find_pareto_front([]) == set()


def test_where_the_loss_is_the_score_less_is_better(folder):
    sweep = Sweep.load(folder)
    Sweep(sweep.recipe, (), sweep.trials, {"name": "loss"}, sweep.visuals).save(folder)
    for number, cell in enumerate(sweep.trials):
        ended = {**result(("linear", "0")), "scoring": {"name": "loss"}, "values": {"held-out loss": 1.0 + number}}
        put(folder / cell.name / "result.json", ended)
    assert [row.front for row in compare_trials(folder).rows] == [("tokens", "FLOPs"), (), ()]


def test_the_picture_is_a_png_and_draws_what_has_finished(folder):
    *_, picture = write_comparison(compare_trials(folder), folder)
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG"
        drawn = drawn.convert("RGB")
        assert min(drawn.size) > 300
        red = sum(count for count, (r, g, b) in drawn.getcolors(1 << 20) if r > 190 and g < 60 and b < 60)
    assert red > 50  # the points on the front


def test_labels_of_the_picture_do_not_overlap(folder):
    rows = compare_trials(folder).rows
    close = [replace(rows[0], visual_tokens=10, flops=2e8 + 1e3 * n) for n in range(9)]
    figure = make_figure(replace(compare_trials(folder), rows=(*rows, *close)))
    figure.draw_without_rendering()
    for panel in figure.axes:
        ticks = [label for label in panel.get_xticklabels() if label.get_text()]
        for texts in (ticks, panel.texts):
            boxes = [text.get_window_extent() for text in texts]
            assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
