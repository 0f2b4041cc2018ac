"""Try every encoder with every projector, visual tokenizer and pooling, and write docs/reference/matrix.md and its picture.

python docs/scripts/write_matrix.py            some minutes on one core
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from mmblocks.components import backbones, encoders, poolings, projectors, templates, tokenizers
from mmblocks.conversation import Conversation
from mmblocks.data.sample.collate import collate
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import ConfigError
from mmblocks.model.onevision import OneVision
from mmblocks.model.spec import ModelSpec
from mmblocks.registry import Registry
from mmblocks.shapes import SCENARIOS, Size
from mmblocks.tokenizers.router import Router

DOCS = Path(__file__).parents[1]
DIM = 16  # that of most tiny encoders, so that identity has company
BACKBONE = {
    "name": "causal_lm",
    "family": "qwen2",
    "text_tokenizer": "mmblocks:tinyworld_text",
    "vocab_size": 640,
    "dim": DIM,
    "depth": 1,
    "heads": 4,
    "kv_heads": 2,
    "mlp_dim": 48,
    "max_tokens": 8192,
}


@dataclass(frozen=True, slots=True)
class Combination:
    """Names of components; `pooling` is "-" beside a tokenizer that does not pool."""

    encoder: str
    projector: str
    tokenizer: str
    pooling: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """A combination that learned, or why it cannot be."""

    combination: Combination
    reason: str = ""


def combinations() -> list[Combination]:
    """Every combination of components, presets left out."""
    return [
        Combination(encoder, projector, tokenizer, pooling)
        for encoder, projector, tokenizer in itertools.product(*map(own, (encoders, projectors, tokenizers)))
        for pooling in (own(poolings) if "pooling" in tokenizers.find_wired_arguments(tokenizer) else ["-"])
    ]


def own(registry: Registry[Any]) -> list[str]:
    """The components of mmblocks itself, without presets."""
    found = [registry.find_info(name) for name in registry]
    return [f.name for f in found if not f.preset_of and f.module.startswith("mmblocks.")]


PLAIN_CLIP = {"name": "frames", "max_frames": 4, "newline": "none"}


def scenarios_of(tokenizer: str) -> frozenset[str]:
    """The scenarios that a tokenizer serves."""
    beside = {"view_px": Size(48, 48), "grid": Size(4, 4), "spatial": True, "squash": True}
    return tokenizers.build(tiny(tokenizers, tokenizer), **beside, pooling=poolings.build("none")).scenarios


def tiny(registry: Registry[Any], name: str) -> dict[str, Any]:
    return {"name": name, **registry[name].tiny}


def tried(combination: Combination) -> Outcome:
    """Wire a combination in tiny form, show it a picture, two pictures or a clip, and learn from it once.

    Raises an AssertionError when it runs and no gradient arrives: only a `ConfigError` is a refusal.
    """
    try:
        model, scenario = wired(combination)
    except ConfigError as refusal:
        return Outcome(combination, str(refusal))
    batch = collate([Processor.from_model(model).make_training_sample(shown(scenario))])
    model.zero_grad(set_to_none=True)
    loss = model(batch).loss
    loss.backward()
    silent = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    unmoved = [part for part in ("encoder", "projector") if not _moved(getattr(model, part))]
    assert loss.isfinite(), f"{combination}: the loss is {loss.item()}"
    assert not silent, f"{combination}: no gradient reaches {silent}"
    assert not unmoved, f"{combination}: no gradient moves {unmoved}"
    return Outcome(combination)


def _moved(part: nn.Module) -> bool:
    """Whether a gradient moves a part; one without parameters has nothing to move."""
    gradients = [p.grad for p in part.parameters() if p.grad is not None]
    return not gradients or any(bool(g.any()) for g in gradients)


def wired(combination: Combination) -> tuple[OneVision, str]:
    """The model with this tokenizer in the first scenario that it serves, and that scenario."""
    encoder = _encoder(combination.encoder)
    projector = _projector(combination.encoder, combination.projector)
    tokenizer = tokenizers.build(
        tiny(tokenizers, combination.tokenizer),
        view_px=encoder.view_px,
        grid=projector.out_grid(encoder.grid),
        spatial=encoder.spatial and projector.spatial,
        squash=encoder.squash,
        pooling=poolings.build("none" if combination.pooling == "-" else tiny(poolings, combination.pooling)),
    )
    if faults := tokenizer.find_faults():
        raise ConfigError.from_faults(faults)
    scenario = next(s for s in SCENARIOS if s in tokenizer.scenarios)
    router = Router(tokenizer, tokenizer, tokenizer)
    return OneVision(encoder, projector, router, _backbone(), templates.build("chatml"), ModelSpec()), scenario


@cache
def _encoder(name: str) -> Any:
    return encoders.build(tiny(encoders, name))


@cache
def _projector(encoder: str, name: str) -> Any:
    seen = _encoder(encoder)
    return projectors.build(tiny(projectors, name), in_dim=seen.dim, out_dim=DIM, grid=seen.grid)


@cache
def _backbone() -> Any:
    return backbones.build(BACKBONE)


@cache
def shown(scenario: str) -> Conversation:
    """A picture, two pictures or a clip, a question and its answer."""
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 255, (*s, 3), np.uint8)) for s in ((61, 40), (33, 50))]
    clip = generator.integers(0, 255, (3, 40, 56, 3), np.uint8)
    media = {
        "image": [{"type": "image", "image": pictures[0]}],
        "multi_image": [{"type": "image", "image": picture} for picture in pictures],
        "video": [{"type": "video", "video": clip}],
    }[scenario]
    asked = {"role": "user", "content": [*media, {"type": "text", "text": "What is moving?"}]}
    return Conversation.from_messages([asked, {"role": "assistant", "content": "red circle"}])


def outcomes(chosen: Sequence[Combination]) -> Iterator[Outcome]:
    """Every outcome, with a bar of progress."""
    torch.manual_seed(0)
    for combination in tqdm(chosen, unit="combination", file=sys.stderr):
        yield tried(combination)


# The page -----------------------------------------------------------------------------------------------------------

HEAD = """\
# Combinations of components

This page shows which components work together. Every encoder was combined with every projector, visual tokenizer and pooling. Each
combination was built with small sizes and trained for one step on an image, two images or a video. Backbones and presets are not in
this table; the unit tests try them in pairs.

Of {tried} combinations, {works} work. {refused} are refused with a reason before anything is computed.

![Works, or refused](../images/matrix.svg)

`python docs/scripts/write_matrix.py` writes this page; new components are included without further work.
"""


def page(found: Sequence[Outcome]) -> str:
    """The page as Markdown."""
    works = sum(not outcome.reason for outcome in found)
    lines = [HEAD.format(tried=len(found), works=works, refused=len(found) - works)]
    lines += ["## Reasons for refusal\n", "| combinations | example | reason |", "|---:|---|---|"]
    reasons = Counter(outcome.reason for outcome in found if outcome.reason)
    for reason, count in reasons.most_common():
        c = next(o.combination for o in found if o.reason == reason)
        example = " + ".join(n for n in (c.encoder, c.projector, c.tokenizer, c.pooling) if n != "-")
        lines.append(f"| {count} | {example} | {reason.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


CELL, LEFT, TOP = 22, 260, 150
WORKS, REFUSED = "#2a9d8f", "#c9533c"


def picture(found: Sequence[Outcome]) -> str:
    """Two grids as SVG: projectors against encoders, and tokenizers with their poolings against projectors."""
    shares: Mapping[tuple[str, str, str], list[bool]] = _by_pair(found)
    grids = [("projector", "encoder"), ("tokenizer", "projector")]
    y, parts = 30, []
    width = 0
    for rows_kind, columns_kind in grids:
        cells = {(r, c): worked for (kind, r, c), worked in shares.items() if kind == rows_kind}
        rows, columns = ([*dict.fromkeys(name)] for name in zip(*cells, strict=True))
        parts += _grid(y, rows, columns, cells, f"{rows_kind} x {columns_kind}")
        y += TOP + CELL * len(rows) + 40
        width = max(width, LEFT + CELL * len(columns) + 40)
    legend = [(1.0, "works"), (0.4, "works with some of the other components"), (0.0, "refused, with a reason")]
    for i, (share, said) in enumerate(legend):
        parts.append(f'<rect x="{10 + 230 * i}" y="6" width="14" height="14" rx="3" {_fill(share)}/>')
        parts.append(f'<text x="{30 + 230 * i}" y="18">{said}</text>')
    style = "<style>text{font:12px sans-serif;fill:#888}</style>"
    size = f'viewBox="0 0 {max(width, 700)} {y}" width="{max(width, 700)}" height="{y}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{style}{"".join(parts)}</svg>\n'


def _by_pair(found: Sequence[Outcome]) -> dict[tuple[str, str, str], list[bool]]:
    pairs: dict[tuple[str, str, str], list[bool]] = {}
    for outcome in found:
        c, worked = outcome.combination, not outcome.reason
        pairs.setdefault(("projector", c.projector, c.encoder), []).append(worked)
        shown_by = c.tokenizer if c.pooling == "-" else f"{c.tokenizer} + {c.pooling}"
        pairs.setdefault(("tokenizer", shown_by, c.projector), []).append(worked)
    return pairs


def _grid(
    y: int, rows: list[str], columns: list[str], cells: Mapping[tuple[str, str], list[bool]], title: str
) -> list[str]:
    parts = [f'<text x="10" y="{y + TOP - 8}">{title}</text>']
    for j, column in enumerate(columns):
        x = LEFT + CELL * j + 15
        parts.append(f'<text transform="translate({x},{y + TOP - 8}) rotate(-60)">{column}</text>')
    for i, row in enumerate(rows):
        top = y + TOP + CELL * i
        parts.append(f'<text x="{LEFT - 8}" y="{top + 15}" text-anchor="end">{row}</text>')
        for j, column in enumerate(columns):
            worked = cells[row, column]
            place = f'x="{LEFT + CELL * j}" y="{top}" width="{CELL - 3}" height="{CELL - 3}" rx="3"'
            box = f"{place} {_fill(sum(worked) / len(worked))}"
            parts.append(f"<rect {box}><title>{row} x {column}: {sum(worked)} of {len(worked)}</title></rect>")
    return parts


def _fill(share: float) -> str:
    """The paler, the more of the other parts refuse."""
    return f'fill="{WORKS}" fill-opacity="{0.2 + 0.8 * share:.2f}"' if share else f'fill="{REFUSED}"'


def main() -> None:
    """Try everything and write the page."""
    found = list(outcomes(combinations()))
    (DOCS / "reference/matrix.md").write_text(page(found), encoding="utf-8")
    (DOCS / "images/matrix.svg").write_text(picture(found), encoding="utf-8")


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        torch.set_num_threads(1)
        main()
