"""The answers of a run on disk, as JSON lines that are written while it goes: a run that was stopped asks nothing twice."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmblocks.errors import ConfigError, DataError
from mmblocks.eval.document import ScoredDocument
from mmblocks.storage import write_json

SETTINGS = "settings.json"
PATTERN = "predictions*.jsonl"


@dataclass(frozen=True, slots=True)
class Prediction:
    """What was asked and answered about one document, or why it could not be.

    number: of the document in its task. prompt: the user's text. seconds: the share of its batch. fault: empty for an answer.
    """

    number: int
    key: str = ""
    where: str = ""
    prompt: str = ""
    answer: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    answer_tokens: int = 0
    seconds: float = 0.0
    scores: Mapping[str, float | None] | None = None
    cluster: str = ""
    fields: Mapping[str, Any] | None = None
    fault: str = ""

    def to_scored(self) -> ScoredDocument:
        """What a task makes a summary of."""
        return ScoredDocument(self.key, self.fields or {}, self.answer, self.scores or {}, self.cluster)


class PredictionFile:
    """The predictions of one process, appended to, and those of all processes before it.

    Documents at fault are asked again by the next run: the file that was missing may be there then.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._path = folder, folder / (f"predictions-{rank}.jsonl" if rank else "predictions.jsonl")
        _drop_unfinished_line(self._path)

    def append(self, predictions: Iterable[Prediction]) -> None:
        """Write predictions behind the others."""
        with self._path.open("a", encoding="utf-8") as file:
            for prediction in predictions:
                file.write(json.dumps(asdict(prediction), ensure_ascii=False) + "\n")


def read_predictions(folder: Path) -> dict[int, Prediction]:
    """The latest prediction of every document, by its number."""
    found: dict[int, Prediction] = {}
    for path in sorted(folder.glob(PATTERN)):
        for prediction in _read_lines(path):
            if prediction.number not in found or not prediction.fault:
                found[prediction.number] = prediction
    return dict(sorted(found.items()))


def _read_lines(path: Path) -> Iterator[Prediction]:
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line:
            try:
                yield Prediction(**json.loads(line))
            except (TypeError, ValueError) as cause:
                raise DataError(
                    f"{path}, line {number}: it is no prediction of this version ({cause}); remove the line, and its document "
                    "is asked again."
                ) from cause


def _drop_unfinished_line(path: Path) -> None:
    """Remove what a process that was stopped in the middle of a line has left."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def open_run_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Store what decides the answers of a run. Raises `ConfigError` where the folder holds a run of other settings."""
    path, wanted = folder / SETTINGS, json.loads(json.dumps(settings))
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if changed := [key for key in {**stored, **wanted} if stored.get(key) != wanted.get(key)]:
            key = changed[0]
            raise ConfigError(
                f"{folder} holds answers with {key}={stored.get(key)!r:.200}, not {wanted.get(key)!r:.200}; name another folder "
                "in --out, or remove this one."
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, wanted)
