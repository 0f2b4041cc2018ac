"""Write docs/reference/recipes.md: what each recipe does beside what was published, and what it needs.

python docs/scripts/write_recipes.py

The published numbers stand in tests/conf/recipe_facts.json, where tests hold every recipe to them.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmblocks import conf
from mmblocks.cli.memory_report import compute_stage_memory
from mmblocks.model.checks.composition import dry_build
from mmblocks.model.spec import PARTS
from mmblocks.train.estimates.memory import StepMemory
from mmblocks.train.estimates.meta_stage import LABELLED_SHARE

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/recipes.md"
FACTS: dict[str, Any] = json.loads((ROOT / "tests/conf/recipe_facts.json").read_text(encoding="utf-8"))
GIB = 2**30
RANKS = (8, 16, 64, 128, 256)
HEAD = """\
# Recipes and published settings

This page compares each recipe with the paper or script that it follows. Values that differ are **bold**; [Deviations](#deviations) has
the reasons. `tests/conf/test_recipe_facts.py` tests every value.

- `mmblocks recipes NAME` prints a recipe.
- `mmblocks check NAME` lists what is missing on your machine.
- `mmblocks plan NAME ranks=64 --memory` prints the memory of one of 64 processes.

Data files are expected below `data/` in the working directory. Paths are settings like all others
(`stages.0.data.0.path=elsewhere.json`).

`python docs/scripts/write_recipes.py` writes this page.
"""
MEMORY = """\
## Memory

The peak memory of one process during a step, in GiB, counted on the meta device. It includes:

- weights, gradients and Adam's moments in float32, sharded with FSDP2
- in bfloat16, the gathered weights of two blocks and of the parts that stay gathered
- gradients that are being reduced
- the activations that a forward pass over one full row (`pack_tokens` tokens, `pack_views` views) keeps for the backward pass, with
  gradient checkpointing

Tests compare the count with real steps. Work space of kernels and fragmentation of the allocator are not included; keep 10 % free.
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The page as Markdown."""
    return settings() + memory()


# Settings -----------------------------------------------------------------------------------------------------------


def settings() -> str:
    """All but what is measured."""
    return "\n".join([HEAD, *_overview(), *_common(), *_recipes(), *_deviations()]) + "\n"


def _overview() -> Iterator[str]:
    summaries = conf.list_recipes()
    yield "| recipe | what it is | starts from | stages |\n|---|---|---|---|"
    for name, facts in FACTS["recipes"].items():
        stages = ", ".join(stage["name"] for stage in facts["stages"])
        yield f"| [`{name}`](#{_anchor(name)}) | {summaries[name]} | {starts_from(name)} | {stages} |"
    tiny = [name for name in summaries if name.startswith("tiny/")]
    yield from (f"| `{name}` | {summaries[name]} | {starts_from(name)} | nothing published |" for name in tiny)
    yield ""


def starts_from(name: str) -> str:
    """Where the weights of a recipe come from, part by part."""
    recipe = conf.compose(name)
    start, seen = recipe["weights"], dry_build(recipe["model"])
    parts = [part for part in PARTS if seen.count_parameters(part)]
    if start == "pretrained":
        sources = {part: getattr(getattr(seen, part, None), "checkpoint", None) for part in parts}
        return "<br>".join(
            f"{_words(part)}: {_code(source) if source else 'random'}" for part, source in sources.items()
        )
    if start != "random":
        return f"{_code(start)}, all parts"
    if recipe["encoder_pretraining"] is not None:
        return "random; the encoder is pretrained first"
    return "random"


def _code(text: str) -> str:
    return f"`{text}`"


def _anchor(name: str) -> str:
    return "".join(c for c in name if c.isalnum() or c in "_-")


def _common() -> Iterator[str]:
    yield "## Settings of all recipes\n"
    yield from _table(FACTS["common"])


def _recipes() -> Iterator[str]:
    for name, facts in FACTS["recipes"].items():
        yield f"## {name}\n"
        yield f"Starts from: {starts_from(name).replace('<br>', '; ')}.\n"
        yield from _table(facts["model"])
        for stage in facts["stages"]:
            yield f"Stage `{stage['name']}`:\n"
            yield from _table({k: v for k, v in stage.items() if k != "name"})


def _table(facts: Mapping[str, Any]) -> Iterator[str]:
    yield "| setting | recipe | published | where |\n|---|---|---|---|"
    for name, fact in facts.items():
        ours = f"**{_text(fact['ours'])}**" if "ours" in fact else _text(fact["published"])
        yield f"| {_words(name)} | {ours} | {_text(fact['published'])} | {_cell(fact['source'])} |"
    yield ""


def _words(name: str) -> str:
    return name.replace("_", " ")


def _text(value: Any) -> str:
    """A value as people write it: learning rates by part, tokens by picture."""
    if isinstance(value, Mapping):
        return "<br>".join(f"{_picture(str(k))} {_text(v)}" for k, v in value.items())
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else _cell(str(value))


def _picture(words: str) -> str:
    return words.replace("image=", "").replace("video=", "video ").replace(" ", " + ") if "=" in words else words


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _deviations() -> Iterator[str]:
    yield "## Deviations\n\nIn every recipe:\n\n| what | published | here | why |\n|---|---|---|---|"
    for row in FACTS["throughout"]:
        yield f"| {row['what']} | {_cell(row['published'])} | {_cell(row['ours'])} | {_cell(row['why'])} |"
    yield "\nIn single recipes (-: nothing was published):\n"
    yield "| what | where | published | here | why |\n|---|---|---|---|---|"
    yield from (_deviation(*key, places) for key, places in _grouped().items())
    yield ""


def _grouped() -> dict[tuple[str, str, str, str], list[str]]:
    """Deviations that are alike, with the places where they are."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for name, facts in FACTS["recipes"].items():
        parts = [("", facts["model"]), *((f" {stage['name']}", stage) for stage in facts["stages"])]
        for place, fact_name, fact in ((f"{name}{at}", k, f) for at, part in parts for k, f in part.items()):
            if isinstance(fact, Mapping) and "ours" in fact:
                key = (_words(fact_name), _text(fact["published"]), _text(fact["ours"]), fact["why"])
                found.setdefault(key, []).append(place)
    return found


def _deviation(what: str, published: str, ours: str, why: str, places: list[str]) -> str:
    return f"| {what} | {'<br>'.join(places)} | {published} | {ours} | {_cell(why)} |"


# Memory -------------------------------------------------------------------------------------------------------------


def memory() -> str:
    """What the large recipes need, by the number of processes."""
    return "\n".join([MEMORY, *(line for name in FACTS["hardware"] for line in _memory_of(name))])


def _memory_of(name: str) -> Iterator[str]:
    found = compute_stage_memory(conf.compose(name), RANKS)
    published = FACTS["hardware"][name]
    yield f"### {name} by number of processes\n"
    yield f"Published: {published['published']} GPUs ({published['source']}).\n"
    yield "| stage | row | " + " | ".join(f"{ranks}" for ranks in RANKS) + " |"
    yield "|---|---|" + "---|" * len(RANKS)
    for stage, rows in found.items():
        yield f"| {stage} | {_row_of(rows[0])} | " + " | ".join(f"{row.total_bytes / GIB:.0f}" for row in rows) + " |"
    last = list(found.values())[-1]
    yield f"\nThe last stage in parts, with {LABELLED_SHARE:.0%} of the tokens labelled:\n"
    yield "| processes | weights | gradients | Adam | gathered | reduced | activations | total | whole gradients |"
    yield "|---|---|---|---|---|---|---|---|---|"
    yield from map(_parts, last)
    yield (
        '\n"Whole gradients" is additional memory if a process has several rows per step and accumulates their gradients '
        "before it reduces them (`accumulate: local`). With `accumulate: sharded`, as in the recipe of 72B, it is not needed.\n"
    )


def _row_of(memory: StepMemory) -> str:
    return f"{memory.tokens} tokens, {memory.views} views"


def _parts(memory: StepMemory) -> str:
    parts = (
        memory.weights,
        memory.gradients,
        memory.optimizer,
        memory.gathered,
        memory.passing,
        memory.activations,
        memory.total_bytes,
        memory.between_rows,
    )
    return f"| {memory.ranks} | " + " | ".join(f"{part / GIB:.1f}" for part in parts) + " |"


if __name__ == "__main__":
    main()
