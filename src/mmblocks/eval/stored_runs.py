"""What a run in a folder was asked: the documents of its predictions, read again without a model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mmblocks.conversation import Conversation
from mmblocks.errors import DataError
from mmblocks.eval.predictions import SETTINGS, Prediction
from mmblocks.eval.runs import NamedTask
from mmblocks.eval.task_settings import make_named_task
from mmblocks.eval.tasks import DocumentSequence, tasks
from mmblocks.json_files import read_object


@dataclass(frozen=True, slots=True)
class StoredRun:
    """The task of a run, made from its stored settings, with the documents that its files hold now."""

    named: NamedTask
    documents: DocumentSequence

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """folder: of one task. Raises `MMBlocksError` where the task or its files are gone."""
        stored = read_object(folder / SETTINGS, "evaluate again.")
        name = {"name": stored["task"]} if stored["task"] in tasks else {}
        named = make_named_task({**name, **stored["settings"]})
        return cls(named, named.task.read_documents())

    def ask_again(self, prediction: Prediction) -> Conversation:
        """The conversation that a prediction answers.

        Raises `DataError` where the files hold another document in its place now: by its key, its prompt, its fields, or the
        name of its image or video.
        """
        if prediction.number >= len(self.documents):
            raise DataError(
                f"{prediction.where}: the data have changed since the run; there are {len(self.documents)} documents now."
            )
        document = self.documents[prediction.number]
        conversation = self.named.task.ask(document)
        pairs = {
            "key": (prediction.key, document.key),
            "prompt": (prediction.prompt, conversation.messages[-1].text),
            "fields": (json.dumps(prediction.fields), json.dumps(document.fields)),
            "image or video": (prediction.cluster, document.cluster),
        }
        for name, (before, now) in pairs.items():
            if before != now:
                raise DataError(
                    f"{prediction.where}: the data have changed since the run: {name} {before!r:.200} then, {now!r:.200} now."
                )
        return conversation
