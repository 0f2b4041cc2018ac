"""A made-up benchmark in the format of POPE, a tiny model that learned most of it, and tasks of lmms-eval on its file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from PIL import Image

import mmblocks
from mmblocks.assets import find_tiny_model
from mmblocks.conversation import Conversation, Message, Text
from mmblocks.eval.document import Document
from mmblocks.eval.tasks import Task, tasks

COLOURS = ("red", "green", "blue", "yellow", "white", "black")
LABEL_NOISE = 4
"""Every fourth document has the other label: scores of a model that learned the rest are neither 0 nor 1."""

POPE = """\
include: {pope}
task: made_up_pope
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {data}
"""
CHOICE = """\
task: made_up_choice
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_visual: !function choices.show
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["yes", "no"]
doc_to_target: !function choices.find_label
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
CHOICES_MODULE = """\
def show(doc):
    return [doc["image"].convert("RGB")]


def find_label(doc):
    return ["yes", "no"].index(doc["answer"])
"""


def write_documents(path: Path, number: int) -> Path:
    """A table of the hub with so many questions whether an image is of a colour."""
    rows = []
    for i in range(number):
        shown, named = COLOURS[i % len(COLOURS)], COLOURS[(i + i // len(COLOURS) % 2) % len(COLOURS)]
        is_yes = (shown == named) != (i % LABEL_NOISE == LABEL_NOISE - 1)
        rows.append(
            {
                "question_id": str(i),
                "question": f"Is it {named}?",
                "answer": "yes" if is_yes else "no",
                "category": "random" if i % 2 else "popular",
                "image_source": f"image {i % len(COLOURS)}",
                "image": {"bytes": make_png(shown), "path": None},
            }
        )
    dataset = Dataset.from_list(rows)
    from datasets import Image as ImageFeature

    dataset.cast_column("image", ImageFeature()).to_parquet(path)
    return path


def make_png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 24), colour).save(file, "PNG")
    return file.getvalue()


def write_model(path: Path, task: Task, documents: Sequence[Document], steps: int = 150) -> Path:
    """The tiny model that ships, trained on answers of which every fifth is wrong."""
    model = mmblocks.load(find_tiny_model())
    processor = mmblocks.Processor.from_model(model)
    samples = []
    for i, document in enumerate(documents):
        right = str(document.fields["answer"])
        word = right if i % 5 else {"yes": "no", "no": "yes"}[right]
        question = task.ask(document)
        answered = Conversation((*question.messages, Message("assistant", (Text(word),))), question.origin)
        samples.append(processor.make_training_sample(answered))
    batch = mmblocks.collate(samples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return mmblocks.save(model.eval(), path)


def write_tasks(folder: Path, data: Path, lmms_eval: Path) -> Path:
    """A folder for `--include_path`. lmms_eval: the folder of the installed package."""
    folder.mkdir(exist_ok=True)
    (folder / "pope.yaml").write_text(POPE.format(pope=lmms_eval / "tasks/pope/pope.yaml", data=data))
    (folder / "choice.yaml").write_text(CHOICE.format(data=data))
    (folder / "choices.py").write_text(CHOICES_MODULE)
    return folder


def open_task(data: Path) -> tuple[Task, list[Document]]:
    """mmblocks' own task on the same file, by lmms-eval's rule, and its documents."""
    task = tasks.build("pope_lmms", data=str(data))
    documents = task.read_documents()
    return task, [documents[i] for i in range(len(documents))]
