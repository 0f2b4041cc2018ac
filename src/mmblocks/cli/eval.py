"""Scores of a model on benchmarks in local files, on your own data, or on TinyWorld.

  mmblocks eval MODEL textvqa data=TextVQA_0.5.1_val.json images=train_images --out runs/eval
  mmblocks eval MODEL pope,mme pope.data=pope.parquet mme.data=mme.parquet --limit 200 --shuffle-seed 0
  mmblocks eval MODEL mmstar data=mmstar.parquet answer_by=likelihood
  mmblocks eval MODEL data=val.json metric=contains
  mmblocks eval MODEL tiny
  mmblocks eval http://127.0.0.1:8000/v1 textvqa data=TextVQA_0.5.1_val.json images=train_images
  mmblocks eval --compare runs/a runs/b --out runs/a_and_b
  mmblocks eval --selftest

`mmblocks list task` shows the tasks, `mmblocks show task NAME` the settings of one. Words like data=FILE are settings of
the tasks, max_new_tokens=64 and other settings of decoding replace a task's own; pope.data=FILE is for one task. Without MODEL
the bundled tiny model answers. Under torchrun each process asks a share of the documents. With --out, every answer is written while the run goes, and the same command resumes it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from mmblocks.cli.eval_words import TINY, EvalWords
from mmblocks.cli.model_options import MODEL_HELP, add_base_option, add_placement_options
from mmblocks.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from mmblocks.eval.endpoint_model import EndpointModel
    from mmblocks.eval.predictions import Prediction
    from mmblocks.eval.report import TaskReport
    from mmblocks.eval.runs import NamedTask, Selection
    from mmblocks.eval.tasks import DocumentTask
    from mmblocks.model.onevision import OneVision

TINY_SAMPLES = 500
LONGEST_WAIT_S = 86_400.0
"""For processes whose documents take longer."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words", nargs="*", metavar="MODEL TASK,TASK key=value", help=f"{MODEL_HELP}; tasks; and their settings"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="folder of answers and scores, or of a comparison (default: they are not kept)",
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help=f"documents per task (default: all; tiny: {TINY_SAMPLES})"
    )
    parser.add_argument(
        "--shuffle-seed",
        type=int,
        metavar="SEED",
        help="ask documents in an order drawn with this seed, not in the file's",
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar="DIR",
        help="compare two folders of --out, document by document; with --out as a page with images, too",
    )
    parser.add_argument(
        "--judge",
        metavar="MODEL",
        help="judge of tasks without a rule, and of metric=judge (default: no judge is asked)",
    )
    parser.add_argument("--judge-url", metavar="URL", help="its OpenAI-compatible endpoint (default: OpenAI's)")
    parser.add_argument(
        "--judge-dry-run", action="store_true", help="print the requests to a judge as JSON lines, and send none"
    )
    parser.add_argument(
        "--selftest", action="store_true", help="compare the scorers with the original ones on golden cases"
    )
    parser.add_argument(
        "--endpoint-model",
        metavar="NAME",
        help="what the endpoint calls the model, where MODEL is the URL of an OpenAI-compatible one (default: its only one)",
    )
    add_base_option(parser)
    add_placement_options(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    if args.selftest:
        return _print_selftest()
    if args.compare:
        return _print_comparison(args)
    from mmblocks.eval.runs import Selection

    words = EvalWords.from_words(args.words)
    if words.tasks == [TINY]:
        return _print_tinyworld(_load_local_model(args, words.model, args.device), args)
    if args.judge and args.out is None:
        raise ConfigError("eval: the replies of a judge are kept in the folder --out; name one.")
    named = words.make_tasks()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return _run_with_others(words, named, args)
    with nullcontext(args.out) if args.out is not None else tempfile.TemporaryDirectory() as folder:
        out, model = Path(folder), _load_model(args, words.model, args.device)
        asked = _run_tasks(model, words, named, args, out, Selection(args.limit, args.shuffle_seed))
        _print_reports([_report_task(*one, args, out) for one in zip(named, asked, strict=True)], args)
    return 0


def _run_with_others(words: EvalWords, named: Sequence[NamedTask], args: argparse.Namespace) -> int:
    """Ask a share of the documents under torchrun; the first process prints the table of all."""
    from mmblocks.eval.runs import Selection
    from mmblocks.train.distributed import join_processes

    if args.out is None:
        raise ConfigError("eval: several processes write their answers to one folder; name it with --out.")
    with join_processes(args.device, LONGEST_WAIT_S) as world:
        model = _load_model(args, words.model, world.device)
        selection = Selection(args.limit, args.shuffle_seed, world.rank, world.size)
        asked = _run_tasks(model, words, named, args, args.out, selection)
        world.wait_for_all()
        if world.is_rank0:
            _print_reports([_report_task(*one, args, args.out) for one in zip(named, asked, strict=True)], args)
        world.wait_for_all()
    return 0


def _load_model(
    args: argparse.Namespace, reference: str | None, device: str | torch.device
) -> OneVision | EndpointModel:
    """A model that answers: in this process, or behind an endpoint."""
    from mmblocks.eval.endpoint_model import EndpointModel
    from mmblocks.eval.judge.endpoint import is_address

    if reference is None or not is_address(reference):
        if args.endpoint_model is not None:
            raise ConfigError("eval: --endpoint-model goes with the URL of an endpoint in place of a model.")
        return _load_local_model(args, reference, device)
    placed = {
        "--device": args.device != "auto",
        "--dtype": args.dtype != "auto",
        "--bits": args.bits,
        "--base": args.base,
    }
    if given := [name for name, is_given in placed.items() if is_given]:
        raise ConfigError(f"eval: {given[0]} has no effect on a model behind an endpoint; leave it out.")
    return EndpointModel.connect(reference, args.endpoint_model)


def _load_local_model(args: argparse.Namespace, reference: str | None, device: str | torch.device) -> OneVision:
    from mmblocks.assets import find_tiny_model
    from mmblocks.eval.judge.endpoint import is_address
    from mmblocks.model.loading import load

    if reference is not None and is_address(reference):
        raise ConfigError("eval: 'tiny' draws its own questions and asks a model in this process; name another task.")
    return load(reference or find_tiny_model(), dtype=args.dtype, device=device, bits=args.bits, base=args.base)


def _run_tasks(
    model: OneVision | EndpointModel,
    words: EvalWords,
    named: Sequence[NamedTask],
    args: argparse.Namespace,
    out: Path,
    selection: Selection,
) -> list[list[int]]:
    """Ask what is not answered yet; the numbers of the selected documents of each task."""
    from mmblocks.eval.endpoint_model import EndpointModel
    from mmblocks.eval.runs import run_task
    from mmblocks.model.weight_digest import digest_weights

    if isinstance(model, EndpointModel):
        about_model = {"model": words.model, "served": model.name}
    else:
        about_model = {
            "model": words.model or "bundled",
            "origin": model.origin,
            "dtype": args.dtype,
            "bits": args.bits,
        }
        about_model["weights"] = digest_weights(model)
    return [run_task(model, one, out / one.name, selection, about_model) for one in named]


def _report_task(one: NamedTask, numbers: Sequence[int], args: argparse.Namespace, out: Path) -> TaskReport:
    from mmblocks.eval.predictions import read_predictions
    from mmblocks.eval.report import make_report

    known = read_predictions(out / one.name)
    predictions, notes = _ask_judge(one.task, [known[number] for number in numbers], args, out)
    return make_report(one.name, one.task, predictions, notes)


def _ask_judge(
    task: DocumentTask, predictions: list[Prediction], args: argparse.Namespace, out: Path
) -> tuple[list[Prediction], list[str]]:
    """Predictions with the scores of a judge where the task needs one and --judge names it; what is to be said about it."""
    from mmblocks.eval.judge import Judge
    from mmblocks.eval.judge.client import OPENAI_URL
    from mmblocks.eval.judged_runs import find_judged, format_judgement, judge_predictions, plan_requests

    if (judged := find_judged(task)) is None:
        return predictions, []
    judge = Judge(args.judge or judged.judge or "unnamed", out / "judge", args.judge_url or OPENAI_URL)
    if args.judge_dry_run:
        for request in plan_requests(task, judged, predictions, judge):
            print(json.dumps({"key": request.key, "url": request.url, "cached": request.cached, "body": request.body}))
    if args.judge_dry_run or not args.judge:
        published = f" (published figures: {judged.judge})" if judged.judge else ""
        return predictions, [
            f"no judge was asked; name one with --judge{published}, or see the requests with --judge-dry-run."
        ]
    scored, judgement = judge_predictions(task, judged, predictions, judge)
    return scored, [format_judgement(judge, judgement)]


def _print_reports(reports: Sequence[TaskReport], args: argparse.Namespace) -> None:
    from mmblocks.eval.report import format_markdown, to_json, write_reports

    if args.out is not None:
        write_reports(reports, args.out)
    if not args.judge_dry_run:  # which prints its requests
        print(json.dumps(to_json(reports), indent=2) if args.json else format_markdown(reports))


def _print_tinyworld(model: OneVision, args: argparse.Namespace) -> int:
    from mmblocks.eval.tinyworld import evaluate_tinyworld, format_scores

    table = evaluate_tinyworld(model, samples=args.limit or TINY_SAMPLES)
    if args.json:
        counts = {t: {k: [s.num_right, s.num_questions] for k, s in scores.items()} for t, scores in table.items()}
        print(json.dumps(counts, indent=2))
    else:
        print(format_scores(table))
    return 0


def _print_comparison(args: argparse.Namespace) -> int:
    from mmblocks.eval.comparing import compare_runs, format_comparison, to_json

    comparisons = compare_runs(*args.compare)
    if args.out is not None:
        from mmblocks.eval.comparison_page import make_comparison_page
        from mmblocks.storage import write_json, write_text

        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / "comparison.json", to_json(comparisons))
        write_text(args.out / "comparison.md", format_comparison(comparisons) + "\n")
        write_text(args.out / "comparison.html", make_comparison_page(comparisons, *args.compare))
    if args.json:
        print(json.dumps(to_json(comparisons), indent=2))
        return 0
    page = (
        f"written  {args.out / 'comparison.html'}"
        if args.out
        else "--out DIR writes a page of the documents that changed, with their images."
    )
    print(f"{format_comparison(comparisons)}\n\n{page}")
    return 0


def _print_selftest() -> int:
    from mmblocks.eval.selftest import run_golden_cases

    results = run_golden_cases()
    for result in results:
        verdict = "equal" if not result.differences else f"{len(result.differences)} DIFFER"
        print(f"{result.file}.{result.group}: {result.cases} cases {verdict} ({result.source})")
    differing = sum(len(result.differences) for result in results)
    print(f"{sum(result.cases for result in results)} golden cases of the original scorers, {differing} differ.")
    return 1 if differing else 0
