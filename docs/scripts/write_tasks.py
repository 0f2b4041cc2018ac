"""Write docs/reference/tasks.md from the registry of tasks: files, fields, prompt, decoding, metric and source of each.

python docs/scripts/write_tasks.py
"""

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmblocks.components import has_capability
from mmblocks.eval.documents import DocumentLayout
from mmblocks.eval.tasks import ChoiceTask, tasks
from mmblocks.eval.tasks._base import FileTask
from mmblocks.registry import ComponentEntry

PAGE = Path(__file__).parents[1] / "reference/tasks.md"
HEAD = """\
# Tasks of evaluation

Every benchmark that mmblocks reads, with the files that it expects, what it asks and how it scores. All of them are read from
local files; nothing is downloaded. In code, `tasks.build("mmbench", data="MMBench_DEV_EN.tsv")`; packages of others add
tasks through the entry-point group `mmblocks.task`.

**These tasks were run on made-up documents only**, in the formats in which the benchmarks are published, never on the
benchmarks themselves. Prompts equal those of lmms-eval (tests/golden/eval/prompts.json), but for `okvqa`, `vizwiz`, `nlvr2`,
`mathvista`, `captions`, `longbench_write` and `longwrite_ruler`, of which there are no golden prompts. Scorers equal the
original ones on golden cases where "verified against" names these.

Settings of every task: `data` is a file (.json, .jsonl, .parquet, .arrow, .tsv, .csv), a pattern of parquet files, or a folder
of them or of `save_to_disk`; `images` and `videos` are folders that names are relative to; `split` chooses among the parts of
a folder; `annotations` is a second file whose records have the same ids. Names of fields in brackets are read too. Clips are
found in sub-folders and without a suffix. Bad documents (a missing image or clip, a field that holds nothing) are faults of
their own, never asked about; a file of another format, and two documents of one key, are errors.

Tasks with "Choices" are answered by log-likelihood, too: `answer_by=likelihood` compares the letters of the options behind the
prompt, generates nothing, and scores the likeliest letter by the same rule.

A summary is in percent where the published table is. An answer that cannot be read counts as 0 and as `no_answer`, also where
the original draws an option at random.

`python docs/scripts/write_tasks.py` writes this page.
"""
JUDGED = """\
Judged by a model of one's own choice; published figures are from `{judge}`. The instruction is our own unless a file with the
published one is named, and only then are figures comparable."""
COMMON = {field.name for field in dataclasses.fields(FileTask)}


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The page as Markdown: a table of all tasks, then a section for each."""
    own = {name: tasks[name] for name in tasks if tasks.find_info(name).module.startswith("mmblocks.")}
    presets = {name: entry for name, entry in own.items() if entry.preset_of}
    lines = [HEAD, "| task | asks about | metric | new tokens |", "|---|---|---|---:|"]
    lines += [row(name, entry, own) for name, entry in own.items()]
    for name, entry in own.items():
        if name not in presets:
            lines += ["", *section(name, entry, {n: p for n, p in presets.items() if p.preset_of == name})]
    return "\n".join(lines) + "\n"


def row(name: str, entry: ComponentEntry, own: Mapping[str, ComponentEntry]) -> str:
    task = entry.builder
    link = f"[`{name}`](#{entry.preset_of or name})"
    return f"| {link} | {visuals(task.layout)} | {task.metric} | {task.decoding.max_new_tokens} |"


def section(name: str, entry: ComponentEntry, presets: Mapping[str, ComponentEntry]) -> Iterator[str]:
    task = entry.builder
    yield f"## {name}\n"
    yield f"{inspect.getdoc(task) or ''}\n"
    facts = {
        "Files": task.files,
        "Fields": fields(task.layout),
        "Media": media(task.layout),
        "Prompt": f"the question and `{task.suffix!r}`" if task.suffix else "as published",
        "Decoding": f"{task.decoding.max_new_tokens} new tokens, "
        + (f"temperature {task.decoding.temperature}" if task.decoding.temperature else "greedy"),
        "Choices": "letters; `answer_by=likelihood`" if has_capability(task, ChoiceTask) else "",
        "Metric": task.metric,
        "Means by": ", ".join(f"`{group}`" for group in task.groups),
        "Judge": JUDGED.format(judge=task.judge).replace("\n", " ") if hasattr(task, "judge") else "",
        "Settings": settings(name),
        "Presets": ", ".join(f"`{preset}` ({given(one)})" for preset, one in presets.items()),
        "Verified against": entry.verified_against,
        "Source": f"<{entry.source}>",
    }
    yield from (f"- {title}: {text}" for title, text in facts.items() if text)


def given(entry: ComponentEntry) -> str:
    return ", ".join(f"`{key}={value!r}`" for key, value in entry.settings.items())


def settings(name: str) -> str:
    """The settings that a task has beside those of every task."""
    own = [setting for setting in tasks.list_settings(name) if setting.name not in COMMON]
    return "; ".join(f"`{one.name}` ({one.type_name}; {one.default!r})" for one in own)


def fields(layout: DocumentLayout) -> str:
    """Required fields, then optional ones, each with its other names."""
    required = ", ".join(named(name, others) for name, others in layout.required.items())
    optional = ", ".join(named(name, others) for name, others in layout.optional.items())
    key = " or ".join(" + ".join(f"`{name}`" for name in names) for names in layout.key)
    return f"{required}{f'; optional {optional}' if optional else ''}; key {key}"


def named(name: str, others: tuple[str, ...]) -> str:
    return f"`{name}`" + (f" ({', '.join(f'`{one}`' for one in others)})" if others else "")


def media(layout: DocumentLayout) -> str:
    kinds = {"images": layout.images, "videos": layout.videos}
    read = [f"{kind} {', '.join(f'`{name}`' for name in names)}" for kind, names in kinds.items() if names]
    return "; ".join(read)


def visuals(layout: DocumentLayout) -> str:
    """What a question of the task is about, for the table."""
    kinds = [kind for kind, names in (("images", layout.images), ("videos", layout.videos)) if names]
    return " or ".join(kinds) or "text"


if __name__ == "__main__":
    main()
