"""Records of every source as conversations: which keys hold what, and how a conversation may be written.

A conversation column holds turns as LLaVA ({"from", "value"}), as chat-completions ({"role", "content"}, content a text
or a list of parts) or as pairs ({"user", "assistant"}) write them, or any of these as JSON text. Without one there are a
question and an answer (Alpaca's, ms-swift's and TRL's names too). Texts hold a marker per visual, <image> or <video>;
where no marker is written, the visuals stand in front of the first question. A key that nothing reads is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmblocks.conversation import Conversation, Visual
from mmblocks.data.records.columns import Columns
from mmblocks.data.records.content_parts import convert_parts
from mmblocks.data.records.json_records import parse_json, refuse_duplicates
from mmblocks.data.records.named_media import KINDS, Media, MediaRoots
from mmblocks.data.records.turns import Placement, Turn, read_turn, read_turns, replace_markers
from mmblocks.errors import DataError
from mmblocks.keys import HISTORY, INPUT, describe_unread_keys, find_unread_keys, is_empty, refuse_unread_keys
from mmblocks.shapes import VisualKind


@dataclass(frozen=True, slots=True)
class RowReader:
    """How rows become conversations."""

    columns: Columns
    roots: MediaRoots
    placement: Placement = "lone_first"

    def read(self, row: Any, origin: str) -> Conversation:
        """One row as a conversation, its media not opened. Raises `DataError` that begins with `origin`."""
        row = self.clean_row(row, origin)
        column, turns = self.columns.find_value(row, "conversation", origin)
        if is_empty(turns) and (turns is None or not is_empty(self.columns.find_value(row, "answer", origin)[1])):
            return self._read_question_answer(row, origin)
        self.columns.refuse_unread_keys(row, (*self.columns.list_names("conversation"), *self.common_columns), origin)
        return self.make_conversation(self.to_turns(turns, origin, column), row, origin)

    def clean_row(self, row: Any, origin: str) -> Mapping[str, Any]:
        """A row as an object without the keys that are ignored."""
        if not isinstance(row, Mapping):
            raise DataError(f"{origin}: a record is an object with its columns, not {row!r:.80}.")
        row = self.columns.remove_unread(row)
        refuse_duplicates(row, origin)
        return row

    @property
    def common_columns(self) -> tuple[str, ...]:
        """What is read beside every form of conversation."""
        return tuple(name for kind in (*KINDS, "system") for name in self.columns.list_names(kind))

    def to_turns(self, turns: Any, origin: str, column: str) -> list[Turn]:
        """Turns in any of the forms of a conversation column."""
        turns = self.columns.remove_ignored(_listed(turns, f"{origin}: {column!r}"))
        return read_turns(_split_pairs(turns, origin) if _are_pairs(turns) else turns, origin, column)

    def make_conversation(self, turns: Sequence[Turn], row: Mapping[str, Any], origin: str) -> Conversation:
        """Turns with the system text and the media of their row."""
        media: Media = {kind: self._media(row, kind, origin) for kind in KINDS}
        turns = _with_system(turns, *self.columns.find_value(row, "system", origin), origin)
        if any(isinstance(turn.content, list) for turn in turns):
            return convert_parts(turns, media, self.roots, origin)
        return replace_markers(turns, media, origin=origin, placement=self.placement)

    def _media(self, row: Mapping[str, Any], kind: VisualKind, origin: str) -> Sequence[Visual]:
        column, named = self.columns.find_value(row, kind, origin)
        return [] if is_empty(named) else self.roots.make_visuals(kind, named, origin, column)

    # A question and an answer ---------------------------------------------------------------------------------------

    def _read_question_answer(self, row: Mapping[str, Any], origin: str) -> Conversation:
        column, answer = self.columns.find_value(row, "answer", origin)
        if answer is None:
            raise DataError(f"{origin}: {self._why_nothing(row)}")
        asked, used = self.read_question(row, origin)
        self.columns.refuse_unread_keys(row, (*self.columns.list_names("answer"), *used, *self.common_columns), origin)
        talk = self.make_conversation([*asked, self.read_answer(answer, column, origin, len(asked))], row, origin)
        if not isinstance(self.columns.find_value(row, "question", origin)[1], list):
            return talk
        # A prompt that is a list of turns is TRL's, which learns the completion alone.
        *before, answered = talk.messages
        given = [replace(message, learn=message.role != "assistant") for message in before]
        return replace(talk, messages=(*given, answered))

    def _why_nothing(self, row: Mapping[str, Any]) -> str:
        first, *others = self.columns.list_names("conversation")
        nothing = (
            f"there is no text to learn: {first!r} is {row.get(first)!r}, and neither {', '.join(others)} nor "
            f"{', '.join(self.columns.list_names('answer'))} holds any. Its columns: {', '.join(row)}."
        )
        strange = find_unread_keys(row, self.columns.read)
        return f"{nothing} And {describe_unread_keys(strange, self.columns.read)}" if strange else nothing

    def read_question(self, row: Mapping[str, Any], origin: str) -> tuple[list[Turn], tuple[str, ...]]:
        """The turns up to the answer, and the keys that they were read from."""
        column, question = self.columns.find_value(row, "question", origin)
        used = [*self.columns.list_names("question"), HISTORY]
        if column == "instruction":
            used.append(INPUT)
            question = _joined(question, row.get(INPUT), origin)
        before = list(_history(row.get(HISTORY), origin))
        if isinstance(question, list):
            earlier = read_turns(before, f"{origin}: {HISTORY!r}") if before else []
            return [*earlier, *self.to_turns(question, origin, column)], tuple(used)
        asked = {"from": "human", "value": self.columns.ask if question is None else question}
        return read_turns([*before, asked], origin), tuple(used)

    def read_answer(self, given: Any, column: str, origin: str, number: int) -> Turn:
        """Turn `number`, the answer of a column: a text, a turn, or a list that holds one turn."""
        if not isinstance(given, list | Mapping):
            return read_turn({"from": "gpt", "value": given}, f"{origin}, turn {number}")
        found = self.to_turns([given] if isinstance(given, Mapping) else given, f"{origin}: {column!r}", column)
        if [turn.role for turn in found] != ["assistant"]:
            raise DataError(f"{origin}: {column!r} holds {len(found)} turns; write one answer.")
        return found[0]


def _joined(instruction: Any, more: Any, origin: str) -> Any:
    if is_empty(more):
        return instruction
    if not isinstance(more, str) or not isinstance(instruction, str):
        raise DataError(f"{origin}: {INPUT!r} is {more!r:.80}; write a text that belongs to an 'instruction'.")
    return f"{instruction}\n{more}" if instruction else more


def _history(history: Any, origin: str) -> Iterator[dict[str, Any]]:
    """The turns of [[question, answer], ...]."""
    for i, pair in enumerate([] if is_empty(history) else history if isinstance(history, list) else [history]):
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f"{origin}: {HISTORY!r}, entry {i}: {pair!r:.80}; write [question, answer].")
        yield from ({"from": speaker, "value": text} for speaker, text in zip(("human", "gpt"), pair, strict=True))


def _with_system(turns: Sequence[Turn], column: str, system: Any, origin: str) -> Sequence[Turn]:
    """Turns behind the system text of their record, which may stand only once."""
    if is_empty(system):
        return turns
    if not isinstance(system, str):
        raise DataError(f"{origin}: {column!r} is {system!r:.80}; write a text.")
    if not turns or turns[0].role != "system":
        return [Turn("system", system), *turns]
    if _words(turns[0]) != system.strip():
        raise DataError(f"{origin}: {column!r} and the first turn are two different system texts; keep one.")
    return turns


def _words(turn: Turn) -> str:
    if isinstance(turn.content, str):
        return turn.content.strip()
    return "".join(str(part.get("text")) for part in turn.content if isinstance(part, Mapping)).strip()


def _listed(turns: Any, where: str) -> Any:
    """Turns as a list: JSON text is parsed, and columns of columns (as some tables store them) are turned round."""
    if isinstance(turns, str):
        turns = parse_json(turns, where)
    if isinstance(turns, Mapping) and turns and all(isinstance(v, list) for v in turns.values()):
        if len({len(values) for values in turns.values()}) > 1:
            raise DataError(f"{where}: its columns {', '.join(turns)} are not of one length.")
        return [dict(zip(turns, values, strict=True)) for values in zip(*turns.values(), strict=True)]
    return turns


# Questions and answers in pairs -------------------------------------------------------------------------------------


def _are_pairs(turns: Any) -> bool:
    return isinstance(turns, list) and any(isinstance(turn, Mapping) and "assistant" in turn for turn in turns)


def _split_pairs(turns: list[Any], origin: str) -> list[dict[str, Any]]:
    for i, turn in enumerate(turns):
        if not isinstance(turn, Mapping) or not {"user", "assistant"} <= turn.keys():
            raise DataError(f"{origin}, turn {i}: {turn!r:.80}; write {{'user': ..., 'assistant': ...}}.")
        refuse_duplicates(turn, f"{origin}, turn {i}")
        refuse_unread_keys(turn, ("user", "assistant"), f"{origin}, turn {i}", "turn")
    speakers = (("human", "user"), ("gpt", "assistant"))
    return [{"from": speaker, "value": turn[key]} for turn in turns for speaker, key in speakers]
