"""`mmblocks eval`: print the scores of a model on a suite of tasks."""

import argparse
import json

from mmblocks.cli.model_options import MODEL_HELP, add_base_option, add_placement_options

SUITES = {"tiny": "TinyWorld's held-out images, image sets and videos"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("suite", choices=sorted(SUITES), help="; ".join(f"{k}: {v}" for k, v in SUITES.items()))
    parser.add_argument("--model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--samples", type=int, default=500, help="questions per task (default 500)")
    add_base_option(parser)
    add_placement_options(parser)
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")


def run(args: argparse.Namespace) -> int:
    from mmblocks.assets import find_tiny_model
    from mmblocks.eval.tinyworld import evaluate_tinyworld, format_scores
    from mmblocks.model.loading import load

    model = load(args.model or find_tiny_model(), dtype=args.dtype, device=args.device, bits=args.bits, base=args.base)
    table = evaluate_tinyworld(model, samples=args.samples)
    if args.json:
        counts = {t: {k: [s.num_right, s.num_questions] for k, s in scores.items()} for t, scores in table.items()}
        print(json.dumps(counts, indent=2))
    else:
        print(format_scores(table))
    return 0
