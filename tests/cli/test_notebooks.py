"""Every notebook of examples/ runs without a network, and shows what its text says. What is committed is such a run."""

import re
import runpy
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(ROOT.glob("examples/*.ipynb"))
NAMES = ["compose_and_ask", "own_data", "plan_a_large_run", "swap_and_sweep"]
MOST_BYTES = 150_000
ELSEWHERE = re.compile(r"/(?:home|root|tmp|work|Users|usr|var)/|site-packages")

runner = runpy.run_path(str(ROOT / "docs/scripts/run_notebooks.py"))


@pytest.fixture(scope="module", params=NAMES)
def ran(request, tmp_path_factory):
    """The name of a notebook, and it after all its cells have run in an empty folder."""
    folder = tmp_path_factory.mktemp(request.param)
    notebook = runner["run_notebook"](ROOT / f"examples/{request.param}.ipynb", folder)
    return request.param, runner["tidy"](notebook, str(folder))


def printed(notebook):
    """What each code cell prints or shows as text, one after the other."""
    return [output_text(cell) for cell in notebook.cells if cell.cell_type == "code"]


def output_text(cell):
    return "".join(o.get("text", "") or o.get("data", {}).get("text/plain", "") for o in cell.outputs)


def pictures(notebook):
    return sum("image/png" in o.get("data", {}) for c in notebook.cells for o in c.get("outputs", []))


def percent(task, text):
    return float(re.search(rf"\*\*{task}\*\* \| \*\*all\*\* \| \d+ \| ([\d.]+) %", text)[1])


def test_a_notebook_runs_and_shows_what_its_text_says(ran):
    name, notebook = ran
    CLAIMS[name](printed(notebook), notebook)


def composes_and_asks(texts, notebook):
    text = "\n".join(texts)
    for answer in ("triangle yellow", "red circle middle left", "purple square picture 2", "right"):
        assert answer in text
    assert "37 tokens from 5 views" in text
    assert "projector 'mlp' has no setting 'dept'. Did you mean 'depth'?" in text
    assert "projector     49,536 parameters" in text
    assert texts[-2].splitlines()[-1] == "True"  # what is loaded answers as what was saved
    assert texts[-1].splitlines()[:2] == ["encoder    clip_vit_l_336", "projector  gated"]
    assert pictures(notebook) == 3


def learns_from_own_data(texts, notebook):
    text = "\n".join(texts)
    right = {name: int(count) for name, count in re.findall(r"(colour|place): (\d+) of 40 right", text)}
    assert min(right["colour"], right["place"]) >= 36  # by guessing a quarter, and half
    assert "Did you mean 'steps'?" in text
    assert "no faulty of 200 looked at (200 records)" in text
    assert pictures(notebook) == 3


def swaps_and_sweeps(texts, notebook):
    before, after = (text for text in texts if "**single**" in text)
    assert percent("single", before) <= 40
    assert percent("single", after) >= 70  # the projector has learned; the other components were frozen
    assert "kept     backbone           804,992 parameters" in "\n".join(texts)
    (table,) = (
        o.data["text/markdown"] for c in notebook.cells for o in c.get("outputs", []) if "text/markdown" in str(o)
    )
    rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines() if re.match(r"\| \d", line)]
    assert [row[2] for row in rows] == ["8", "4", "1"]
    assert float(rows[0][7]) - float(rows[-1][7]) >= 20  # exact answers about videos: one frame shows no direction
    assert "tokens, FLOPs" in rows[-1]  # the fewest tokens are always on the front
    assert "8 -> 1" in texts[-1]
    assert pictures(notebook) == 2


def plans_a_large_run(texts, notebook):
    text = "\n".join(texts)
    assert "video     1280x720, 900 frames        video     32           6273" in text
    assert "5241 tokens and 84 TFLOP a sample, forward" in text
    assert "3.2 M samples on 64 GPUs: about 9 hours" in text
    assert "800 records, 800 measured" in text
    assert "missing on this machine" in text
    assert pictures(notebook) == 1
    committed = nbformat.read(ROOT / "examples/plan_a_large_run.ipynb", as_version=4)
    assert texts == printed(committed), "run python docs/scripts/run_notebooks.py plan_a_large_run"


CLAIMS = {
    "compose_and_ask": composes_and_asks,
    "own_data": learns_from_own_data,
    "plan_a_large_run": plans_a_large_run,
    "swap_and_sweep": swaps_and_sweeps,
}


def test_every_notebook_is_tested():
    assert [path.stem for path in NOTEBOOKS] == NAMES == sorted(CLAIMS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_one_run_from_above_to_below(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {output.output_type for cell in code for output in cell.outputs}
    assert kinds <= {"stream", "display_data", "execute_result"}
    assert path.stat().st_size < MOST_BYTES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_names_no_place_of_the_machine_it_ran_on(path):
    notebook = nbformat.read(path, as_version=4)
    assert ELSEWHERE.findall("\n".join(printed(notebook))) == []
    assert all(cell.metadata == {} for cell in notebook.cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_name_each_other_by_files_that_exist(path):
    notebook = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert all((path.parent / link).exists() for link in re.findall(r"\]\(([^)]+)\)", text))
