"""The laptop study: what numbers make of claims, the page they make, and the whole of it run with a few steps."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmblocks import conf
from mmblocks.assets import find_tiny_model
from mmblocks.model.checkpoint import read_spec

ROOT = Path(__file__).parents[2]
ASKED = 400


@pytest.fixture(autouse=True, scope="module")
def scripts():
    """The scripts of docs/scripts as modules."""
    sys.path.insert(0, str(ROOT / "docs/scripts"))
    yield
    sys.path.remove(str(ROOT / "docs/scripts"))


@pytest.fixture(scope="module")
def study_page(scripts):
    import study_page

    return study_page


@pytest.fixture(scope="module")
def questions(scripts):
    from study_questions import QUESTIONS

    return QUESTIONS


def two_arms(expected, than=("b", "m")):
    """A question with arms a and b, and the claim that a is, in the measure m, to b as expected."""
    from study_questions import Arm, Claim, Measure, Question

    claim = Claim("it is said", "somewhere", ("a", "m"), expected, than)
    return Question("q", "Is it?", "", (Arm("a", "", "0"), Arm("b", "", "0")), (Measure("m", "single"),), (claim,))


def numbers_of(a, b):
    """What was found: right answers out of 400 for every seed of the arms a and b."""
    found = {
        name: [{"scores": {"m": [n, ASKED]}, "tokens": None, "seconds": 1.0} for n in seeds]
        for name, seeds in (("a", a), ("b", b))
    }
    about = {"budget": 1.0, "samples": ASKED, "processes": 2, "cores": 2, "torch": "2", "wall_s": 60.0, "base_s": None}
    return {**about, "found": {"q": found}}


@pytest.mark.parametrize(
    ("a", "b", "expected", "word"),
    [
        ([300], [100], "more", "agrees"),
        ([100], [300], "more", "disagrees"),
        ([205], [200], "more", "not told apart"),
        ([290, 300, 310], [100], "more", "agrees"),
        ([250, 300, 350], [260], "more", "not told apart"),
        ([205], [200], "alike", "agrees"),
        ([300], [200], "alike", "disagrees"),
        ([195], [200], "no less", "agrees"),
        ([300], [200], "no less", "agrees"),
        ([100], [200], "no less", "disagrees"),
        ([], [200], "more", "not measured"),
    ],
)
def test_a_verdict_follows_from_the_numbers_and_their_spread(study_page, a, b, expected, word):
    question = two_arms(expected)
    assert study_page.judge(numbers_of(a, b), [question], question, question.claims[0]).word == word


@pytest.mark.parametrize(("right", "word"), [(300, "agrees"), (105, "not told apart"), (20, "disagrees")])
def test_a_share_may_be_compared_with_a_guess(study_page, right, word):
    question = two_arms("more", than=0.25)
    assert study_page.judge(numbers_of([right], []), [question], question, question.claims[0]).word == word


def test_seeds_apart_widen_what_counts_as_chance(study_page):
    question = two_arms("more")
    close, far = (
        study_page.judge(numbers_of(seeds, [200]), [question], question, question.claims[0])
        for seeds in ([299, 300, 301], [260, 300, 340])
    )
    assert close.difference == pytest.approx(far.difference) == 0.25
    # 400 questions: 2.5 points for one half, 2.2 for three quarters; seeds: 10 points, once as they are, once by sqrt(3)
    assert 100 * close.error == pytest.approx(3.3, abs=0.1)
    assert 100 * far.error == pytest.approx((3.3**2 + 10**2 * (1 + 1 / 3)) ** 0.5, abs=0.1)


def test_the_page_shows_means_spreads_and_verdicts(study_page):
    question = two_arms("more")
    text = study_page.page(numbers_of([300, 320, 340], [100]), [question])
    assert "| a |  | 3 | 80.0 (75.0 to 85.0) | 1 |" in text
    assert "| b |  | 1 | 25.0 | 1 |" in text
    assert "* It is said (somewhere): **agrees**. `a` against `b` (asked: m): +55.0 points" in text
    assert "**1 minutes** in all" in text


def test_every_arm_composes_and_starts_from_a_stage_of_the_curriculum(questions, tmp_path):
    from study_cells import Effort, jobs

    stages = [f"{n}-{stage['name']}" for n, stage in enumerate(conf.compose("tiny/onevision")["stages"])]
    listed = jobs(questions, Effort(tmp_path, 1.0, 400))
    assert len(listed) == 1 + sum(arm.seeds for q in questions for arm in q.arms)
    assert {job.needs.name for job in listed[1:]} <= {*stages}
    assert any(arm.seeds > 2 for q in questions for arm in q.arms), "one seed spread"


def test_docs_study_md_is_what_its_numbers_say(study_page, questions):
    numbers = json.loads((ROOT / "docs/explanation/study/study.json").read_text(encoding="utf-8"))
    fresh = study_page.page(numbers, questions)
    assert (ROOT / "docs/explanation/study/study.md").read_text(encoding="utf-8") == fresh, (
        "run python docs/scripts/study.py --report"
    )


def study(out, *more):
    words = ["--out", str(out), "--page", str(out), "--budget", "0.01", "--samples", "4", *more]
    return subprocess.run([sys.executable, "docs/scripts/study.py", *words], cwd=ROOT, capture_output=True, text=True)


def measured(out):
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("*/*/measured.json")}


def put_base_run(out):
    """The bundled model in the place of a finished base run's single-image stage."""
    shutil.copytree(find_tiny_model(), out / "base/stages/3-single_image")
    (out / "base/result.json").write_text(json.dumps({"status": "done", "seconds": 60.0}))


@pytest.mark.slow
def test_a_question_is_answered_and_when_asked_again_only_what_is_missing_runs(tmp_path):
    put_base_run(tmp_path)
    ran = study(tmp_path, "--only", "anyres")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    before = measured(tmp_path)
    assert before.keys() == {"anyres_seed-0", "anyres_seed-1", "anyres_seed-2", "base_view_seed-0", "base_view_seed-1"}
    shown = {name: read_spec(tmp_path / "anyres" / name / "model").to_dict()["tokenizer"]["image"] for name in before}
    assert {spec["name"] for name, spec in shown.items() if name.startswith("base_view")} == {"square"}
    assert {spec["name"] for name, spec in shown.items() if name.startswith("anyres")} == {"anyres_tiny"}
    numbers = json.loads((tmp_path / "study.json").read_text())["found"]["anyres"]
    assert [cell["scores"]["single"][1] for cell in numbers["anyres"]] == [4, 4, 4]
    assert {cell["tokens"] for cell in numbers["anyres"]} == {9 + 6 * 6 + 6}, "base view, joined tiles, newlines"
    assert {cell["tokens"] for cell in numbers["base_view"]} == {9}
    page = (tmp_path / "study.md").read_text()
    assert "not measured" not in page
    assert "(study_anyres.svg)" in page
    assert (tmp_path / "study_anyres.svg").read_text().count("small") > 1

    (tmp_path / "anyres/base_view_seed-1/measured.json").unlink()
    again = study(tmp_path, "--only", "anyres")
    assert again.returncode == 0, again.stdout + again.stderr
    after = measured(tmp_path)
    assert {name for name in after if after[name] != before[name]} == {"base_view_seed-1"}


@pytest.mark.slow
def test_the_whole_study_runs_with_a_few_steps(questions, tmp_path):
    ran = study(tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert len(list(tmp_path.glob("*/*/measured.json"))) == sum(arm.seeds for q in questions for arm in q.arms)
    assert "not measured" not in (tmp_path / "study.md").read_text()
    assert {f"study_{q.name}.svg" for q in questions} == {path.name for path in tmp_path.glob("*.svg")}


def test_a_folder_with_other_settings_is_refused(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "trial.json").write_text(json.dumps({"recipe": {}}))
    refused = study(tmp_path)
    assert refused.returncode == 1
    assert "was trained with other settings; delete it, or name another folder with --out" in refused.stderr
