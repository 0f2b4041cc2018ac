"""Write the tables of docs/explanation/trained_weights.md from docs/explanation/trained_weights.csv (python -m tests.weights).

python docs/scripts/write_trained_weights.py
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "explanation"
PAGE, NUMBERS = FOLDER / "trained_weights.md", FOLDER / "trained_weights.csv"
MODELS = {
    "before": "before training",
    "runs/weights/assistant/stages/0-align": "after `align`",
    "runs/weights/assistant/model": "after `instruct`",
}
ASSISTANT = "runs/weights/assistant/model"
CHANCE = {"name": "0.1 %", "category of the name": "", "category": "31 %", "which": "50 %"}
"""Of 704 names; the most frequent of five categories; of two."""
Numbers = dict[tuple[str, str, str, str], tuple[str, str]]
"""(model, measure, split, shown) to (value, of)."""


def read_numbers() -> Numbers:
    with NUMBERS.open(encoding="utf-8", newline="") as file:
        return {
            (row["model"], row["measure"], row["split"], row["shown"]): (row["value"], row["of"])
            for row in csv.DictReader(file)
        }


def make_table(heads: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, rule, *rows))


def list_precisions(numbers: Numbers) -> Iterator[Sequence[str]]:
    for name in [model for model, measure, *_ in numbers if measure == "answers as in float32"]:
        same, of = numbers[name, "answers as in float32", "", ""]
        size = numbers[name, "MB of the language model", "", ""][0]
        yield name, numbers[name, "perplexity", "", ""][0], f"{same} of {of}", size


def list_scores(numbers: Numbers) -> Iterator[Sequence[str]]:
    for split in ("learned", "held out"):
        for measure, chance in CHANCE.items():
            found = [
                numbers.get((ASSISTANT, measure, split, s)) for s in ("the drawing", "another drawing", "no drawing")
            ]
            nearest = numbers.get(("nearest drawing", measure, split, ""))
            yield f"{measure}, {split}", *map(format_share, [*found, nearest]), chance


def format_share(found: tuple[str, str] | None) -> str:
    if found is None:
        return ""
    value, of = map(int, found)
    return f"{100 * value / of:.0f} % ({value} of {of})"


def list_languages(numbers: Numbers) -> Iterator[Sequence[str]]:
    for model, words in MODELS.items():
        if (model, "answers as before", "", "") in numbers:
            same, of = numbers[model, "answers as before", "", ""]
            yield words, numbers[model, "perplexity", "", ""][0], f"{same} of {of}"


def make_tables() -> dict[str, str]:
    numbers = read_numbers()
    shown = ("question, things", "the drawing", "another drawing", "no drawing", "nearest drawing", "chance")
    return {
        "precision": make_table(("weights", "perplexity", "answers as in float32", "MB"), list_precisions(numbers)),
        "assistant": make_table(shown, list_scores(numbers)),
        "language": make_table(("model", "perplexity", "answers as before"), list_languages(numbers)),
    }


def page() -> str:
    """The page with its tables, each between `<!-- name -->` and `<!-- /name -->`, made anew."""
    text = PAGE.read_text(encoding="utf-8")
    for name, table in make_tables().items():
        text = re.sub(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", rf"\1{table}\n\2", text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
