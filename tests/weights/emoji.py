"""Questions about drawings of things: two hands' drawings to learn from, the third hand's to be asked about."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from tests.weights.packages import HANDS

Kind = Literal["name", "category", "which"]
KINDS: tuple[Kind, ...] = ("name", "category", "which")
CATEGORIES = {
    "Animals & Nature": "nature",
    "Food & Drink": "food",
    "Activities": "activity",
    "Travel & Places": "travel",
    "Objects": "object",
}
LEARNED_HANDS, ASKED_HAND = HANDS[:2], HANDS[2]
HELD_OUT = 8
"""One thing in so many is never learned: no drawing of it, and no answer."""


@dataclass(frozen=True, slots=True)
class Thing:
    """Something that all hands have drawn."""

    name: str
    category: str
    file: str

    @property
    def is_held_out(self) -> bool:
        return blake2b(self.name.encode(), digest_size=8).digest()[0] % HELD_OUT == 0


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a drawing, and its answer."""

    kind: Kind
    thing: Thing
    text: str
    answer: str

    def to_messages(self, image: Path | None) -> list[dict[str, Any]]:
        """Question and answer; without `image` the question is asked about nothing."""
        shown = [] if image is None else [{"type": "image", "image": str(image)}]
        return [
            {"role": "user", "content": [*shown, {"type": "text", "text": self.text}]},
            {"role": "assistant", "content": self.answer},
        ]


def read_things(folder: Path) -> list[Thing]:
    """Animals, plants, food, activities, places, vehicles and objects; clock faces differ by their hands only and are left out."""
    entries = json.loads((folder / "emoji.json").read_text(encoding="utf-8"))
    return [
        Thing(entry["name"].lower(), CATEGORIES[entry["category"]], entry["image"])
        for entry in entries
        if entry["category"] in CATEGORIES
        and not entry["name"].startswith("CLOCK FACE")
        and all(entry[f"has_img_{hand}"] for hand in HANDS)
    ]


def make_question(kind: Kind, thing: Thing, things: Sequence[Thing], seed: int) -> Question:
    """which: the other thing is of the same category, and held out if this one is."""
    if kind == "name":
        return Question(kind, thing, "What is drawn here?", thing.name)
    if kind == "category":
        return Question(kind, thing, f"Which of these is it: {', '.join(CATEGORIES.values())}?", thing.category)
    draw = random.Random(f"{seed} {thing.name}")
    others = [o for o in things if o.category == thing.category and o.is_held_out == thing.is_held_out and o != thing]
    options = [thing.name, draw.choice(others).name]
    draw.shuffle(options)
    return Question(kind, thing, f"Is this {options[0]} or {options[1]}?", thing.name)


def write_training_files(folder: Path, out: Path) -> None:
    """captions.jsonl: a name per drawing; questions.jsonl: three records per drawing, one to two questions each.

    folder: the unpacked drawings.
    """
    things = [thing for thing in read_things(folder) if not thing.is_held_out]
    drawings = [(thing, hand) for thing in things for hand in LEARNED_HANDS]
    names = [
        make_question("name", thing, things, 0).to_messages(folder / hand / thing.file) for thing, hand in drawings
    ]
    _write_records(out / "captions.jsonl", names)
    _write_records(out / "questions.jsonl", _make_conversations(drawings, things, folder))


def _make_conversations(
    drawings: Iterable[tuple[Thing, str]], things: Sequence[Thing], folder: Path
) -> Iterator[list[dict[str, Any]]]:
    for thing, hand in drawings:
        image = folder / hand / thing.file
        name, category, which = (make_question(kind, thing, things, HANDS.index(hand)) for kind in KINDS)
        yield name.to_messages(image)
        yield category.to_messages(image) + name.to_messages(None)
        yield which.to_messages(image)


def _write_records(path: Path, conversations: Iterable[list[dict[str, Any]]]) -> None:
    lines = (json.dumps({"messages": messages}) for messages in conversations)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
