"""Rows of tables, tars and JSON as conversations: which column holds what, and how a conversation may be written.

A conversation column holds turns as LLaVA ({"from", "value"}), as chat-completions ({"role", "content"}, content a text
or a list of parts) or as pairs ({"user", "assistant"}) write them, or any of these as JSON text. Without one there are a
column of questions and one of answers. Texts hold a marker per visual, <image> or <video>; where questions and answers
are given and no marker is written, the visuals stand in front of the first question.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmblocks.conversation import Conversation, Message, Role, Visual
from mmblocks.data.llava_json import MARKER, Placement, illustrated, spoken_turns
from mmblocks.data.named_media import KINDS, Media, MediaRoots
from mmblocks.data.records import parsed, refuse_twins
from mmblocks.errors import DataError
from mmblocks.settings import did_you_mean
from mmblocks.shapes import VisualKind

USUAL = {
    "conversation": ("conversations", "messages", "conversation", "texts"),
    "question": ("question",),
    "answer": ("answer", "caption", "txt"),
    "image": ("image", "images"),
    "video": ("video", "videos"),
}
"""What columns are called where a user names none; the first that a row has is read."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a conversation, None for their usual names. `ask` is what is asked where no question stands."""

    conversation: str | None = None
    question: str | None = None
    answer: str | None = None
    image: str | None = None
    video: str | None = None
    ask: str = ""

    def named(self, kind: str) -> tuple[str, ...]:
        """The column that holds `kind`, or those that may."""
        own = getattr(self, kind)
        return USUAL[kind] if own is None else (own,)

    def of(self, row: Mapping[str, Any], kind: str) -> tuple[str, Any]:
        """(name, value) of a row's column; (the usual name, None) where it holds nothing."""
        names = self.named(kind)
        return next(((n, row[n]) for n in names if row.get(n) is not None), (names[0], None))

    def missing(self, known: Sequence[str]) -> str | None:
        """What is wrong with these names for a table that has the columns `known`; None if nothing is."""
        for kind in USUAL:
            own = getattr(self, kind)
            if own is not None and own not in known:
                return f"{kind}_column={own!r}: there is no such column.{did_you_mean(own, known)}"
        if not any(name in known for kind in ("conversation", "answer") for name in self.named(kind)):
            return (
                f"no column holds conversations; there are {', '.join(known)}. Name one as conversation_column, "
                "or question_column and answer_column."
            )
        return None


@dataclass(frozen=True, slots=True)
class RowReader:
    """How rows become conversations."""

    columns: Columns
    roots: MediaRoots
    placement: Placement = "lone_first"

    def read(self, row: Any, origin: str) -> Conversation:
        """One row as a conversation, its media not opened. Raises `DataError` that begins with `origin`."""
        if not isinstance(row, Mapping):
            raise DataError(f"{origin}: a record is an object with its columns, not {row!r:.80}.")
        refuse_twins(row, origin)
        media: Media = {kind: self._media(row, kind, origin) for kind in KINDS}
        column, turns = self.columns.of(row, "conversation")
        if turns is None:
            return self._asked_and_answered(row, media, origin)
        turns = _plain(turns, f"{origin}: {column!r}")
        if _has_parts(turns):
            return _of_parts(turns, media, self.roots, origin)
        if _are_pairs(turns):
            return self._told(_from_pairs(turns, origin), media, origin)
        return illustrated(spoken_turns(turns, origin, column), media, origin=origin, placement=self.placement)

    def _media(self, row: Mapping[str, Any], kind: VisualKind, origin: str) -> list[Visual]:
        column, named = self.columns.of(row, kind)
        return self.roots.visuals(kind, named, origin, column)

    def _asked_and_answered(self, row: Mapping[str, Any], media: Media, origin: str) -> Conversation:
        column, answer = self.columns.of(row, "answer")
        if answer is None:
            raise DataError(
                f"{origin}: there is no text to learn: neither {' nor '.join(self.columns.named('conversation'))} "
                f"nor {column} holds any. Its columns: {', '.join(row)}."
            )
        question = self.columns.of(row, "question")[1]
        turns = [{"from": "human", "value": self.columns.ask if question is None else question}]
        return self._told([*turns, {"from": "gpt", "value": answer}], media, origin)

    def _told(self, turns: list[dict[str, Any]], media: Media, origin: str) -> Conversation:
        """Turns of a form that knows no markers: visuals that none stands for are shown with the first question."""
        spoken = spoken_turns(turns, origin)
        if not any(MARKER.search(text) for _, text in spoken):
            spoken = _marked(spoken, media)
        return illustrated(spoken, media, origin=origin, placement=self.placement)


def _marked(spoken: list[tuple[Role, str]], media: Media) -> list[tuple[Role, str]]:
    markers = "".join(f"<{kind}>" * len(media[kind]) for kind in KINDS)
    first = next((i for i, (role, _) in enumerate(spoken) if role == "user"), None)
    if first is None or not markers:
        return spoken
    text = spoken[first][1]
    shown = f"{markers}\n{text}" if text else markers
    return [*spoken[:first], ("user", shown), *spoken[first + 1 :]]


def _plain(turns: Any, where: str) -> Any:
    """Turns as a list: JSON text is parsed, and columns of columns (as some tables store them) are turned round."""
    if isinstance(turns, str):
        turns = parsed(turns, where)
    if isinstance(turns, Mapping) and turns and all(isinstance(v, list) for v in turns.values()):
        return [dict(zip(turns, values, strict=True)) for values in zip(*turns.values(), strict=True)]
    return turns


# Questions and answers in pairs -------------------------------------------------------------------------------------


def _are_pairs(turns: Any) -> bool:
    return isinstance(turns, list) and any(isinstance(turn, Mapping) and "assistant" in turn for turn in turns)


def _from_pairs(turns: list[Any], origin: str) -> list[dict[str, Any]]:
    for i, turn in enumerate(turns):
        if not isinstance(turn, Mapping) or not {"user", "assistant"} <= turn.keys():
            raise DataError(f"{origin}, turn {i}: {turn!r:.80}; write {{'user': ..., 'assistant': ...}}.")
    speakers = (("human", "user"), ("gpt", "assistant"))
    return [{"from": speaker, "value": turn[key]} for turn in turns for speaker, key in speakers]


# Messages in parts --------------------------------------------------------------------------------------------------


def _has_parts(turns: Any) -> bool:
    return isinstance(turns, list) and any(isinstance(t, Mapping) and isinstance(t.get("content"), list) for t in turns)


def _of_parts(turns: list[Any], media: Media, roots: MediaRoots, origin: str) -> Conversation:
    """Messages whose parts name their media, or take those of the row's columns in their order."""
    waiting: dict[VisualKind, Iterator[Visual]] = {kind: iter(found) for kind, found in media.items()}
    messages = [_filled(turn, waiting, f"{origin}: message {i}") for i, turn in enumerate(turns)]
    for kind in KINDS:
        if (left := len(list(waiting[kind]))) > 0:
            raise DataError(f"{origin}: {len(media[kind])} {kind}s, but {left} of them stand in no message.")
    talk = Conversation.of(messages, origin)
    return replace(talk, messages=tuple(_located(message, roots, origin) for message in talk.messages))


def _filled(turn: Any, waiting: Mapping[VisualKind, Iterator[Visual]], where: str) -> Mapping[str, Any]:
    if not isinstance(turn, Mapping):
        raise DataError(f"{where}: a message is {{'role': ..., 'content': ...}}, not {turn!r:.80}.")
    refuse_twins(turn, where)
    content = turn.get("content")
    if not isinstance(content, list):
        return turn
    return {**turn, "content": [_given(part, waiting, f"{where}, part {i}") for i, part in enumerate(content)]}


def _given(part: Any, waiting: Mapping[VisualKind, Iterator[Visual]], where: str) -> Any:
    """A part without the nulls of a table's other columns, and with its picture or clip."""
    if not isinstance(part, Mapping):
        return part
    said = {key: value for key, value in part.items() if value is not None}
    kind = said.get("type")
    if kind not in KINDS or kind in said:
        return said
    visual = next(waiting[kind], None)
    if visual is None:
        raise DataError(f"{where}: no {kind} is left for it; give the part a {kind!r} entry, or the record one more.")
    return {**said, kind: visual}


def _located(message: Message, roots: MediaRoots, origin: str) -> Message:
    if message.role == "assistant" and not message.text.strip():
        raise DataError(f"{origin}: an answer is empty, so only silence would be learned; write it or remove it.")
    parts = tuple(_placed(p, roots, origin) if isinstance(p, Visual) else p for p in message.parts)
    return replace(message, parts=parts)


def _placed(visual: Visual, roots: MediaRoots, origin: str) -> Visual:
    """A visual of a part: one of the row's own, or what the part names."""
    if isinstance(visual.source, Visual):
        return replace(visual.source, note=visual.note)
    found = roots.visuals(visual.kind, visual.source, origin)
    if len(found) != 1:
        raise DataError(f"{origin}: a part of type {visual.kind!r} names {len(found)}; write a part for each.")
    return replace(found[0], note=visual.note, fps=visual.fps if visual.fps != 1.0 else found[0].fps)
