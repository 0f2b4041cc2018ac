"""What is measured of a model: how well it predicts a text, what it answers, and how it answers about drawings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import mmblocks
from mmblocks.batch import Packing
from mmblocks.conversation import Conversation
from tests.weights.emoji import ASKED_HAND, KINDS, Question, Thing, make_question, read_things
from tests.weights.packages import TIMM_NAME

TEXT = Path(__file__).parent / "text.txt"
RECIPE = Path(__file__).parent / "assistant.yaml"
QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "Name three fruits.",
    "Write one sentence about the sea.",
    "What is 7 plus 5?",
    "Translate 'good morning' into French.",
    "What does a bicycle have two of?",
    "Who wrote Romeo and Juliet?",
)
MAX_NEW_TOKENS = 24
Row = dict[str, Any]
SHOWN = ("the drawing", "another drawing", "no drawing")
"""What a question is asked about; the latter two tell how far text alone goes."""
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": torch.bfloat16},
    "8 bits": {"bits": 8},
    "4 bits": {"bits": 4},
}
"""Arguments of `mmblocks.load`."""
JOINED = "joined"


def read_text_ids(tokenizer: Any) -> torch.Tensor:
    """(tokens,): the fixed text."""
    return torch.tensor(tokenizer(TEXT.read_text(encoding="utf-8"))["input_ids"])


@torch.no_grad()
def compute_perplexity(model: mmblocks.OneVision, ids: torch.Tensor) -> float:
    """exp of the mean loss of a text's tokens after the first, in float32."""
    positions = torch.arange(len(ids))
    hidden = model.backbone.compute_hidden_states(
        model.backbone.embed_tokens(ids), positions, Packing.from_lengths([len(ids)])
    )
    logits = model.backbone.compute_logits(hidden[:-1]).float()
    return math.exp(torch.nn.functional.cross_entropy(logits, ids[1:]).item())


def answer_texts(model: mmblocks.OneVision, questions: Sequence[str] = QUESTIONS) -> list[str]:
    """Greedy answers to questions without images."""
    asked = [Conversation.from_messages([{"role": "user", "content": question}]) for question in questions]
    return mmblocks.answer(model, asked, mmblocks.Decoding(max_new_tokens=MAX_NEW_TOKENS))


def list_questions(folder: Path, things_per_split: int) -> dict[str, list[Question]]:
    """Questions of every kind about evenly spaced things, by split: learned (drawn by other hands) and held out."""
    things = read_things(folder)
    questions = {}
    for split, held_out in (("learned", False), ("held out", True)):
        members = [thing for thing in things if thing.is_held_out == held_out]
        chosen = members[:: max(len(members) // things_per_split, 1)][:things_per_split]
        questions[split] = [make_question(kind, thing, things, seed=2) for kind in KINDS for thing in chosen]
    return questions


def answer_questions(
    model: mmblocks.OneVision, folder: Path, questions: Sequence[Question], shown: str, batch_size: int = 24
) -> list[str]:
    """Greedy answers about the asked hand's drawings. shown: one of `SHOWN`; another drawing is that of the next thing but 9."""
    things = list(dict.fromkeys(question.thing for question in questions))
    others = dict(zip(things, [*things[9:], *things[:9]], strict=True))

    def find_image(thing: Thing) -> Path | None:
        seen = others[thing] if shown == "another drawing" else thing
        return None if shown == "no drawing" else folder / ASKED_HAND / seen.file

    asked = [Conversation.from_messages(q.to_messages(find_image(q.thing))[:1]) for q in questions]
    batches = [asked[first : first + batch_size] for first in range(0, len(asked), batch_size)]
    return [text for batch in batches for text in mmblocks.answer(model, batch, mmblocks.Decoding(max_new_tokens=16))]


def count_exact(questions: Sequence[Question], answers: Sequence[str], things: Sequence[Thing]) -> Iterator[Row]:
    """A row for each kind of question: exact answers, white space and capitals aside.

    One more for names of things of the right category, whichever thing is named.
    """
    given = [(question, answer.strip().lower()) for question, answer in zip(questions, answers, strict=True)]
    for kind in KINDS:
        pairs = [(question.answer, answer) for question, answer in given if question.kind == kind]
        yield {"measure": kind, "value": sum(a == b for a, b in pairs), "of": len(pairs)}
    categories = {thing.name: thing.category for thing in things}
    named = [(q.thing.category, categories.get(answer)) for q, answer in given if q.kind == "name"]
    yield {"measure": "category of the name", "value": sum(a == b for a, b in named), "of": len(named)}


def make_spec(language_model: Path, encoder_file: Path) -> dict[str, Any]:
    """The trained parts, joined by a projector that is not trained: the composition of assistant.yaml."""
    encoder = {"name": "timm_features", "model_name": TIMM_NAME, "image_px": 160, "checkpoint": str(encoder_file)}
    return {
        "encoder": encoder,
        "projector": "mlp",
        "tokenizer": {"image": "square"},
        "backbone": {"name": "causal_lm", "checkpoint": str(language_model)},
        "template": "tokenizer",
    }


def save_parts(folder: Path) -> Path:
    """The joined parts as a model of mmblocks, from what `prepare` wrote before."""
    spec = make_spec(folder / "smollm2", folder / "efficientnet_lite0.safetensors")
    return mmblocks.save(mmblocks.build(spec, weights="pretrained", seed=0), folder / JOINED)


@torch.no_grad()
def encode_drawings(model: mmblocks.OneVision, folder: Path, hand: str, things: Sequence[Thing]) -> torch.Tensor:
    """(things, cells * dim): the encoder's features, as the model sees the drawings."""
    processor = mmblocks.Processor.from_model(model)
    rows = []
    for thing in things:
        question = make_question("name", thing, things, 0).to_messages(folder / hand / thing.file)[:1]
        conversation = Conversation.from_messages(question)
        (routed,) = processor.plan(conversation)
        pixels = processor.render_visual(conversation.visuals[0], routed.plan)
        rows.append(model.encode_pixels(pixels).flatten())
    return torch.stack(rows)
