"""Measured lengths on disk, under a name that says what they depend on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmblocks import __version__
from mmblocks.components import ChatTemplate
from mmblocks.conversation import Conversation, Message
from mmblocks.data.fingerprints import Fingerprint
from mmblocks.data.mixing.mixture import Draw
from mmblocks.data.sample.encode import Targets
from mmblocks.data.sample.processor import Processor
from mmblocks.errors import DataError
from mmblocks.model.spec import ModelSpec
from mmblocks.storage import replace_file

_COUNTING_RULE = "frames of uneven videos by their times"
"""Written anew when the same data and model come to other lengths within one version."""
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_ASKED = {"role": "user", "content": [{"type": "image", "image": "i"}, {"type": "text", "text": "q"}]}
_ANSWERED = {"role": "assistant", "content": "a"}
PROBES = (
    Conversation.from_messages([_ASKED, _ANSWERED]),
    Conversation.from_messages([{"role": "system", "content": "c"}, _ASKED, _ANSWERED, _ASKED, _ANSWERED]),
)
"""Conversations whose spans a chat template is recognised by."""


LengthsRow = tuple[int, int, int, int, int]
"""Tokens, views, labels, pairs, tokens cut."""
_COLUMNS = 10


class RecordLengths(NamedTuple):
    """What was measured of a record, and the record that it was measured of."""

    row: LengthsRow
    fingerprint: Fingerprint


@dataclass(frozen=True, slots=True)
class LengthsCache:
    """One file of lengths. What is read from it is right as long as nothing in its name's digest has changed."""

    file: Path

    @classmethod
    def from_settings(
        cls,
        folder: str | Path,
        data: Sequence[Mapping[str, object]],
        model: ModelSpec | Mapping[str, object],
        processor: Processor,
        targets: Targets = "answers",
    ) -> LengthsCache:
        """The file for these sources, this model's spec and this processor, in `folder`.

        Named by a digest of all that decides a length: sources with size and time of change of the files they name, the
        model's spec, what a stage changes of it in `processor` (visual tokenizers, template, limit of tokens, how images
        are read), the text tokenizer, targets, and the version of mmblocks. With each length the fingerprint of its record
        is kept, by which `measure_draws` knows a record that was edited or shows another image.
        """
        probes = [one for probe in PROBES for one in processor.list_conversations(probe)]
        texts = [_write_probe(processor.template, one.messages) for one in probes]
        backend = getattr(processor.text_tokenizer, "backend_tokenizer", None)  # the whole of a fast tokenizer
        tokenizer = repr(processor.text_tokenizer) if backend is None else backend.to_str()
        processing = [
            texts,
            _ADDRESS.sub("", repr(processor.router)),
            hashlib.sha256(tokenizer.encode()).hexdigest(),
            processor.max_tokens,
            processor.overlong,
            processor.visuals,
            processor.seed,
            processor.images.to_dict(),
        ]
        spec = asdict(model) if isinstance(model, ModelSpec) else model
        depends = [list(data), _list_files(data), spec, processing, targets, __version__, _COUNTING_RULE]
        digest = hashlib.sha256(json.dumps(depends, sort_keys=True, default=repr).encode()).hexdigest()
        return cls(Path(folder) / f"lengths-{digest[:20]}.npy")

    def read(self) -> dict[Draw, RecordLengths]:
        """Lengths by conversation; none where nothing was kept, or what was kept cannot be read."""
        try:
            table = np.load(self.file, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return {}
        if table.ndim != 2 or table.shape[1] != _COLUMNS:
            return {}
        return {
            Draw(source, index): RecordLengths((tokens, views, labels, pairs, cut), Fingerprint(text, media, stamp))
            for source, index, tokens, views, labels, pairs, cut, text, media, stamp in table.tolist()
        }

    def write(self, lengths: Mapping[Draw, RecordLengths]) -> None:
        """Keep lengths, whole or not at all."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        table = np.array([(*draw, *known.row, *known.fingerprint) for draw, known in lengths.items()], dtype=np.int64)
        with replace_file(self.file) as file:
            np.save(file, table, allow_pickle=False)


def _write_probe(template: ChatTemplate, messages: Sequence[Message]) -> str | list[tuple[str, bool, bool]]:
    """How a template writes messages, or why it does not."""
    try:
        spans = template.to_spans(messages)
    except DataError as refusal:
        return str(refusal)
    return [(s.content if isinstance(s.content, str) else "visual", s.learn, s.literal) for s in spans]


def _list_files(data: object) -> list[tuple[str, int, int]]:
    """Files that a source's settings name, with size and time of change."""
    if isinstance(data, Mapping):
        return [file for value in data.values() for file in _list_files(value)]
    if isinstance(data, Sequence) and not isinstance(data, str):
        return [file for value in data for file in _list_files(value)]
    if not isinstance(data, str):
        return []
    try:
        path = Path(data)
        known = path.stat()
    except (OSError, ValueError):
        return []
    return [(str(path.resolve()), known.st_size, known.st_mtime_ns)] if path.is_file() else []
