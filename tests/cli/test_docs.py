"""Generated pages are up to date; links lead somewhere."""

import re
import runpy
from pathlib import Path

import pytest

from mmblocks.shapes import Size, VisualShape

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(p for p in sorted(ROOT.glob("docs/**/*.md")) if "api" not in p.parts),
]
LINK = re.compile(r"\]\((?!https?:)([^)\s]+)\)")
COUNTED = re.compile(r"^\| (\d+)x(\d+) \|.* = (\d+) \|$", re.MULTILINE)


@pytest.mark.parametrize(
    ("script", "made", "page"),
    [
        ("write_components", "page", "reference/components.md"),
        ("write_presets", "page", "reference/presets.md"),
        ("write_tasks", "page", "reference/tasks.md"),
        ("draw_tokens", "figure", "images/tokens.svg"),
        ("draw_pipeline", "figure", "images/pipeline.svg"),
        ("write_trained_weights", "page", "explanation/trained_weights.md"),
        ("write_scores", "page", "explanation/scores.md"),
    ],
)
def test_a_generated_page_is_what_its_script_makes(script, made, page):
    fresh = runpy.run_path(str(ROOT / f"docs/scripts/{script}.py"))[made]()
    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == fresh, f"run python docs/scripts/{script}.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_repository_lead_to_files_and_headings(page):
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


def headings(page):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_worked_token_counts_are_those_of_the_plan():
    router = runpy.run_path(str(ROOT / "examples/plan_tokens.py"))["onevision"]()
    counted = COUNTED.findall((ROOT / "docs/explanation/concepts.md").read_text(encoding="utf-8"))
    assert len(counted) == 5
    for width, height, tokens in counted:
        (routed,) = router.plan([VisualShape("image", Size(int(height), int(width)))])
        assert routed.plan.num_tokens == int(tokens)
