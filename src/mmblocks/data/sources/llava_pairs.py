from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmblocks.conversation import Pair, Role
from mmblocks.data.llava_json import MARKER, Placement, illustrated, spoken_turns
from mmblocks.data.named_media import KINDS, Media, MediaRoots
from mmblocks.data.patterns import files_of
from mmblocks.data.records import Lines, called, open_records, refuse_twins
from mmblocks.data.selection import Concatenated
from mmblocks.data.sources import Source, sources
from mmblocks.errors import DataError


@sources.register("llava_pairs", source="https://github.com/LLaVA-VL/LLaVA-NeXT (train_dpo.py)")
def llava_pairs(
    path: str | tuple[str, ...],
    images: str | None = None,
    videos: str | None = None,
    placement: Placement = "lone_first",
    frames_fps: float = 2.0,
) -> Source:
    """Pairs of answers for training on preferences, in .json or .jsonl files.

    A record: {"id", "image" or "video", "prompt", "chosen", "rejected"}. The prompt is a question or a list of turns
    that ends in one; visuals that no marker stands for are shown before its first question. chosen and rejected are
    texts, or lists that hold one turn of the assistant. The settings are those of `llava_json`.
    """
    files = files_of(path)
    read = [PairFile(f, open_records(f), MediaRoots.of(f.parent, images, videos, frames_fps), placement) for f in files]
    return read[0] if len(read) == 1 else Concatenated(read, [str(file) for file in files])


@dataclass(frozen=True, slots=True)
class PairFile:
    """Pairs of one file, by record number from 0."""

    path: Path
    records: Sequence[Any] | Lines
    roots: MediaRoots
    placement: Placement

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Pair:
        number = range(len(self))[index]
        record = self.records[number]
        return self._pair(record, f"{self.path}:record {number}{called(record)}")

    def _pair(self, record: Any, origin: str) -> Pair:
        if not isinstance(record, Mapping):
            raise DataError(
                f"{origin}: a record is an object with 'prompt', 'chosen' and 'rejected', not {record!r:.80}."
            )
        refuse_twins(record, origin)
        media: Media = {kind: self.roots.visuals(kind, record.get(kind), origin) for kind in KINDS}
        asked = _asked(record.get("prompt"), "".join(f"<{kind}>" * len(media[kind]) for kind in KINDS), origin)
        chosen, rejected = (
            illustrated([*asked, _answer(record.get(key), key, origin)], media, origin=origin, placement=self.placement)
            for key in ("chosen", "rejected")
        )
        return Pair(chosen, rejected)


def _asked(prompt: Any, markers: str, origin: str) -> list[tuple[Role, str]]:
    turns = [{"from": "human", "value": prompt}] if isinstance(prompt, str) else prompt
    spoken = spoken_turns(turns, origin, "prompt")
    if spoken[-1][0] != "user":
        raise DataError(f"{origin}: its prompt ends with a turn of the {spoken[-1][0]}; end it with a question.")
    if markers and not any(MARKER.search(text) for _, text in spoken):
        first = [role for role, _ in spoken].index("user")
        spoken[first] = ("user", f"{markers}\n{spoken[first][1]}")
    return spoken


def _answer(given: Any, key: str, origin: str) -> tuple[Role, str]:
    turns = [{"from": "gpt", "value": given}] if isinstance(given, str) else given
    spoken = spoken_turns(turns, f"{origin}: {key!r}", key)
    if [role for role, _ in spoken] != ["assistant"]:
        raise DataError(f"{origin}: {key!r} holds {len(spoken)} turns; write one answer.")
    return spoken[0]
