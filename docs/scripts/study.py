"""Findings of the LLaVA family on drawn shapes: run what is not finished, then write docs/explanation/study/study.md and its pictures.

python docs/scripts/study.py --out runs/study                       less than an hour on two cores; again: goes on
python docs/scripts/study.py --out runs/study --report              the page from what there is, nothing is run
python docs/scripts/study.py --out runs/smoke --page runs/smoke --budget 0.01 --samples 4      whether it works
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported; processes side by side share the cores
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from study_cells import Effort, jobs, run_all
from study_page import gathered, write
from study_questions import QUESTIONS

from mmblocks.errors import MMBlocksError

PAGE = Path(__file__).parents[1] / "explanation/study"
CLOCK = "clock.json"


def main() -> int:
    """Run and write; 1 where something did not go well."""
    given = arguments()
    questions = [question for question in QUESTIONS if not given.only or question.name in given.only]
    effort = Effort(given.out.resolve(), given.budget, given.samples)
    effort.out.mkdir(parents=True, exist_ok=True)
    clock = effort.out / CLOCK
    try:
        fine = given.report or run_all(jobs(questions, effort), given.processes, clock)
        write(gathered(questions, effort, clock, given.processes), questions, given.page)
    except MMBlocksError as error:
        print(f"study: {error}", file=sys.stderr)
        return 1
    print(f"the page is {given.page / 'study.md'}")
    return 0 if fine else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="folder of the cells")
    parser.add_argument("--page", type=Path, default=PAGE, help="folder of study.md (default: docs/explanation/study)")
    parser.add_argument("--budget", type=float, default=1.0, help="factor on all steps (default 1)")
    parser.add_argument("--samples", type=int, default=400, help="held-out questions of each measure (default 400)")
    side_by_side = min(2, os.cpu_count() or 1)
    parser.add_argument("--processes", type=int, default=side_by_side, help=f"side by side (default {side_by_side})")
    parser.add_argument("--only", nargs="+", choices=[q.name for q in QUESTIONS], help="some of the questions")
    parser.add_argument("--report", action="store_true", help="write the page from what there is")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
