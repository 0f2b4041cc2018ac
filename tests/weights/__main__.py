"""The measurements of docs/explanation/trained_weights.md. Run from the root of a checkout: `python -m tests.weights COMMAND`.

python -m tests.weights prepare                             write the trained parts, drawings and records to runs/weights
python -m tests.weights precision                           perplexity and answers in float32, bfloat16, 8 and 4 bits
mmblocks train tests/weights/assistant.yaml                 train the assistant
python -m tests.weights language runs/weights/assistant/model       perplexity and answers after training
python -m tests.weights ask runs/weights/assistant/model            questions about the third hand's drawings
python -m tests.weights nearest                             the same by the nearest drawing in the encoder's features
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

import mmblocks
from mmblocks.errors import MMBlocksError
from tests.weights import measures, packages
from tests.weights.emoji import ASKED_HAND, LEARNED_HANDS, read_things, write_training_files


def prepare(args: argparse.Namespace) -> Iterator[measures.Row]:
    packages.write_language_model(args.folder / "smollm2")
    packages.write_encoder(args.folder)
    measures.save_parts(args.folder)
    archives = packages.fetch_emoji_packages(args.folder / "archives")
    packages.unpack_emoji(archives, args.folder / "emoji")
    write_training_files(args.folder / "emoji", args.folder)
    yield {"measure": "prepared", "value": str(args.folder)}


def measure_precision(args: argparse.Namespace) -> Iterator[measures.Row]:
    """Rows by precision; answers are counted that equal those in float32."""
    expected: list[str] = []
    for name, options in measures.PRECISIONS.items():
        model = mmblocks.load(args.folder / measures.JOINED, **options).eval()
        answers = measures.answer_texts(model)
        expected = expected or answers
        ids = measures.read_text_ids(model.backbone.text_tokenizer)
        yield {"model": name, "measure": "perplexity", "value": round(measures.compute_perplexity(model, ids), 3)}
        same = sum(a == b for a, b in zip(answers, expected, strict=True))
        yield {"model": name, "measure": "answers as in float32", "value": same, "of": len(answers)}
        size = sum(t.nbytes for t in (*model.backbone.parameters(), *model.backbone.buffers()))
        yield {"model": name, "measure": "MB of the language model", "value": round(size / 1e6, 1)}


def measure_language(args: argparse.Namespace) -> Iterator[measures.Row]:
    """What training left of the language model: perplexity, and answers to questions without images."""
    before = mmblocks.load(args.folder / measures.JOINED).eval()
    expected = measures.answer_texts(before)
    ids = measures.read_text_ids(before.backbone.text_tokenizer)
    for name, model in [("before", before), *((name, mmblocks.load(name).eval()) for name in args.models)]:
        answers = measures.answer_texts(model)
        yield {"model": name, "measure": "perplexity", "value": round(measures.compute_perplexity(model, ids), 3)}
        same = sum(a == b for a, b in zip(answers, expected, strict=True))
        yield {"model": name, "measure": "answers as before", "value": same, "of": len(answers)}
        for question, text in zip(measures.QUESTIONS, answers, strict=True):
            print(f"{name}: {question} {text!r}", file=sys.stderr)


def ask(args: argparse.Namespace) -> Iterator[measures.Row]:
    """Exact answers by split, question and what is shown."""
    things = read_things(args.folder / "emoji")
    for name in args.models:
        model = mmblocks.load(name).eval()
        for split, questions in measures.list_questions(args.folder / "emoji", args.things).items():
            for shown in measures.SHOWN[: args.shown]:
                answers = measures.answer_questions(model, args.folder / "emoji", questions, shown)
                for row in measures.count_exact(questions, answers, things):
                    yield {"model": name, "split": split, "shown": shown, **row}


def find_nearest(args: argparse.Namespace) -> Iterator[measures.Row]:
    """Names and categories by the nearest learned drawing: cosine of the encoder's standardised features."""
    things = read_things(args.folder / "emoji")
    model = mmblocks.load(args.folder / measures.JOINED).eval()
    features = {hand: measures.encode_drawings(model, args.folder / "emoji", hand, things) for hand in LEARNED_HANDS}
    known = torch.tensor([not thing.is_held_out for thing in things])
    learned = torch.cat([features[hand][known] for hand in LEARNED_HANDS])
    mean, deviation = learned.mean(0), learned.std(0) + 1e-3
    asked = measures.encode_drawings(model, args.folder / "emoji", ASKED_HAND, things)
    asked, learned = (torch.nn.functional.normalize((x - mean) / deviation) for x in (asked, learned))
    names = [thing for thing in things if not thing.is_held_out] * len(LEARNED_HANDS)
    nearest = [names[i] for i in (asked @ learned.T).argmax(1).tolist()]
    for split, held_out in (("learned", False), ("held out", True)):
        pairs = [(t, n) for t, n in zip(things, nearest, strict=True) if t.is_held_out == held_out]
        for kind in ("name", "category"):
            right = sum(getattr(t, kind) == getattr(n, kind) for t, n in pairs)
            yield {"model": "nearest drawing", "measure": kind, "split": split, "value": right, "of": len(pairs)}


COMMANDS = {
    "prepare": prepare,
    "precision": measure_precision,
    "language": measure_language,
    "ask": ask,
    "nearest": find_nearest,
}
COLUMNS = ("model", "measure", "split", "shown", "value", "of")


def write_rows(rows: Iterable[measures.Row], out: Path | None) -> None:
    """Print rows as they come, and append them to a CSV file."""
    for row in rows:
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        if out is not None:
            is_new = not out.exists()
            with out.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                if is_new:
                    writer.writeheader()
                writer.writerow(row)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("models", nargs="*", help="folders of trained models (language, ask)")
    parser.add_argument("--folder", type=Path, default=Path("runs/weights"), help="what prepare writes")
    parser.add_argument("--things", type=int, default=100, help="things of each split (ask; default 100)")
    parser.add_argument("--shown", type=int, default=3, help="1: the drawing; 2: also another one; 3: also none (ask)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="CSV file to append rows to")
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        write_rows(COMMANDS[args.command](args), args.out)
    except MMBlocksError as error:
        print(f"tests.weights: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
